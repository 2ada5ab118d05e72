"""Files are whole or absent, whatever happens to the process that writes them."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from schnetpack_softadapt.files import link_or_copy, locked, replacing, write_file


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def python(code: str, *arguments) -> subprocess.Popen:
    code = f"import sys, time\nfrom schnetpack_softadapt.files import *\n{code}"
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_text_and_bytes_in_a_new_folder(tmp_path):
    path = write_file(tmp_path / "new" / "a.txt", "Å\r\nb\n")
    assert path.read_bytes() == "Å\r\nb\n".encode()
    write_file(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["a.txt"]


def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path):
    path = write_file(tmp_path / "a.txt", "old")

    def fails_half_way():
        with replacing(path) as temporary:
            temporary.write_text("new")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half way"):
        fails_half_way()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_file(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_file(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_kill_between_writing_and_renaming_leaves_the_old_file(tmp_path):
    path = write_file(tmp_path / "a.txt", "old")
    code = """
with replacing(sys.argv[1]) as temporary:
    temporary.write_text("new")
    print("written", flush=True)
    time.sleep(60)
"""
    writer = python(code, path)
    assert writer.stdout.readline() == "written\n"
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    assert path.read_text() == "old"
    write_file(path, "newer")
    assert path.read_text() == "newer"


def test_readers_never_see_half_a_file(tmp_path):
    path = write_file(tmp_path / "a.txt", "0" * 1_000_000)
    code = "for k in range(50):\n    write_file(sys.argv[1], str(k % 10) * 1_000_000)\n    print(k)"
    writer = python(code, path)
    n_seen = 0
    while writer.poll() is None or not n_seen:
        text = path.read_text()
        assert len(text) == 1_000_000
        assert len(set(text)) == 1
        n_seen += 1
    assert writer.wait() == 0
    assert path.read_text() == "9" * 1_000_000


def test_permissions_are_those_of_any_new_file(tmp_path):
    old = os.umask(0o027)
    try:
        path = write_file(tmp_path / "a.txt", "")
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_without_overwriting_what_came_first_stays(tmp_path):
    path = tmp_path / "a.txt"
    for content in ("first", "second"):
        with replacing(path, overwrite=False) as temporary:
            temporary.write_text(content)
    assert path.read_text() == "first"
    assert names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("hard_links", [True, False])
def test_second_name(tmp_path, monkeypatch, hard_links):
    if not hard_links:

        def fail(*_):
            raise PermissionError("no hard links here")

        monkeypatch.setattr(os, "link", fail)
    source = write_file(tmp_path / "a.txt", "content")
    link_or_copy(source, tmp_path / "b.txt")
    assert (tmp_path / "b.txt").read_text() == "content"
    assert (tmp_path / "b.txt").samefile(source) == hard_links
    with pytest.raises(FileExistsError):
        link_or_copy(source, tmp_path / "b.txt")


HOLD = """
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(float(sys.argv[2]))
"""


def test_who_comes_second_is_refused_or_waits(tmp_path):
    path = tmp_path / "store"
    holder = python(HOLD, path, 1)
    assert holder.stdout.readline() == "locked\n"
    start = time.monotonic()
    with pytest.raises(ValueError, match=f"another process is writing {path}"), locked(path):
        pass
    waits = []
    with locked(path, on_wait=lambda: waits.append(time.monotonic() - start)):
        assert time.monotonic() - start > 0.5  # of the second that the other one holds it
    assert len(waits) == 1
    assert waits[0] < 0.5
    assert holder.wait() == 0
    assert names(tmp_path) == []


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    holder = python(HOLD, tmp_path / "store", 60)
    assert holder.stdout.readline() == "locked\n"
    holder.kill()
    holder.wait()
    with locked(tmp_path / "store"):
        assert names(tmp_path) == [".store.lock"]


def test_only_one_of_several_is_inside(tmp_path):
    """Each leaves and comes back often, and the lock file with it: no one may hold an old one."""
    program = (
        "import os, time\n"
        "from schnetpack_softadapt.files import locked\n"
        "while not os.path.exists('start'):\n"
        "    time.sleep(0.001)\n"
        "for _ in range(20):\n"
        "    with locked('thing', on_wait=lambda: None):\n"
        "        os.close(os.open('inside', os.O_CREAT | os.O_EXCL))\n"
        "        time.sleep(0.001)\n"
        "        os.remove('inside')\n"
    )
    processes = [
        subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    time.sleep(0.3)
    (tmp_path / "start").touch()
    errors = [process.communicate(timeout=120)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, errors
