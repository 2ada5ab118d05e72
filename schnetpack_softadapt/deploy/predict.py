"""Predictions for the structures of a file, beside their labels where they have some."""

import io
import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import ase.db
import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from tqdm import tqdm

from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.formats.format import ImportOptions, read_files
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.quantities import (
    ENERGY,
    FORCES,
    QUANTITIES,
    STRESS,
    full_to_voigt,
    voigt_to_full,
)
from schnetpack_softadapt.training.predictions import prediction_arrays, write_predictions

__all__ = ["calculated", "labelled_atoms", "predict", "read_structures"]

log = logging.getLogger(__name__)


def predict(
    model,
    structures: str | Path | Iterable[Atoms | Structure],
    out: str | Path | None = None,
    **calculator_args,
) -> dict[str, np.ndarray]:
    """Energy, forces and stress of structures, and their labels, in eV and Ang.

    Args:
        model: as for `SoftAdaptCalculator`: a model, the path of one (a pickle, which can execute
            code), a run directory, an n2p2 folder, or several of these for the mean of a committee.
        structures: a file (see `read_structures`), or structures; labels of `Atoms` are those of
            their calculator.
        out: file for the predictions, renewed: arrays as in a run's `predictions/*.npz` if it ends
            in .npz, else extended XYZ with labels as `energy_ref`, `forces_ref` and `stress_ref`.
        calculator_args: further arguments of `SoftAdaptCalculator`, such as `device` and, for
            models that do not state them, `energy_unit` and `position_unit`.

    Returns:
        `training.predictions.prediction_arrays`: predictions, and labels that all structures have.
        A stress is NaN where it is not defined; `stress_mask` is False there and where a structure
        has no label.

    Raises:
        FileNotFoundError: no model or file at the path.
        ValueError: a file or model cannot be read, or a structure cannot be predicted.
    """
    source = "structure"
    if isinstance(structures, str | Path):
        source = f"{structures}, structure"
        structures = read_structures(structures)
    structures = [_structure(s) if isinstance(s, Atoms) else s for s in structures]
    if not structures:
        raise ValueError("there are no structures to predict")
    calculator = SoftAdaptCalculator(model, **calculator_args)
    predicted = [_values(calculator) for _ in calculated(structures, calculator, source)]
    stress_mask = [
        s.stress is not None and bool(np.isfinite(values.get(STRESS.name, np.nan)).all())
        for s, values in zip(structures, predicted, strict=True)
    ]
    arrays = prediction_arrays(
        range(len(structures)),
        [s.numbers for s in structures],
        predicted,
        _references(structures),
        np.array(stress_mask),
    )
    if out is not None and Path(out).suffix == ".npz":
        write_predictions(Path(out), arrays)
    elif out is not None:
        _write_extxyz(Path(out), structures, predicted)
    return arrays


def calculated(
    structures: Iterable[Structure], calculator: SoftAdaptCalculator, source: str = "structure"
) -> Iterator[dict]:
    """The calculator's results for one structure after the other, with a bar.

    Raises:
        ValueError: a structure cannot be predicted, with its number.
    """
    bar = tqdm(structures, "predicting", unit=" structures", delay=2, leave=False, disable=None)
    for index, structure in enumerate(bar):
        try:
            calculator.calculate(structure.to_atoms())
        except ValueError as error:
            raise ValueError(f"{source} {index}: {error}") from error
        yield calculator.results


def read_structures(path: str | Path) -> list[Structure]:
    """Structures of a file that `spk-softadapt import` reads, or of a database it wrote.

    Where a structure of the file has no energy, all are read without labels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no structures at {path}")
    if path.suffix == ".db" and "_property_unit_dict" in ase.db.connect(str(path)).metadata:
        return read_database(path)
    structures, problems, remarks = read_files(find_sources([path]), ImportOptions())
    for remark in remarks:
        log.info(remark)
    if problems:
        log.warning("%s: read without labels: %s", path, problems[0])
        structures = [_structure(atoms, labels=False) for atoms in ase.io.iread(str(path), ":")]
    return structures


def labelled_atoms(structure: Structure) -> Atoms:
    """A structure for `ase.io.write`: with its group, and its labels as results."""
    atoms = structure.to_atoms()
    labels = {q.name: getattr(structure, q.name) for q in (ENERGY, FORCES)}
    labels[STRESS.name] = structure.stress_voigt
    labels = {name: value for name, value in labels.items() if value is not None}
    if labels:
        atoms.calc = SinglePointCalculator(atoms, **labels)
    if structure.group:
        atoms.info["group"] = structure.group
    return atoms


def _structure(atoms: Atoms, labels: bool = True) -> Structure:
    known = atoms.calc.results if labels and atoms.calc is not None else {}
    return Structure(
        atoms.numbers,
        atoms.positions,
        atoms.cell.array,
        atoms.pbc,
        **{q.name: known.get(q.name) for q in QUANTITIES},
        group=str(atoms.info.get("group", "")),
    )


def _values(calculator: SoftAdaptCalculator) -> dict[str, np.ndarray]:
    """What the calculator has just found; a stress is NaN where the structure has no volume."""
    values = {name: calculator.results[name] for name in (ENERGY.name, FORCES.name)}
    if calculator.stress_key is not None:
        six = calculator.results.get(STRESS.name, np.full(6, np.nan))
        values[STRESS.name] = voigt_to_full(six)
    return values


def _references(structures: list[Structure]) -> list[dict[str, np.ndarray]]:
    """Labels that all structures have; a stress that only some have is zero for the others."""
    labels = {q: [getattr(s, q.name) for s in structures] for q in QUANTITIES}
    known = {
        q.name: [np.zeros(q.shape) if label is None else label for label in of_all]
        for q, of_all in labels.items()
        if (any if q is STRESS else all)(label is not None for label in of_all)
    }
    return [{name: of_all[k] for name, of_all in known.items()} for k in range(len(structures))]


def _write_extxyz(path: Path, structures: list[Structure], predicted: list[dict]) -> None:
    """Predictions as calculator results, labels beside them with the ending `_ref`."""
    frames = []
    for s, values in zip(structures, predicted, strict=True):
        atoms = s.to_atoms()
        finite = {name: value for name, value in values.items() if np.isfinite(value).all()}
        if STRESS.name in finite:
            finite[STRESS.name] = full_to_voigt(finite[STRESS.name])
        atoms.calc = SinglePointCalculator(atoms, **finite)
        for q in QUANTITIES:
            label = getattr(s, q.name)
            if label is not None:
                (atoms.arrays if q.per_atom else atoms.info)[f"{q.name}_ref"] = label
        if s.group:
            atoms.info["group"] = s.group
        frames.append(atoms)
    text = io.StringIO()
    ase.io.write(text, frames, format="extxyz")
    write_file(path, text.getvalue())
