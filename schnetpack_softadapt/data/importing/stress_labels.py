"""Stress labels in a wrong order, sign or unit: found, named, and put right.

A stress is known from elsewhere twice: from the energies and forces of strained cells, since the
work of stress and forces between two of them is their difference in energy; and from a trained
model, which learns most of it from energies and forces. Both are linear in the labels, so one
search serves both: over the orders in which programs print six numbers, the sign, and the ratios
of the usual units.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import permutations, product

import numpy as np

from schnetpack_softadapt.data.formats.units import STRESS_UNITS, stress_matrix, stress_order
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.quantities import VOIGT, full_to_voigt

__all__ = [
    "Finding",
    "StressRepair",
    "findings_from_predictions",
    "findings_from_strained_cells",
    "repair",
]

MIN_STRUCTURES = 6  # fewer fit one order or another by chance
MIN_STRAIN, MAX_STRAIN = 3e-3, 0.25  # energies have too few digits below, are nonlinear above
POOR, GOOD = 0.3, 0.25  # what labels miss, as a part of what they should be
NEARLY_ONE = 0.25  # deviation of a fitted factor that means no other unit or sign
RATIO_TOLERANCE = 0.1  # of a fitted factor to the ratio of two units, in its logarithm

#: for each of our components the place where its label may stand: any order within the normal and
#: within the shear components, and the rows of a matrix (xx xy xz yy yz zz)
PLACES = [n + s for n in permutations(range(3)) for s in permutations(range(3, 6))]
PLACES += [(0, 3, 5, 4, 2, 1)]


@dataclass(frozen=True)
class StressRepair:
    """What makes stresses right: the order in which they stand, and a factor.

    Attributes:
        group: name of the group, or a pattern such as `Elastic*`.
        order: component that each of the six numbers (ours: xx yy zz yz xz xy) really is.
        factor: what the numbers are multiplied by.
    """

    group: str
    order: tuple[str, ...] = VOIGT
    factor: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "StressRepair":
        """Read `GROUP=ORDER`, `GROUP=FACTOR` or `GROUP=FACTOR ORDER`.

        Raises:
            ValueError: neither an order nor a number that can be a factor.
        """
        group, separator, change = text.rpartition("=")
        number, _, order = change.strip().partition(" ")
        try:
            factor = float(number)
        except ValueError:
            factor, order = 1.0, change
        if not separator or not group or not np.isfinite(factor) or factor == 0:
            raise ValueError(
                f"--repair-stress {text!r}: not GROUP=ORDER, GROUP=FACTOR or 'GROUP=FACTOR ORDER',"
                " such as 'Elastic=xx yy zz xz yz xy' or Elastic=-0.1"
            )
        return cls(group, stress_order(order) if order.strip() else VOIGT, factor)

    def __str__(self) -> str:
        parts = [] if self.factor == 1 else [f"{self.factor:.10g}"]
        parts += [] if self.order == VOIGT else [" ".join(self.order)]
        return f"{self.group}={' '.join(parts)}"


@dataclass(frozen=True)
class Finding:
    """Labels of a group that fit much better if read another way.

    Attributes:
        repair: how to read them.
        n_structures: labels of the group that were looked at.
        miss, miss_repaired: what the labels miss where the two readings differ, as a part of what
            they should be, each at most 1, in the mean.
    """

    repair: StressRepair
    n_structures: int
    miss: float
    miss_repaired: float

    def __str__(self) -> str:
        return (
            f"stress of group {self.repair.group}: {_in_words(self.repair)} (misses"
            f" {self.miss:.0%} as it stands, {self.miss_repaired:.0%} so, in"
            f" {self.n_structures} structures); to read it so, import with --repair-stress"
            f" '{self.repair}'"
        )


def repair(structures: Sequence[Structure], repairs: Sequence[StressRepair]) -> list[str]:
    """Read the stresses of some groups another way, in place; returns what was done.

    Raises:
        ValueError: no stress in any group of that name.
    """
    remarks = []
    for change in repairs:
        chosen = [
            s
            for s in structures
            if s.stress is not None
            and (s.group == change.group or fnmatchcase(s.group, change.group))
        ]
        if not chosen:
            known = ", ".join(dict.fromkeys(s.group for s in structures if s.stress is not None))
            raise ValueError(
                f"--repair-stress '{change}': no stress in a group {change.group!r}; there are"
                f" {known or 'none'}"
            )
        for s in chosen:
            s.stress = stress_matrix(s.stress_voigt, change.order, change.factor)
        remarks.append(f"stress of {len(chosen)} structure(s) repaired: {change}")
    return remarks


def findings_from_predictions(
    predicted: np.ndarray, labels: np.ndarray, groups: Sequence[str]
) -> list[Finding]:
    """Groups whose labels fit a trained model's stresses much better if read another way.

    Args:
        predicted, labels: (n, 6) eV/Ang^3, Voigt order, finite.
        groups: (n,) names.
    """
    findings = []
    groups = np.asarray(groups, dtype=object)
    for group in dict.fromkeys(groups):
        mine = groups == group
        n = int(mine.sum())
        # one row for each component of each structure
        target, rows = predicted[mine].ravel(), np.repeat(labels[mine], 6, axis=0)
        findings.append(_search(group, n, target, rows, np.tile(np.eye(6), (n, 1))))
    return [finding for finding in findings if finding]


def findings_from_strained_cells(structures: Sequence[Structure]) -> list[Finding]:
    """Groups of strained cells whose stresses fit their energies much better if read another way.

    Between two cells with the same atoms the energy changes by the work of stress and forces,

        dE = V sigma : strain - sum_i F_i . u_i,

    with means of both cells, and u the displacements beyond the strain; exact up to the third
    order. Each cell is compared with that of the lowest energy in its group.
    """
    families: dict[str, dict[bytes, list[Structure]]] = {}
    for s in structures:
        if s.stress is not None and s.energy is not None:
            families.setdefault(s.group, {}).setdefault(s.numbers.tobytes(), []).append(s)
    findings = []
    for group, members in families.items():
        rows = [row for family in members.values() for row in _rows(family)]
        if rows:
            findings.append(_search(group, len(rows), *map(np.array, zip(*rows, strict=True))))
    return [finding for finding in findings if finding]


def _rows(family: Sequence[Structure]) -> Iterator[tuple[float, np.ndarray, np.ndarray]]:
    """Of each strained cell the work of its stress, stress (6,) and strain (6,).

    Work and stress are divided by volume and square of the strain, so that small strains and soft
    components count as much as others: both are elastic moduli then.
    """
    reference = min(family, key=lambda s: s.energy)
    identity = np.eye(3)
    for s in family:
        deformation = np.linalg.solve(reference.cell, s.cell)
        if np.linalg.norm(deformation - identity) > 2 * MAX_STRAIN:
            continue  # another crystal, or other lattice vectors of the same
        # exact up to the third order (midpoint rule)
        strain = full_to_voigt(2 * (deformation - identity) @ np.linalg.inv(deformation + identity))
        strain *= (1, 1, 1, 2, 2, 2)  # shear stands twice in the double sum over components
        size = float(np.sqrt(strain**2 @ (1, 1, 1, 0.5, 0.5, 0.5)))
        if not MIN_STRAIN < size < MAX_STRAIN:
            continue
        work = s.energy - reference.energy
        if s.forces is not None and reference.forces is not None:
            fractional = s.positions @ np.linalg.inv(s.cell)
            fractional -= reference.positions @ np.linalg.inv(reference.cell)
            fractional -= np.round(fractional)
            displacements = fractional @ (0.5 * (s.cell + reference.cell))
            work_of_forces = -0.5 * ((s.forces + reference.forces) * displacements).sum()
            work -= work_of_forces
            if abs(work_of_forces) > abs(work):
                continue  # thermal motion: what is left tells little about the stress
        weight = 1 / (reference.volume * size**2)
        stress = 0.5 * (s.volume * s.stress_voigt + reference.volume * reference.stress_voigt)
        yield weight * work, weight * stress, strain


def _search(
    group: str, n_structures: int, target: np.ndarray, labels: np.ndarray, weights: np.ndarray
) -> Finding | None:
    """The reading of the labels for which `target = sum_c weights_c labels_c`, if much better.

    Args:
        group, n_structures: whose labels they are.
        target: (R,) what the labels should give.
        labels: (R, 6) as they stand, Voigt order.
        weights: (R, 6) of each component.
    """
    usual = float(np.median(np.abs(target)))
    if n_structures < MIN_STRUCTURES or not usual:
        return None
    scale = np.maximum(np.abs(target), usual)

    def misses(places: Sequence[int], factor: float) -> np.ndarray:
        missed = target - factor * (labels[:, places] * weights).sum(axis=1)
        return np.minimum(np.abs(missed) / scale, 1)  # so that a few odd cells decide nothing

    readings = []
    for places in PLACES:
        factor = _factor((labels[:, places] * weights).sum(axis=1), target)
        if factor is not None:
            n_changes = sum(k != place for k, place in enumerate(places)) + (factor != 1)
            readings.append((misses(places, factor).mean(), n_changes, places, factor))
    if not readings:
        return None
    best = min(readings)[0]
    # the simplest of those that fit nearly as well: what no cell tells apart stays as it is
    _, _, places, factor = min(
        (r for r in readings if r[0] < 1.2 * best), key=lambda r: (r[1], r[0])
    )
    used = np.ones(len(target), dtype=bool)
    if factor == 1:
        moved = np.arange(6) != np.array(places)
        used = (weights[:, moved] ** 2).sum(axis=1) > 0.1 * (weights**2).sum(axis=1)
        if used.sum() < MIN_STRUCTURES:
            return None
    now, then = misses(range(6), 1.0)[used].mean(), misses(places, factor)[used].mean()
    if now < POOR or then > min(GOOD, now / 2):
        return None
    order = tuple(VOIGT[places.index(k)] for k in range(6))
    return Finding(StressRepair(group, order, factor), n_structures, float(now), float(then))


def _factor(values: np.ndarray, target: np.ndarray) -> float | None:
    """A sign and the ratio of two units by which values become the target; None if there is none.

    Fitted to the larger half of the values, in the median.
    """
    large = np.abs(values) >= np.median(np.abs(values))
    with np.errstate(divide="ignore", invalid="ignore"):
        fitted = float(np.median(np.where(values == 0, 0, target / values)[large]))
    size = abs(fitted)
    if abs(size - 1) < NEARLY_ONE:
        return math.copysign(1.0, fitted)
    ratios = [a / b for a in STRESS_UNITS.values() for b in STRESS_UNITS.values()]
    ratio = min(ratios, key=lambda ratio: abs(math.log(size / ratio))) if size else 0.0
    close = size and abs(math.log(size / ratio)) < RATIO_TOLERANCE
    return math.copysign(ratio, fitted) if close else None


def _in_words(change: StressRepair) -> str:
    moved = [mine for mine, other in zip(VOIGT, change.order, strict=True) if mine != other]
    texts = []
    if len(moved) == 2:
        texts.append(f"{moved[0]} and {moved[1]} seem exchanged")
    elif moved:
        texts.append(f"the components seem to stand in the order {' '.join(change.order)}")
    if change.factor < 0:
        texts.append("the sign of the stress seems to be the other one")
    size = abs(change.factor)
    pairs = [
        (true, taken)
        for true, taken in product(STRESS_UNITS, STRESS_UNITS)
        if size != 1 and math.isclose(STRESS_UNITS[true] / STRESS_UNITS[taken], size)
    ]
    for true, taken in pairs[:1]:
        times, what = (size, "small") if size > 1 else (1 / size, "large")
        texts.append(
            f"it seems {times:.4g} times too {what} (as {true} taken for {taken} would be)"
        )
    return ", and ".join(texts)
