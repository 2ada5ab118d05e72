"""Predictions and references of one subset, as stored in `predictions/<subset>.npz`."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from schnetpack_softadapt.quantities import ENERGY, FORCES, QUANTITIES, Quantity, full_to_voigt

__all__ = ["Comparison", "Predictions", "composition_baseline", "parity_points"]


@dataclass(frozen=True)
class Comparison:
    """Reference and predicted values of one quantity, flat, in ASE units.

    Energies are per atom, forces by component, stress by Voigt component (six, not nine).
    """

    reference: np.ndarray  # (n,)
    prediction: np.ndarray  # (n,)

    @property
    def n(self) -> int:
        return len(self.reference)

    @property
    def error(self) -> np.ndarray:
        """Prediction minus reference, (n,)."""
        return self.prediction - self.reference

    def rmse(self) -> float:
        """Root of the mean squared error; NaN without values."""
        return float(np.sqrt(np.mean(self.error**2))) if self.n else float("nan")

    def mae(self) -> float:
        """Mean absolute error; NaN without values."""
        return float(np.mean(np.abs(self.error))) if self.n else float("nan")

    def largest(self) -> float:
        """Largest absolute error; NaN without values."""
        return float(np.max(np.abs(self.error))) if self.n else float("nan")

    def line(self) -> tuple[float, float]:
        """Slope and intercept of the least-squares line of prediction over reference.

        NaN where the references do not vary, for then no slope is defined.
        """
        if self.n < 2:
            return float("nan"), float("nan")
        x = self.reference - self.reference.mean()
        spread = float(x @ x)
        # Rounding leaves a spread of this order in references that are all equal.
        if spread <= self.n * (1e-12 * (1.0 + np.abs(self.reference).max())) ** 2:
            return float("nan"), float("nan")
        slope = float(x @ (self.prediction - self.prediction.mean())) / spread
        return slope, float(self.prediction.mean() - slope * self.reference.mean())


@dataclass
class Predictions:
    """One subset of a run: S structures, N atoms, in ASE units (eV, eV/Ang, eV/Ang^3).

    Missing quantities are None. `stress_mask` is True where the structure has a reference stress.
    """

    subset: str
    n_atoms: np.ndarray  # (S,)
    numbers: np.ndarray | None = None  # (N,) atomic numbers
    energy: np.ndarray | None = None  # (S,) total energy
    energy_ref: np.ndarray | None = None  # (S,)
    forces: np.ndarray | None = None  # (N, 3)
    forces_ref: np.ndarray | None = None  # (N, 3)
    stress: np.ndarray | None = None  # (S, 6) Voigt xx yy zz yz xz xy
    stress_ref: np.ndarray | None = None  # (S, 6)
    stress_mask: np.ndarray | None = None  # (S,) bool
    index: np.ndarray | None = None  # (S,) in the database
    group: np.ndarray | None = None  # (S,) index into group_names
    group_names: list[str] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        """Read one npz file; the subset is the file's name.

        Raises:
            ValueError: the file is damaged or its arrays do not fit together; names the file.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                arrays = {key: archive[key] for key in archive.files}
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
        """Check and complete the arrays of a predictions file (keys as the attributes).

        Raises:
            ValueError: an array is missing or has the wrong shape; names `source` and the key.
        """
        if "n_atoms" not in arrays:
            raise ValueError(f"{source} has no array n_atoms; it is not a predictions file")
        n_atoms = np.asarray(arrays["n_atoms"]).reshape(-1).astype(np.int64)
        n_structures, total = len(n_atoms), int(n_atoms.sum())
        out = cls(subset=subset, n_atoms=n_atoms)

        def take(key: str, shape: tuple[int, ...]) -> np.ndarray | None:
            if key not in arrays:
                return None
            value = np.asarray(arrays[key])
            if value.size != np.prod(shape, dtype=int):
                raise ValueError(
                    f"{source}: {key} has shape {value.shape}, expected {shape} for "
                    f"{n_structures} structures with {total} atoms"
                )
            return value.reshape(shape)

        out.numbers = take("numbers", (total,))
        for quantity, shape in ((ENERGY, (n_structures,)), (FORCES, (total, 3))):
            for key in (quantity.name, f"{quantity.name}_ref"):
                value = take(key, shape)
                setattr(out, key, None if value is None else value.astype(np.float64))
        for key in ("stress", "stress_ref"):
            if key in arrays:
                setattr(out, key, _voigt(np.asarray(arrays[key]), n_structures, source, key))
        mask = take("stress_mask", (n_structures,))
        if mask is not None:
            out.stress_mask = mask.astype(bool)
        elif out.stress_ref is not None:
            out.stress_mask = np.ones(n_structures, dtype=bool)
        out.index = take("index", (n_structures,))
        group = take("group", (n_structures,))
        if group is not None:
            out._set_groups(group, arrays.get("group_names"), source)
        return out

    def _set_groups(self, group: np.ndarray, names: np.ndarray | None, source: str) -> None:
        if group.dtype.kind in "US":
            known, index = np.unique(group, return_inverse=True)
            self.group, self.group_names = index, [str(name) for name in known]
            return
        index = group.astype(np.int64)
        given = [] if names is None else [str(name) for name in np.asarray(names).reshape(-1)]
        if len(index) and index.min() < 0:
            raise ValueError(f"{source}: group has negative indices")
        largest = int(index.max()) if len(index) else -1
        if given and largest >= len(given):
            raise ValueError(f"{source}: group index {largest} but {len(given)} group_names")
        self.group = index
        self.group_names = given or [f"group {i}" for i in range(largest + 1)]

    @property
    def n_structures(self) -> int:
        return len(self.n_atoms)

    @property
    def structure_of_atom(self) -> np.ndarray:
        """Index of the structure of each atom, (N,)."""
        return np.repeat(np.arange(self.n_structures), self.n_atoms)

    def elements(self) -> list[int]:
        """Atomic numbers present, ascending."""
        return [] if self.numbers is None else [int(z) for z in np.unique(self.numbers)]

    def has(self, quantity: Quantity) -> bool:
        """Whether prediction and reference of this quantity are there, for one structure at least.

        A stress of which all structures are masked counts as absent.
        """
        pair = getattr(self, quantity.name), getattr(self, f"{quantity.name}_ref")
        if any(values is None or not len(values) for values in pair):
            return False
        return quantity.name != "stress" or bool(self.stress_mask.any())

    def compare(
        self, quantity: Quantity, element: int | None = None, group: int | None = None
    ) -> Comparison:
        """Reference and prediction of `quantity`, optionally of one element or structure group.

        Args:
            quantity: must be there (see `has`)
            element: atomic number; for forces only, the forces on atoms of this element
            group: index into `group_names`; structures of this group only
        """
        prediction = getattr(self, quantity.name)
        reference = getattr(self, f"{quantity.name}_ref")
        of_structure = np.ones(self.n_structures, dtype=bool)
        if group is not None:
            of_structure = self.group == group
        if quantity is FORCES:
            of_atom = np.repeat(of_structure, self.n_atoms)
            if element is not None:
                of_atom = of_atom & (self.numbers == element)
            return Comparison(reference[of_atom].ravel(), prediction[of_atom].ravel())
        if element is not None:
            raise ValueError(f"{quantity.name} is not defined for one element; forces only")
        if quantity is ENERGY:
            n = self.n_atoms[of_structure]
            return Comparison(reference[of_structure] / n, prediction[of_structure] / n)
        labelled = of_structure & self.stress_mask
        return Comparison(reference[labelled].ravel(), prediction[labelled].ravel())

    def available(self) -> list[Quantity]:
        """Quantities that can be compared."""
        return [quantity for quantity in QUANTITIES if self.has(quantity)]


