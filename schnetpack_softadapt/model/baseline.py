"""Delta-learning: the network learns what a simpler potential leaves of the labels.

A baseline is a postprocessor of the model, like SchNetPack's AddOffsets. Before training it takes
energy, forces and stress of every structure from the labels that the loss sees; the database and
the references of reports stay as they are. The saved model adds it back, so that calculator,
`spkpredict` and reports see the whole:

    E = E_network + E_baseline
"""

import hashlib
import importlib
import io
import json
import logging
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols, covalent_radii
from schnetpack import properties
from schnetpack.transform import Transform
from schnetpack.units import convert_units
from tqdm import tqdm

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.statistics import composition_fit, training_targets
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.files import locked, write_file
from schnetpack_softadapt.model.fade import Fade
from schnetpack_softadapt.model.response import inverse_volume
from schnetpack_softadapt.neighbors.cells import volumes

__all__ = [
    "ZBL",
    "Baseline",
    "CalculatorBaseline",
    "PairBaseline",
    "RemoveBaseline",
    "Values",
    "baseline_of",
]

log = logging.getLogger(__name__)

#: change it with the formulas, so that stored values are computed anew
_VERSION = 1
#: pairs farther apart say nothing about how close atoms come, Ang
_FAR = 4.0
#: part of the smallest distance where the switch from network to repulsion ends
_INNER = 0.8


class Values(NamedTuple):
    """A baseline's values for a structure of N atoms."""

    energies: np.ndarray  # (N,) eV; their sum is the energy
    forces: np.ndarray  # (N, 3) eV/Ang
    virial: np.ndarray  # (3, 3) dE/dstrain, eV, symmetric


