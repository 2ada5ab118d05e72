"""Predictions and references of one subset, as they stand in `predictions/<subset>.npz`."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from schnetpack_softadapt.quantities import ENERGY, QUANTITIES, STRESS, Quantity, full_to_voigt

__all__ = ["Predictions", "parity_values"]


@dataclass
class Predictions:
    """One subset of a run."""

    subset: str  # "train", "val" or "test"
    # a row each: index (in the database, None where unknown), group (name, or empty), n_atoms
    structures: pd.DataFrame
    numbers: np.ndarray | None  # (N,) atomic numbers of all atoms, None where unknown
    # by name of the quantities of which prediction and reference are there for one structure at
    # least; see `_values`
    values: dict[str, pd.DataFrame]

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read one npz file; the subset is the file's name.

        Raises:
            ValueError: the file is damaged or its arrays do not fit together; names the file.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = dict(archive)
        except Exception as error:  # zipfile, zlib and numpy raise half a dozen types here
            raise ValueError(
                f"{path} is not a readable predictions file ({error}); delete it and run "
                "`spk-softadapt report --predict`"
            ) from error
        return cls.from_arrays(path.stem, arrays, source=str(path))

    @classmethod
    def from_arrays(
        cls, subset: str, arrays: dict[str, np.ndarray], source: str = "predictions"
    ) -> "Predictions":
        """Check and take the arrays of a predictions file, see `training.predictions`.

        Raises:
            ValueError: an array is missing or has the wrong shape; names `source` and the key.
        """
        if "n_atoms" not in arrays:
            raise ValueError(f"{source} has no array n_atoms; it is not a predictions file")
        n_atoms = np.asarray(arrays["n_atoms"]).reshape(-1).astype(np.int64)
        n, total = len(n_atoms), int(n_atoms.sum())

        def take(key: str, *shapes: tuple[int, ...]) -> np.ndarray | None:
            if key not in arrays:
                return None
            value = np.asarray(arrays[key])
            for shape in shapes:
                if value.size == np.prod(shape, dtype=int):
                    return value.reshape(shape)
            raise ValueError(
                f"{source}: {key} has shape {value.shape}, expected"
                f" {' or '.join(map(str, shapes))} for {n} structures with {total} atoms"
            )

        index, group = take("index", (n,)), take("group", (n,))
        if group is not None:
            names = [str(name) for name in np.reshape(arrays.get("group_names", []), -1)]
            names = names or [f"group {i}" for i in range(n and group.max() + 1)]
            if n and not 0 <= group.min() <= group.max() < len(names):
                raise ValueError(
                    f"{source}: group index {group.max()} but {len(names)} group_names"
                )
            group = pd.Categorical(np.array(names)[group], list(dict.fromkeys(names)))
        structures = pd.DataFrame({"n_atoms": n_atoms, "group": "" if group is None else group})
        structures["index"] = None if index is None else pd.Series(index.tolist(), dtype=object)
        found = cls(subset, structures, take("numbers", (total,)), {})
        mask = take("stress_mask", (n,))
        for q in QUANTITIES:
            shapes = [(total if q.per_atom else n, *q.shape)]
            shapes += [(n, 6)] if q is STRESS else []
            pair = take(q.name, *shapes), take(f"{q.name}_ref", *shapes)
            if pair[0] is not None and pair[1] is not None:
                kept = np.ones(n, bool) if mask is None or q is not STRESS else mask.astype(bool)
                if kept.any():
                    found.values[q.name] = found._values(q, *pair, kept)
        return found

    def _values(self, quantity, prediction, reference, kept) -> pd.DataFrame:
        """Values of a quantity in ASE units, one row each.

        Energies are per atom, forces by component, stress by Voigt component (six, not nine).

        Returns:
            columns structure (its row in `structures`), group (name, where there are groups),
            element (atomic number, of forces), reference, prediction, error (their difference).
        """
        prediction, reference = prediction.astype(np.float64), reference.astype(np.float64)
        n_atoms = self.structures["n_atoms"].to_numpy()
        structure = np.flatnonzero(kept)
        columns = {}
        if quantity.per_atom:
            structure = np.repeat(structure, n_atoms)
            if self.numbers is not None:
                columns["element"] = np.repeat(self.numbers, 3)
        elif quantity is ENERGY:
            prediction, reference = prediction / n_atoms, reference / n_atoms
        else:
            prediction, reference = prediction[kept], reference[kept]
        if prediction.ndim == 3:
            prediction, reference = full_to_voigt(prediction), full_to_voigt(reference)
        columns["structure"] = np.repeat(structure, prediction[0].size)
        if self.structures["group"].dtype == "category":
            columns["group"] = self.structures["group"].array[columns["structure"]]
        columns |= {"reference": reference.ravel(), "prediction": prediction.ravel()}
        table = pd.DataFrame(columns)
        table["error"] = table["prediction"] - table["reference"]
        return table


def parity_values(subsets: list[Predictions], quantity: Quantity) -> dict[str, pd.DataFrame]:
    """What parity plots and fitted lines are made of: values by subset, see `Predictions`.

    Energies are relative to what composition alone explains: reference energies of the training
    structures (of all subsets where there are none) are fitted by one value per element, in the
    sense of least squares and minimum norm, for compositions may be linearly dependent. Energies
    of different composition can then share one pair of axes; errors stay.
    """
    usable = [p for p in subsets if quantity.name in p.values]
    tables = {p.subset: p.values[quantity.name].copy() for p in usable}
    if quantity is not ENERGY or not usable or any(p.numbers is None for p in usable):
        return tables
    elements = np.unique(np.concatenate([p.numbers for p in usable]))
    fractions = {}
    for p in usable:
        n_atoms = p.structures["n_atoms"].to_numpy()
        counts = np.zeros((len(n_atoms), len(elements)))
        structure = np.repeat(np.arange(len(n_atoms)), n_atoms)
        np.add.at(counts, (structure, np.searchsorted(elements, p.numbers)), 1.0)
        fractions[p.subset] = counts / n_atoms[:, None]
    fitted = ["train"] if "train" in tables else list(tables)
    matrix = np.concatenate([fractions[name] for name in fitted])
    energies = np.concatenate([tables[name]["reference"] for name in fitted])
    per_element = np.linalg.lstsq(matrix, energies, rcond=None)[0]
    for name, table in tables.items():
        baseline = fractions[name] @ per_element
        table[["reference", "prediction"]] -= baseline[:, None]
    return tables