def _voigt(stress: np.ndarray, n_structures: int, source: str, key: str) -> np.ndarray:
    """Six components (S, 6) of stresses given as (S, 3, 3), (S, 9) or (S, 6)."""
    if stress.size == n_structures * 9:
        return full_to_voigt(stress.reshape(n_structures, 3, 3).astype(np.float64))
    if stress.size == n_structures * 6:
        return stress.reshape(n_structures, 6).astype(np.float64)
    raise ValueError(
        f"{source}: {key} has shape {stress.shape}, expected ({n_structures}, 3, 3) or "
        f"({n_structures}, 6)"
    )


def composition_baseline(subsets: list[Predictions]) -> dict[str, np.ndarray]:
    """Energy per atom (eV) that composition alone explains, per subset (S,).

    Reference energies of the training structures (of all subsets where there are none) are fitted
    by one value per element, in the sense of least squares and minimum norm, for compositions may
    be linearly dependent. Energies of different composition can then share one pair of axes.
    """
    usable = [p for p in subsets if p.has(ENERGY)]
    elements = sorted({z for p in usable for z in p.elements()})
    if not usable or any(p.numbers is None for p in usable):
        return {p.subset: np.zeros(p.n_structures) for p in subsets}
    fractions = {}
    for p in usable:
        counts = np.zeros((p.n_structures, len(elements)))
        np.add.at(counts, (p.structure_of_atom, np.searchsorted(elements, p.numbers)), 1.0)
        fractions[p.subset] = counts / p.n_atoms[:, None]
    fitted = [p for p in usable if p.subset == "train"] or usable
    matrix = np.concatenate([fractions[p.subset] for p in fitted])
    energies = np.concatenate([p.compare(ENERGY).reference for p in fitted])
    values = np.linalg.lstsq(matrix, energies, rcond=None)[0]
    return {name: fraction @ values for name, fraction in fractions.items()}


def parity_points(subsets: list[Predictions], quantity: Quantity) -> dict[str, Comparison]:
    """What parity plots and fitted lines are made of: values in ASE units by subset.

    Energies are per atom and relative to `composition_baseline`; errors are those of `compare`.
    """
    usable = [p for p in subsets if p.has(quantity)]
    points = {p.subset: p.compare(quantity) for p in usable}
    if quantity is ENERGY:
        baseline = composition_baseline(usable)
        points = {
            name: Comparison(c.reference - baseline[name], c.prediction - baseline[name])
            for name, c in points.items()
        }
    return points