class Baseline(Transform):
    """Base of baselines; derived classes give `evaluate` and `to_dict`.

    Args:
        energy_key, force_key, stress_key: names of the model's outputs and of their labels.

    Attributes:
        energy_unit, length_unit: the model's units in eV and Ang, those of its training data.
        fade: how the networks end where atoms come closer than in the data, or None.
        is_pairwise: whether `PairEvaluator` can add it, by a method `add_pairs`.
    """

    reads_neighbors = False
    is_preprocessor = False
    is_postprocessor = True
    is_pairwise = False

    def __init__(
        self,
        energy_key: str = properties.energy,
        force_key: str = properties.forces,
        stress_key: str = properties.stress,
    ):
        super().__init__()
        self.energy_key, self.force_key, self.stress_key = energy_key, force_key, stress_key
        self.energy_unit = self.length_unit = 1.0
        self.fade: Fade | None = None

    def to_dict(self) -> dict:
        """Kind and parameters in plain values, of which `stored` values are a function."""
        raise NotImplementedError

    def evaluate(self, numbers, positions, cell, pbc) -> Values:
        """Values of a structure: (N,), (N, 3) Ang, (3, 3) Ang, (3,)."""
        raise NotImplementedError

    def follow(self, datamodule, structures: Sequence[Structure]) -> None:
        """Take what is left open from the data; positions of the structures are in Ang."""

    # ---------------------------------------------------------------- training

    def datamodule(self, value) -> None:
        """Subtract the baseline from the labels of a data module (called before training).

        Raises:
            ValueError: data without energies, units that cannot be read, a value that is not
                finite.
        """
        dataset = value.dataset
        if not hasattr(dataset, "structures"):
            raise ValueError(
                "a baseline needs data._target_="
                "schnetpack_softadapt.data.datamodule.SoftAdaptDataModule"
            )
        subsets = (value.train_dataset, value.val_dataset, value.test_dataset)
        if any(isinstance(t, RemoveBaseline) for s in subsets for t in s.transforms):
            if all(t.baseline is self for t in value.train_dataset.transforms[:1]):
                return
            raise ValueError("a model has one baseline, or none")
        units = dict(dataset.units)
        if self.energy_key not in units:
            raise ValueError(f"the baseline is an energy, but the data have no {self.energy_key}")
        self.energy_unit = float(convert_units(units[self.energy_key], "eV"))
        self.length_unit = float(convert_units(dataset.distance_unit, "Ang"))
        structures = [self._in_ang(s) for s in dataset.structures()]
        self.follow(value, structures)
        removal = RemoveBaseline(self, _stored(self, structures, value.datapath))
        for subset in subsets:
            subset.transforms = [removal, *subset.transforms]
        value._training_targets = None  # gathered from the whole labels
        log.info("baseline subtracted from the labels: %s", json.dumps(self.to_dict()))
        if self.fade is not None:
            targets = training_targets(value).named(energy=self.energy_key)
            _, shifts = composition_fit(targets)
            excess = (targets.energy - targets.compositions @ shifts) / targets.n_atoms
            self.fade.ceiling = max(self.fade.ceiling, float(excess.max()))

    def _in_ang(self, s: Structure) -> Structure:
        factor = self.length_unit
        return Structure(s.numbers, s.positions * factor, s.cell * factor, s.pbc, info=s.info)

    # ---------------------------------------------------------------- run time

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Add energies (n_structures,), forces (n_atoms, 3) and stress (n_structures, 3, 3).

        From the positions alone, so that batches with stored descriptors will do. They have no
        graph: second derivatives of the whole are those of the network alone.
        """
        n_atoms = inputs[properties.n_atoms].tolist()
        stops = np.cumsum(n_atoms)[:-1]
        arrays = {k: inputs[k].detach().cpu().numpy() for k in (properties.Z, properties.R)}
        numbers, positions = (np.split(a, stops) for a in arrays.values())
        cells = inputs[properties.cell].detach().cpu().double().numpy().reshape(-1, 3, 3)
        pbcs = inputs[properties.pbc].cpu().numpy().reshape(-1, 3)
        length = self.length_unit
        found = [
            self.evaluate(z, np.float64(r) * length, cell * length, pbc)
            for z, r, cell, pbc in zip(numbers, positions, cells, pbcs, strict=True)
        ]
        device = inputs[properties.R].device

        def tensor(values) -> torch.Tensor:
            return torch.from_numpy(np.asarray(values)).to(device) / self.energy_unit

        energies = tensor([v.energies.sum() for v in found])
        inputs[self.energy_key] = inputs[self.energy_key].double() + energies
        if keys.atomic_energies in inputs:
            atomic = inputs[keys.atomic_energies]
            inputs[keys.atomic_energies] = atomic + tensor(
                np.concatenate([v.energies for v in found])
            ).reshape(atomic.shape)
        if self.force_key in inputs:
            forces = inputs[self.force_key]
            added = tensor(np.concatenate([v.forces for v in found])) * length
            inputs[self.force_key] = forces + added.to(forces.dtype)
        if self.stress_key in inputs:
            stress = inputs[self.stress_key]
            inverse = inverse_volume(inputs).to(device)[:, None, None]
            added = tensor(np.stack([v.virial for v in found])) * inverse
            inputs[self.stress_key] = stress + added.to(stress.dtype)
        return inputs


class RemoveBaseline(Transform):
    """Takes a baseline from the labels of the structures of a database."""

    is_preprocessor = True
    is_postprocessor = False

    def __init__(self, baseline: Baseline, values: Mapping[str, np.ndarray]):
        super().__init__()
        self._owner = [baseline]  # in a list: it is no part of this module
        self.values = values

    @property
    def baseline(self) -> Baseline:
        """Whose values they are."""
        return self._owner[0]

    def datamodule(self, value) -> None:
        """Nothing to fit."""

    def forward(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Subtract in the units of the data."""
        b, index = self.baseline, int(inputs[properties.idx])
        first, last = self.values["first"][index : index + 2]
        volume = volumes(inputs[properties.cell].double().numpy().reshape(3, 3))
        values = {b.energy_key: self.values["energy"][index], b.force_key: 0.0, b.stress_key: 0.0}
        values[b.force_key] = self.values["forces"][first:last] * b.length_unit
        if volume > 0:
            values[b.stress_key] = self.values["virial"][index] / volume
        for key, value in values.items():
            if key in inputs:
                label = inputs[key]
                value = torch.as_tensor(value / b.energy_unit, dtype=label.dtype)
                inputs[key] = label - value.reshape(label.shape)
        return inputs


