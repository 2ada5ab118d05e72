"""Results of many calculations, none of which is lost: each is a line of a journal at once."""

import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from schnetpack_softadapt.data.executors import Spec, open_executor, run_all

__all__ = ["Task", "compute", "journal_of", "read_lines"]


class Task(NamedTuple):
    """Something to compute: its name, a digest of all that it depends on, and arguments."""

    key: str
    digest: str
    args: tuple


def journal_of(out: Path, overwrite: bool, suffixes: Sequence[str] = (".extxyz", ".xyz")) -> Path:
    """Where the results for a file are kept.

    Raises:
        ValueError: the file cannot be written under this name.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    if out.suffix not in suffixes:
        raise ValueError(f"--out {out}: the name must end in {', '.join(suffixes)}")
    journal = out.with_name(out.name + ".journal")
    if out.exists() and not journal.exists() and not overwrite:
        raise FileExistsError(
            f"{out} exists, but no {journal.name}; choose another --out or give --overwrite"
        )
    return journal


def compute(
    function: Callable,
    tasks: Sequence[Task],
    journal: Path,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    may_fail: bool = True,
    doing: str = "computing",
    say: Callable[[str], None] = print,
) -> tuple[dict[str, dict], int]:
    """Compute what a journal has no results of.

    Args:
        function: gives a mapping for JSON; see `executors.run_all`.
        tasks: a result is found again by key and digest.
        journal: gets a line for each task when it is done; the caller holds its lock.
        executor, timeout, retries: see `executors.run_all`; the time is in seconds.
        may_fail: go on with the others where one fails.
        doing: what the progress bar says.
        say: gets the messages for the user.

    Returns:
        a record of each key, with "error" where the calculation failed, and how many are new.

    Raises:
        ValueError: a calculation failed that must not.
    """
    records = {record.get("key"): record for record in read_lines(journal)}
    n_other = sum(records.get(t.key, {}).get("digest", t.digest) != t.digest for t in tasks)
    if n_other:
        say(f"{n_other} earlier results are of other settings: made anew")
    done = {(key, r["digest"]) for key, r in records.items() if "error" not in r}
    missing = {t.key: t for t in tasks if (t.key, t.digest) not in done}
    with (
        open_executor(executor) as workers,
        open(journal, "ab") as file,
        tqdm(
            run_all(
                function, [(t.key, t.args) for t in missing.values()], workers, timeout, retries
            ),
            desc=doing,
            unit=" structures",
            total=len(tasks),
            initial=len(tasks) - len(missing),
            disable=None,
        ) as bar,
    ):
        n_failed, synced = 0, time.monotonic()
        for key, result, reason in bar:
            records[key] = {"key": key, "digest": missing[key].digest}
            records[key] |= {"error": reason} if result is None else result
            file.write(json.dumps(records[key]).encode() + b"\n")
            file.flush()
            if time.monotonic() > synced + 1.0:  # an hour of DFT is worth it, a millisecond not
                os.fsync(file.fileno())
                synced = time.monotonic()
            if reason is not None:
                if not may_fail:
                    raise ValueError(reason)
                n_failed += 1
                bar.set_postfix(failed=n_failed)
    return records, len(missing) - n_failed


def read_lines(path: Path) -> list[dict]:
    """The records of a file of JSON lines, of which a last one that is not whole is removed.

    Raises:
        ValueError: one is damaged.
    """
    content = path.read_bytes() if path.exists() else b""
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)
    records = []
    for number, line in enumerate(content[:whole].splitlines(), start=1):
        try:
            records.append(dict(json.loads(line)))
        except (ValueError, TypeError):
            raise ValueError(
                f"{path}, line {number}: damaged; remove this line, or the file to start afresh"
            ) from None
    return records
