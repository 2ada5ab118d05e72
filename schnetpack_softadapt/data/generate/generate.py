"""Training data from prototypes: make the structures of a recipe, label them, write them."""

import hashlib
import itertools
import json
import os
from collections import Counter
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
from schnetpack_softadapt.data.generate.labelling import import_calculator, label_all
from schnetpack_softadapt.data.generate.recipe import Recipe, build, samples
from schnetpack_softadapt.data.generate.walks import Walk, walk_all
from schnetpack_softadapt.data.importing.checks import closest_contact
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import locked, replacing

__all__ = ["GenerationResult", "generate", "plan"]

SHORTEST_OF_COVALENT = 0.6  # of the sum of covalent radii; bonds of strained crystals keep 0.8
SUFFIXES = (".extxyz", ".xyz", ".db")


@dataclass
class GenerationResult:
    """What came of a recipe.

    Attributes:
        labelled: structures with labels, all of them, in the order of the recipe.
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


class Task(NamedTuple):
    """A structure to label; the digest of geometry and calculator tells old labels of others."""

    key: str
    atoms: Atoms
    calculator_args: dict
    digest: str


def plan(recipe: Recipe) -> str:
    """How many structures of what kind a recipe makes, for a look before anything runs."""
    counts = Counter(sample.prototype for sample in samples(recipe))
    names = ", ".join(f"{name} {n}" for name, n in counts.items())
    sigmas = dict.fromkeys((min(recipe.sigma), max(recipe.sigma)))
    return (
        f"structures   {counts.total()} ({names})\n"
        f"strains      {len(recipe.strain)}; sigma {' to '.join(f'{s:g}' for s in sigmas)} Ang;"
        f" repeats {recipe.repeats}; supercells {len(recipe.supercell)}; vacancies"
        f" {', '.join(map(str, recipe.vacancies))}; seed {recipe.seed}"
        + "".join(
            f"\n{w.key:<12} {w.settings.steps} steps, up to"
            f" {w.settings.steps // w.settings.every} structures"
            for w in _walks(recipe, Path())
        )
    )


def generate(
    recipe: Recipe,
    out: str | Path,
    n_jobs: int = 1,
    overwrite: bool = False,
    progress: bool = False,
    say: Callable[[str], None] = print,
) -> GenerationResult:
    """Label all structures of a recipe that have no labels yet, and write all that have.

    Results are kept in `<out>.journal`, line by line: run again after an interruption, with more
    strains or after a failure, and only what is missing is computed.

    Args:
        recipe: what to make; its calculator must be given.
        out: extended XYZ, or a database (.db) in SchNetPack's format; written at the end.
        n_jobs: number of processes.
        overwrite: replace an `out` that no earlier run made; results in a journal are kept.
        progress: show a progress bar.
        say: gets the messages for the user.

    Raises:
        ValueError: no calculator, a wrong name, another process at work on the same file, or
            nothing could be labelled.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out = Path(out)
    if out.suffix not in SUFFIXES:
        raise ValueError(f"--out {out}: the name must end in {', '.join(SUFFIXES)}")
    if recipe.calculator is None:
        raise ValueError("no calculator; give --calculator module:name")
    if n_jobs < 1:
        raise ValueError(f"--jobs is a number of processes from 1 on, not {n_jobs}")
    import_calculator(recipe.calculator)  # a misspelt name is an error now, not once per structure
    journal = out.with_name(out.name + ".journal")
    if out.exists() and not journal.exists() and not overwrite:
        raise FileExistsError(
            f"{out} exists, but no {journal.name}; choose another --out or give --overwrite"
        )
    say(plan(recipe))
    result = GenerationResult()
    with locked(journal):
        walked = _walked(recipe, out.with_name(out.name + ".walks"), n_jobs, progress, say)
        tasks = _tasks(recipe, result, walked)
        records, n_bytes = _read_journal(journal)
        n_other = sum(records.get(t.key, {}).get("digest", t.digest) != t.digest for t in tasks)
        if n_other:
            say(f"{n_other} earlier results are of another geometry or calculator: made anew")
        missing = [task for task in tasks if not _is_done(records.get(task.key), task)]
        digests = {task.key: task.digest for task in missing}
        with (
            open(journal, "ab") as file,
            tqdm(
                label_all([task[:3] for task in missing], recipe.calculator, n_jobs),
                desc="labelling",
                unit=" structures",
                total=len(tasks),
                initial=len(tasks) - len(missing),
                disable=not progress,
            ) as bar,
        ):
            file.truncate(n_bytes)
            n_failed = 0
            for key, labels in bar:
                records[key] = {"key": key, "digest": digests[key], **labels}
                file.write(json.dumps(records[key]).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
                result.n_new += "error" not in labels
                if "error" in labels:
                    n_failed += 1
                    bar.set_postfix(failed=n_failed)
        _collect(tasks, records, recipe, result)
        if result.labelled:
            _write(out, result.labelled, recipe)
    say(str(result))
    if not result.labelled:
        raise ValueError(f"no structure could be labelled; {out} is not written")
    say(f"written      {out}")
    return result


def _walks(recipe: Recipe, folder: Path) -> list[Walk]:
    """Molecular dynamics and exchanges from each prototype and supercell."""
    driver = recipe.driver or recipe.calculator
    walks = []
    for p, cell in itertools.product(recipe.prototypes, recipe.supercell):
        args = (
            recipe.driver_args if recipe.driver else {**recipe.calculator_args, **p.calculator_args}
        )
        for settings in (*recipe.md, *recipe.swaps):
            n_before = sum(w.key.startswith(f"{p.name}|{cell}|{settings.kind}") for w in walks)
            for repeat in range(settings.repeats):
                key = f"{p.name}|{cell}|{settings.kind} {n_before + repeat}"
                seed = int.from_bytes(hashlib.sha256(f"{recipe.seed}|{key}".encode()).digest()[:6])
                start = p.atoms.repeat(cell)
                walks.append(Walk(key, p.name, start, settings, driver, args, seed, folder))
    return walks


def _walked(
    recipe: Recipe, folder: Path, n_jobs: int, progress: bool, say: Callable[[str], None]
) -> list[tuple[str, str, Atoms]]:
    """Key, prototype and structure of all that walks keep."""
    found = []
    walks = _walks(recipe, folder)
    for task, (kept, end) in zip(walks, walk_all(walks, n_jobs, progress), strict=True):
        if end != "done":
            say(f"{task.key}: {end}; {len(kept)} structures")
        for atoms in kept:
            about = {"group": task.settings.kind, "prototype": task.prototype}
            about |= {"strain_state": task.key, "seed": recipe.seed, "child_seed": task.seed}
            atoms.info |= about
            found.append((f"{task.key}|{atoms.info['step']}", task.prototype, atoms))
    return found


def _tasks(
    recipe: Recipe, result: GenerationResult, walked: Sequence[tuple[str, str, Atoms]] = ()
) -> list[Task]:
    """What is worth labelling; fills `skipped` of the result."""
    arguments = {p.name: {**recipe.calculator_args, **p.calculator_args} for p in recipe.prototypes}
    tasks = []
    built = ((s.key, s.prototype, build(s, recipe)) for s in samples(recipe))
    for key, prototype, atoms in itertools.chain(built, walked):
        contact = closest_contact(atoms, recipe.min_distance, SHORTEST_OF_COVALENT)
        if contact is not None:
            result.skipped[key] = (
                "atoms {} and {} are {:.3f} Ang apart (less than {:.3f}; --min-distance)"
            ).format(*contact)
            continue
        own = arguments[prototype]
        tasks.append(Task(key, atoms, own, _digest(atoms, [recipe.calculator, own])))
    return tasks


def _digest(atoms: Atoms, calculator: list) -> str:
    digest = hashlib.sha256(json.dumps(calculator, sort_keys=True).encode())
    digest.update(atoms.numbers.astype("<i8").tobytes())
    for array in (atoms.positions, atoms.cell.array):
        # to 1e-8 Ang, beyond what differs between machines
        digest.update(np.round(array * 1e8).astype("<i8").tobytes())
    for name in ("initial_magmoms", "initial_charges"):
        if atoms.has(name):
            digest.update(atoms.get_array(name).astype("<f8").tobytes())
    digest.update(atoms.pbc.tobytes())
    return digest.hexdigest()[:16]


def _read_journal(path: Path) -> tuple[dict[str, dict], int]:
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


def _collect(tasks: list[Task], records: dict, recipe: Recipe, result: GenerationResult) -> None:
    """All labelled structures in the order of the recipe; fills `labelled` and `failed`."""
    for key, atoms, _, _ in tasks:
        record = records[key]
        if "error" in record:
            result.failed[key] = record["error"]
            continue
        labels = {name: record[name] for name in ("energy", "forces", "stress")}
        labels = {name: np.array(v) for name, v in labels.items() if v is not None}
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["calculator"] = recipe.calculator
        result.labelled.append(atoms)


def _write(out: Path, labelled: list[Atoms], recipe: Recipe) -> None:
    if out.suffix != ".db":
        with replacing(out) as temporary:
            ase.io.write(temporary, labelled, format="extxyz")
        return
    states = [f"{a.info['prototype']} {a.info['strain_state']}" for a in labelled]
    structures = [
        Structure.from_atoms(atoms, atoms.info["group"], {"strain_state": state})
        for atoms, state in zip(labelled, states, strict=True)
    ]
    provenance = f"generated from {', '.join(p.name for p in recipe.prototypes)};"
    provenance += f" {plan(recipe)}; labels by {recipe.calculator} {recipe.calculator_args}"
    write_database(out, structures, provenance=provenance, overwrite=True)