class PairBaseline(Baseline):
    """A sum over pairs of atoms; derived classes give `cutoff`, in the model's unit, and `_add`."""

    is_pairwise = True
    cutoff: float

    def _add(self, r_ij, idx_i, idx_j, numbers, energies, gradient) -> None:
        """Add atomic energies (eV) and dE/dr_ij (eV/Ang) of pairs that go both ways, in Ang."""
        raise NotImplementedError

    def evaluate(self, numbers, positions, cell, pbc):
        from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs
        from schnetpack_softadapt.neighbors.pair_sums import add_pair_forces

        cutoff = self.cutoff * self.length_unit
        idx_i, idx_j, r_ij, _ = neighbor_pairs(positions, cell, pbc, cutoff)
        energies, forces = np.zeros(len(numbers)), np.zeros((len(numbers), 3))
        virial, gradient = np.zeros((1, 3, 3)), np.zeros((len(idx_i), 3))
        self._add(r_ij, idx_i, idx_j, numbers, energies, gradient)
        idx_m = np.zeros(len(numbers), np.int64)
        add_pair_forces(idx_i, idx_j, r_ij, gradient, idx_m, forces, virial)
        return Values(energies, forces, virial[0])

    def add_pairs(self, r_ij, idx_i, idx_j, numbers, energies, gradient) -> None:
        """Add atomic energies and dE/dr_ij, all in the model's units; see `PairEvaluator`."""
        if self.length_unit == self.energy_unit == 1.0:
            self._add(r_ij, idx_i, idx_j, numbers, energies, gradient)
            return
        e, g = np.zeros_like(energies), np.zeros_like(gradient)
        self._add(r_ij * self.length_unit, idx_i, idx_j, numbers, e, g)
        energies += e / self.energy_unit
        gradient += g * (self.length_unit / self.energy_unit)


