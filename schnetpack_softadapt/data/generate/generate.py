"""Training data from prototypes: make the structures of a recipe, label them, write them."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.data import covalent_radii
from tqdm import tqdm

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.generate.journal import Journal, open_journal
from schnetpack_softadapt.data.generate.labelling import (
    CalculatorSpec,
    import_calculator,
    label_all,
)
from schnetpack_softadapt.data.generate.recipe import Recipe, Sample, build, samples
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

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


def plan(recipe: Recipe) -> str:
    """How many structures of what kind a recipe makes, for a look before anything runs."""
    counts = Counter(sample.prototype for sample in samples(recipe))
    parts = ", ".join(f"{name} {n}" for name, n in counts.items())
    return (
        f"structures   {counts.total()} ({parts})\n"
        f"strains      {len(recipe.strains)}; sigma {_range(recipe.sigmas)} Ang; repeats"
        f" {recipe.repeats}; supercells {len(recipe.supercells)}; vacancies"
        f" {', '.join(map(str, recipe.vacancies))}; seed {recipe.seed}"
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
    path = out.with_name(out.name + ".journal")
    if out.exists() and not path.exists() and not overwrite:
        raise FileExistsError(
            f"{out} exists, but no {path.name}; choose another --out or give --overwrite"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    say(plan(recipe))
    result = GenerationResult()
    with open_journal(path) as journal:
        n_other = sum(
            journal.records.get(sample.key, {}).get("digest", digest) != digest
            for sample, _, digest in _structures(recipe)
        )
        if n_other:
            say(f"{n_other} earlier results are of another geometry or calculator: made anew")
        _label_missing(recipe, journal, result, n_jobs, progress)
        _collect(recipe, journal, result)
        if result.labelled:
            _write(out, result.labelled, recipe)
    say(str(result))
    if not result.labelled:
        raise ValueError(f"no structure could be labelled; {out} is not written")
    say(f"written      {out}")
    return result


def _label_missing(
    recipe: Recipe, journal: Journal, result: GenerationResult, n_jobs: int, progress: bool
) -> None:
    """Label what the journal does not have; fills `skipped` and `n_new` of the result."""
    keys: list[str] = []
    digests: list[str] = []
    total = sum(1 for _ in samples(recipe))
    with tqdm(total=total, desc="labelling", unit=" structures", disable=not progress) as bar:

        def missing() -> Iterator[tuple[int, Atoms, CalculatorSpec]]:
            for sample, atoms, digest in _structures(recipe):
                known = journal.records.get(sample.key, {})
                reason = _too_close(atoms, recipe.min_distance)
                if reason is not None:
                    result.skipped[sample.key] = reason
                if reason is not None or _is_done(known, digest):
                    bar.update()
                    continue
                keys.append(sample.key)
                digests.append(digest)
                yield len(keys) - 1, atoms, _calculator(recipe, sample.prototype)

        n_failed = 0
        for number, labels in label_all(missing(), n_jobs):
            journal.add(keys[number], {"digest": digests[number], **labels})
            result.n_new += "error" not in labels
            n_failed += "error" in labels
            if n_failed:
                bar.set_postfix(failed=n_failed)
            bar.update()


def _collect(recipe: Recipe, journal: Journal, result: GenerationResult) -> None:
    """All labelled structures in the order of the recipe; fills `labelled` and `failed`."""
    for sample, atoms, digest in _structures(recipe):
        if sample.key in result.skipped:
            continue
        record = journal.records[sample.key]
        if not _is_done(record, digest):
            result.failed[sample.key] = record.get("error", "not labelled")
            continue
        labels = {"energy": record["energy"], "forces": np.array(record["forces"])}
        if record["stress"] is not None:
            labels["stress"] = np.array(record["stress"])
        atoms.calc = SinglePointCalculator(atoms, **labels)
        atoms.info["calculator"] = recipe.calculator
        result.labelled.append(atoms)


def _structures(recipe: Recipe) -> Iterator[tuple[Sample, Atoms, str]]:
    for sample in samples(recipe):
        atoms = build(sample, recipe)
        yield sample, atoms, _digest(atoms, _calculator(recipe, sample.prototype))


def _calculator(recipe: Recipe, prototype: str) -> CalculatorSpec:
    (own,) = (p.calculator_args for p in recipe.prototypes if p.name == prototype)
    return CalculatorSpec(recipe.calculator, {**recipe.calculator_args, **own})


def _digest(atoms: Atoms, calculator: CalculatorSpec) -> str:
    """Fingerprint of geometry and calculator: labels of others are not used by mistake."""
    text = json.dumps([calculator.path, calculator.arguments], sort_keys=True)
    digest = hashlib.sha256(text.encode())
    digest.update(atoms.numbers.astype("<i8").tobytes())
    for array in (atoms.positions, atoms.cell.array):
        # to 1e-8 Ang, beyond what differs between machines
        digest.update(np.round(array * 1e8).astype("<i8").tobytes())
    for name in ("initial_magmoms", "initial_charges"):
        if atoms.has(name):
            digest.update(atoms.get_array(name).astype("<f8").tobytes())
    digest.update(atoms.pbc.tobytes())
    return digest.hexdigest()[:16]


def _is_done(record: dict, digest: str) -> bool:
    return record.get("digest") == digest and "error" not in record


def _too_close(atoms: Atoms, min_distance: float | None) -> str | None:
    """Why a structure is not worth labelling, or None."""
    radii = covalent_radii[atoms.numbers]
    cutoff = 2 * SHORTEST_OF_COVALENT * radii.max() if min_distance is None else min_distance
    if cutoff <= 0:
        return None
    i, j, r_ij, _ = neighbor_pairs(atoms.positions, atoms.cell.array, atoms.pbc, cutoff)
    distances = np.linalg.norm(r_ij, axis=1)
    limits = SHORTEST_OF_COVALENT * (radii[i] + radii[j])
    if min_distance is not None:
        limits = np.full(len(distances), min_distance)
    bad = np.flatnonzero(distances < limits)
    if not len(bad):
        return None
    worst = bad[np.argmin(distances[bad])]
    return (
        f"atoms {i[worst]} and {j[worst]} are {distances[worst]:.3f} Ang apart (less than"
        f" {limits[worst]:.3f}; --min-distance)"
    )


def _write(out: Path, labelled: list[Atoms], recipe: Recipe) -> None:
    """Write all structures under a temporary name, then give it the right one."""
    if out.suffix == ".db":
        provenance = f"generated from {', '.join(p.name for p in recipe.prototypes)};"
        provenance += f" {plan(recipe)}; labels by {recipe.calculator} {recipe.calculator_args}"
        write_database(out, map(_structure, labelled), provenance=provenance, overwrite=True)
        return
    with replacing(out) as temporary:
        ase.io.write(temporary, labelled, format="extxyz")


def _structure(atoms: Atoms) -> Structure:
    results = atoms.calc.results
    info = {"strain_state": f"{atoms.info['prototype']} {atoms.info['strain_state']}"}
    return Structure(
        numbers=atoms.numbers,
        positions=atoms.positions,
        cell=atoms.cell.array,
        pbc=atoms.pbc,
        energy=results["energy"],
        forces=results["forces"],
        stress=results.get("stress"),
        group=atoms.info["group"],
        info=info,
    )


def _range(values: tuple[float, ...]) -> str:
    return f"{values[0]:g}" if len(values) == 1 else f"{min(values):g} to {max(values):g}"
