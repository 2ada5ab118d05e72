"""Files that are whole or not there at all, and a lock between processes."""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

__all__ = ["link_or_copy", "locked", "replacing", "write_file"]


@contextlib.contextmanager
def replacing(path: str | Path, overwrite: bool = True) -> Iterator[Path]:
    """Write a file under a temporary name that becomes `path` when the block ends.

    Readers see the old file or the new one. If the block fails, the old one stays; if the process
    is killed, the temporary file (`.<name>.<process>.tmp`) is left too. Missing folders are made.
    The temporary name has another suffix: tell libraries that go by it what to write.

    Args:
        path: the file; its folder holds the temporary one, since only there a rename is atomic.
        overwrite: whether a file that is there by the end of the block is replaced.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if overwrite:
            os.replace(temporary, path)
        else:
            with contextlib.suppress(FileExistsError):
                link_or_copy(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_file(path: str | Path, content: str | bytes) -> Path:
    """Write text (as UTF-8, with its line ends) or bytes in one step; see `replacing`."""
    data = content.encode("utf-8") if isinstance(content, str) else content
    with replacing(path) as temporary:
        temporary.write_bytes(data)
    return Path(path)


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name; a copy where the file system has no hard links.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        if target.exists():
            raise FileExistsError(f"{target} exists") from None
        # whole at any time, but what another process writes meanwhile is replaced
        copy = target.with_name(f".{target.name}.{os.getpid()}.copy")
        shutil.copyfile(source, copy)
        os.replace(copy, target)


@contextlib.contextmanager
def locked(path: str | Path, on_wait: Callable[[], None] | None = None) -> Iterator[None]:
    """Be the only process in a block that has to do with `path`.

    The lock is the file `.<name>.lock` beside it, there while the lock is held; the system frees
    the lock of a process that is killed.

    Args:
        path: a file or folder, which need not exist.
        on_wait: called once where another process is first; then this one waits for it. Without
            it, that is an error.

    Raises:
        ValueError: another process is first.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_file = path.with_name(f".{path.name}.lock")
    lock = FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        if on_wait is None:
            raise ValueError(f"another process is writing {path}") from None
        on_wait()
        lock.acquire()
    try:
        yield
    finally:
        # while it is held: who waits for the file without a name is given a new one by filelock
        with contextlib.suppress(OSError):
            lock_file.unlink()
        lock.release()