class ZBL(PairBaseline):
    """Screened Coulomb repulsion of nuclei (Ziegler, Biersack, Littmark), as LAMMPS has it.

    Formula and switch: `close_pairs.zbl_parameters`. Without cutoffs, each pair of elements has its
    own, from the smallest distance d of it in the data: outer d, inner 0.8 d. The baseline then
    changes no label and is there for collisions.

    Below that d the network fades out whether cutoffs are given or not, see `Fade`: it knows
    nothing of such distances. SchNetPack's own models (PaiNN, SchNet) do not fade: ZBL is added to
    whatever they give there. A ZBL that has been trained with keeps its cutoffs with other data;
    networks that fade then do so below the smaller of both distances.

    Args:
        inner, outer: the switch begins and ends, Ang; both or none.
        cutoffs: [inner, outer] of single pairs of elements, such as {"W-Be": [4.0, 4.8]}.
        fade: False lets the networks go on below the distances of the data.

    Raises:
        ValueError: cutoffs that are not 0 < inner < outer.
    """

    def __init__(
        self,
        inner: float | None = None,
        outer: float | None = None,
        cutoffs: Mapping[str, Sequence[float]] | None = None,
        fade: bool = True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if (inner is None) != (outer is None):
            raise ValueError("ZBL: give inner and outer, or none of them")
        self.given = None if inner is None else (float(inner), float(outer))
        self.given_pairs = {}
        for name, pair in (cutoffs or {}).items():
            numbers = [atomic_numbers.get(symbol) for symbol in name.split("-")]
            if len(numbers) != 2 or None in numbers or len(pair) != 2:
                raise ValueError(
                    f"ZBL: cutoffs are [inner, outer] of pairs such as W-Be, not {name}: {pair}"
                )
            self.given_pairs[tuple(sorted(numbers))] = tuple(map(float, pair))
        for pair in [self.given, *self.given_pairs.values()]:
            if pair is not None and not 0 < pair[0] < pair[1] < math.inf:
                raise ValueError(f"ZBL: 0 < inner < outer, not inner {pair[0]}, outer {pair[1]}")
        self.fades = bool(fade)
        self.elements: tuple[int, ...] = ()
        self._table: np.ndarray | None = None
        self._pairs: dict[tuple[int, int], tuple[float, float]] = {}

    @classmethod
    def of_elements(cls, elements: Iterable[int], **kwargs) -> "ZBL":
        """With cutoffs given by hand for all pairs, so that there is nothing to take from data."""
        zbl = cls(**{"fade": False, **kwargs})
        zbl._build(tuple(sorted({int(z) for z in elements})), {})
        return zbl

    def _build(self, elements: tuple[int, ...], distances: Mapping) -> None:
        from schnetpack_softadapt.model.close_pairs import zbl_table

        self.elements, self._pairs = elements, {}
        for i, a in enumerate(elements):
            for b in elements[i:]:
                cutoffs = self.given_pairs.get((a, b), self.given)
                self._pairs[a, b] = cutoffs or (_INNER * distances[a, b], distances[a, b])
        self._table = zbl_table(elements, self._pairs)

    @property
    def cutoff(self) -> float:
        """The largest outer cutoff, in the model's unit of length."""
        return max(outer for _, outer in self._pairs.values()) / self.length_unit

    @property
    def pairs(self) -> dict[tuple[str, str], tuple[float, float]]:
        """Inner and outer cutoff of each pair of elements, Ang."""
        return {
            (chemical_symbols[a], chemical_symbols[b]): cutoffs
            for (a, b), cutoffs in self._pairs.items()
        }

    def to_dict(self) -> dict:
        pairs = [{"elements": list(k), "inner": i, "outer": o} for k, (i, o) in self.pairs.items()]
        return {"kind": "zbl", "pairs": pairs}

    def follow(self, datamodule, structures):
        """Elements and smallest distances of the data; of all, so that the store holds no close
        pair."""
        found = {int(z) for s in structures for z in np.unique(s.numbers)}
        is_new = self._table is None
        elements = tuple(sorted(found)) if is_new else self.elements
        n, known = len(elements), None
        if self.fade is not None:
            known = self.fade.start * self.length_unit
        distances = _smallest_distances(structures, elements, known)
        if is_new:
            self._build(elements, distances)
        if self.fades:
            start = np.array([distances[a, b] for a in elements for b in elements]).reshape(n, n)
            start /= self.length_unit
            ceiling = 0.0 if self.fade is None else self.fade.ceiling
            self.fade = Fade(elements, start, _INNER * start, ceiling)
        for (a, b), (inner, outer) in self.pairs.items():
            log.info("ZBL %s-%s: inner %.4g Ang, outer %.4g Ang", a, b, inner, outer)

    def _add(self, r_ij, idx_i, idx_j, numbers, energies, gradient) -> None:
        from schnetpack_softadapt.model.close_pairs import add_zbl

        if self._table is None:
            raise ValueError("the cutoffs of ZBL follow from the data: train the model first")
        unknown = set(np.unique(numbers).tolist()) - set(self.elements)
        if unknown:
            names = ", ".join(chemical_symbols[z] for z in sorted(unknown))
            raise ValueError(f"ZBL has no parameters for {names}: train with data that have them")
        rows = np.searchsorted(self.elements, numbers)
        add_zbl(r_ij, idx_i, idx_j, rows, self._table, energies, gradient)

    def lammps(self, symbols: Sequence[str]) -> tuple[list[str], list[str]]:
        """Words of `pair_style hybrid/overlay` and lines of `pair_coeff` that add this baseline.

        Args:
            symbols: LAMMPS' atom types in this order.

        Returns:
            one "zbl inner outer" for each pair of cutoffs, and the lines.
        """
        styles = list(dict.fromkeys(self._pairs.values()))
        lines = []
        for i, a in enumerate(symbols, start=1):
            for j, b in enumerate(symbols[i - 1 :], start=i):
                numbers = atomic_numbers[a], atomic_numbers[b]
                which = styles.index(self._pairs[tuple(sorted(numbers))]) + 1
                which = f"zbl {which}" if len(styles) > 1 else "zbl"
                lines.append(f"pair_coeff {i} {j} {which} {numbers[0]} {numbers[1]}")
        return [f"zbl {inner!r} {outer!r}" for inner, outer in styles], lines


class CalculatorBaseline(Baseline):
    """Any ASE calculator that gives energy and forces, and stress for periodic structures.

    Args:
        calculator: import path of a class or a function that makes one, such as
            "ase.calculators.emt.EMT", "dftd3.ase.DFTD3",
            "schnetpack_softadapt.SoftAdaptCalculator" (another model).

    Raises:
        ValueError: it cannot be imported or made.
    """

    def __init__(self, calculator: str, arguments: Mapping[str, Any] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.path = str(calculator)
        # Hydra's containers are no plain values
        self.arguments = json.loads(json.dumps(dict(arguments or {}), default=_plain))
        self._calculator = None
        self._make()

    def _make(self):
        if self._calculator is None:
            module, _, name = self.path.replace(":", ".").rpartition(".")
            try:
                factory = getattr(importlib.import_module(module), name)
                self._calculator = factory(**self.arguments)
            except Exception as error:  # whatever a foreign class raises
                raise ValueError(
                    f"the baseline's calculator {self.path}({self.arguments}) cannot be made:"
                    f" {error!r}"
                ) from error
        return self._calculator

    def __getstate__(self):
        # made anew where the model is loaded
        return {**self.__dict__, "_calculator": None}

    def to_dict(self) -> dict:
        return {"kind": "calculator", "calculator": self.path, "arguments": self.arguments}

    def evaluate(self, numbers, positions, cell, pbc):
        atoms = Atoms(numbers, positions, cell=cell, pbc=pbc)
        atoms.calc = self._make()
        energy, forces = atoms.get_potential_energy(), atoms.get_forces()
        virial, volume = np.zeros((3, 3)), float(volumes(atoms.cell.array))
        if any(pbc) and volume > 0:
            virial = atoms.get_stress(voigt=False) * volume
        return Values(np.full(len(numbers), energy / len(numbers)), np.array(forces), virial)


def _plain(value):
    return dict(value) if isinstance(value, Mapping) else list(value)


def baseline_of(model: torch.nn.Module) -> Baseline | None:
    """The baseline of any SchNetPack model."""
    found = [m for m in getattr(model, "postprocessors", ()) if isinstance(m, Baseline)]
    return found[0] if found else None


def _smallest_distances(
    structures: Sequence[Structure], elements: Sequence[int], known: np.ndarray | None = None
) -> dict[tuple[int, int], float]:
    """Smallest distance of each pair of elements, Ang, in both orders.

    For pairs that are never within 4 Ang, 0.8 times the sum of the covalent radii.

    Args:
        known: (n_elements, n_elements) those of other structures, which count as well.
    """
    from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

    n = len(elements)
    smallest = np.full(n * n, np.inf) if known is None else known.flatten()
    for s in structures:
        idx_i, idx_j, r_ij, _ = neighbor_pairs(s.positions, s.cell, s.pbc, _FAR)
        rows = np.searchsorted(elements, s.numbers)
        np.minimum.at(smallest, rows[idx_i] * n + rows[idx_j], np.linalg.norm(r_ij, axis=1))
    found = {}
    for k, (a, b) in enumerate((a, b) for a in elements for b in elements):
        if not math.isfinite(smallest[k]):
            smallest[k] = min(0.8 * (covalent_radii[a] + covalent_radii[b]), _FAR)
        if smallest[k] < 1e-3:
            raise ValueError(
                f"two atoms of the data ({chemical_symbols[a]} and {chemical_symbols[b]}) are in"
                " one place: remove the structure"
            )
        found[a, b] = float(smallest[k])
    return found


def _stored(
    baseline: Baseline, structures: Sequence[Structure], datapath: str
) -> dict[str, np.ndarray]:
    """Values for all structures of a database, from the file beside it or computed and written.

    Returns:
        energy (S,), forces (N, 3) and virial (S, 3, 3) in eV and Ang, and first (S + 1,) atom of
        each structure.

    Raises:
        ValueError: a value is not finite, or the calculator fails; names the structure.
    """
    fingerprint = hashlib.sha256(f"{_VERSION} {json.dumps(baseline.to_dict())}".encode())
    for s in structures:
        for array in (s.numbers, s.positions, s.cell, s.pbc):
            fingerprint.update(np.ascontiguousarray(array).tobytes())
    digest = fingerprint.hexdigest()
    path = user_path(f"{datapath}.baseline") / f"{digest[:32]}.npz"
    try:
        with locked(path, lambda: log.info("waiting for %s", path)):
            if not path.is_file():
                write_file(path, _file(_compute(baseline, structures, datapath)))
            with np.load(path) as file:
                return dict(file)
    except OSError as error:
        log.warning("the baseline cannot be stored in %s (%s)", path.parent, error)
        return _compute(baseline, structures, datapath)


def _file(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _compute(baseline, structures, datapath) -> dict[str, np.ndarray]:
    found = list(_values(baseline, structures, datapath))
    return {
        "energy": np.array([v.energies.sum() for v in found]),
        "forces": np.concatenate([v.forces for v in found]),
        "virial": np.stack([v.virial for v in found]),
        "first": np.concatenate([[0], np.cumsum([s.n_atoms for s in structures])]),
    }


def _values(baseline, structures, datapath) -> Iterator[Values]:
    bar = tqdm(structures, "baseline", unit=" structures", delay=3, leave=False, disable=None)
    for index, s in enumerate(bar):
        try:
            values = baseline.evaluate(s.numbers, s.positions, s.cell, s.pbc)
        except Exception as error:  # whatever a foreign calculator raises
            raise ValueError(
                f"{datapath}, structure {index}: the baseline fails ({error})"
            ) from error
        if not all(np.isfinite(array).all() for array in values):
            raise ValueError(f"{datapath}, structure {index}: the baseline is not finite")
        yield values
