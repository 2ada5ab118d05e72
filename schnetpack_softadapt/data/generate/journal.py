"""Labelling of many structures that loses no result: a journal, and files of what is labelled."""

import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm import tqdm

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.executors import Spec, open_executor, run_all
from schnetpack_softadapt.data.generate.labelling import import_calculator, label
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import replacing

__all__ = [
    "LabelResult",
    "Task",
    "digest",
    "journal_of",
    "label_tasks",
    "read_journal",
    "write_labelled",
]

SUFFIXES = (".extxyz", ".xyz", ".db")


class Task(NamedTuple):
    """A structure to label; the digest of geometry and calculator tells old labels of others."""

    key: str
    atoms: Atoms
    calculator_args: dict
    digest: str


@dataclass
class LabelResult:
    """What came of a list of structures.

    Attributes:
        labelled: structures with labels, all of them, in the order of the list; their
            `info["calculator"]` is name and arguments, as JSON.
        n_new: how many of these were labelled now.
        skipped: key and reason of structures that were not worth labelling.
        failed: key and reason of structures whose calculation failed.
    """

    labelled: list[Atoms] = field(default_factory=list)
    n_new: int = 0
    skipped: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"labelled     {len(self.labelled)} ({self.n_new} of them now)"]
        for name, reasons in (("skipped", self.skipped), ("failed", self.failed)):
            if reasons:
                lines.append(f"{name:<12} {len(reasons)}")
                lines += [f"  {key}: {reason}" for key, reason in list(reasons.items())[:20]]
                if len(reasons) > 20:
                    lines.append(f"  and {len(reasons) - 20} more")
        return "\n".join(lines)


def journal_of(out: Path, calculator: str | None, overwrite: bool) -> Path:
    """Where the results for a file are kept, after a look at what the user gave.

    Raises:
        ValueError: no calculator, or a wrong name.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")
    if calculator is None:
        raise ValueError("no calculator; give --calculator module:name")
    # a misspelt name is an error now, not once per structure
    import_calculator(calculator)
    journal = out.with_name(out.name + ".journal")
    if out.exists() and not journal.exists() and not overwrite:
        raise FileExistsError(
            f"{out} exists, but no {journal.name}; choose another --out or give --overwrite"
        )
    return journal


def write_labelled(
    out: Path, result: LabelResult, provenance: str, say: Callable[[str], None]
) -> None:
    """Write all that has labels: extended XYZ, or a database in SchNetPack's format.

    Raises:
        ValueError: nothing could be labelled.
    """
    say(str(result))
    if not result.labelled:
        raise ValueError(f"no structure could be labelled; {out} is not written")
    if out.suffix != ".db":
        with replacing(out) as temporary:
            ase.io.write(temporary, result.labelled, format="extxyz")
    else:
        structures = []
        for atoms in result.labelled:
            info = {}
            if "prototype" in atoms.info:
                info["strain_state"] = f"{atoms.info['prototype']} {atoms.info['strain_state']}"
            group = str(atoms.info.get("group", ""))
            structures.append(Structure.from_atoms(atoms, group, info))
        write_database(out, structures, provenance=provenance, overwrite=True)
    say(f"written      {out}")


def label_tasks(
    tasks: Sequence[Task],
    calculator: str,
    journal: Path,
    result: LabelResult,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> None:
    """Label what a journal has no labels for, and collect what is labelled.

    Args:
        tasks: structures; "{worker}" in a text of their arguments becomes the name of the process,
            for calculators that write files into a directory of their own.
        calculator: "module:name" of a class or function that makes one.
        journal: gets a line for each structure when it is done; the caller holds its lock.
        result: filled.
        executor, timeout, retries: see `executors.run_all`.
        progress: show a progress bar.
        say: gets the messages for the user.
    """
    records, n_bytes = read_journal(journal)
    n_other = sum(records.get(t.key, {}).get("digest", t.digest) != t.digest for t in tasks)
    if n_other:
        say(f"{n_other} earlier results are of another geometry or calculator: made anew")
    missing = {t.key: t for t in tasks if not _is_done(records.get(t.key), t)}
    inputs = [(t.key, (t.atoms, calculator, t.calculator_args)) for t in missing.values()]
    with (
        open_executor(executor) as workers,
        open(journal, "ab") as file,
        tqdm(
            run_all(label, inputs, workers, timeout, retries),
            desc="labelling",
            unit=" structures",
            total=len(tasks),
            initial=len(tasks) - len(missing),
            disable=not progress,
        ) as bar,
    ):
        file.truncate(n_bytes)
        n_failed, synced = 0, time.monotonic()
        for key, labels, reason in bar:
            record = {"key": key, "digest": missing[key].digest}
            records[key] = record | ({"error": reason} if labels is None else labels)
            file.write(json.dumps(records[key]).encode() + b"\n")
            file.flush()
            if time.monotonic() > synced + 1.0:  # an hour of DFT is worth it, a millisecond not
                os.fsync(file.fileno())
                synced = time.monotonic()
            result.n_new += reason is None
            if reason is not None:
                n_failed += 1
                bar.set_postfix(failed=n_failed)
    for key, atoms, arguments, _ in tasks:
        record = records[key]
        if "error" in record:
            result.failed[key] = record["error"]
            continue
        labels = {name: record[name] for name in ("energy", "forces", "stress")}
        labels = {name: np.array(v) for name, v in labels.items() if v is not None}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        about = {"name": calculator, "arguments": arguments}
        atoms.info["calculator"] = json.dumps(about, sort_keys=True)
        result.labelled.append(atoms)


def digest(atoms: Atoms, calculator: list) -> str:
    """Of what labels depend on: name and arguments of the calculator, and the structure."""
    found = hashlib.sha256(json.dumps(calculator, sort_keys=True).encode())
    found.update(atoms.numbers.astype("<i8").tobytes())
    for array in (atoms.positions, atoms.cell.array):
        # to 1e-8 Ang, beyond what differs between machines
        found.update(np.round(array * 1e8).astype("<i8").tobytes())
    for name in ("initial_magmoms", "initial_charges"):
        if atoms.has(name):
            found.update(atoms.get_array(name).astype("<f8").tobytes())
    found.update(atoms.pbc.tobytes())
    return found.hexdigest()[:16]


def read_journal(path: Path) -> tuple[dict[str, dict], int]:
    """The last record of each key, and the length without a line that was being written."""
    content = path.read_bytes() if path.exists() else b""
    n_bytes = content.rfind(b"\n") + 1
    records = {}
    for number, line in enumerate(content[:n_bytes].splitlines(), start=1):
        try:
            record = json.loads(line)
            records[record["key"]] = record
        except (ValueError, TypeError, KeyError):
            raise ValueError(
                f"{path}, line {number}: damaged; remove this line, or the file to start afresh"
            ) from None
    return records, n_bytes


def _is_done(record: dict | None, task: Task) -> bool:
    return record is not None and record["digest"] == task.digest and "error" not in record
