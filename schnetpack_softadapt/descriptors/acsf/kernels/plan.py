"""A layout as flat tables of numbers, which the compiled loops walk through.

The loops are the same machine code for every layout; the tables say what they compute:

    species -> shells (one cutoff radius each)
    shell   -> factors  f_c(r) exp(curvature (r - center)^2) [weight of the element]
            -> radials  sums of one factor
            -> groups   triples of two channels
    group   -> bases    exponentials, see `Exponent`
            -> widths   integer powers of a base
            -> terms    functions of a width
            -> steps    how each power of a base or of (1 +- cos)/2 follows from lower ones

A channel is an element that some function has as neighbour; the last channel holds all others,
which only the weighted functions see.
"""

from typing import NamedTuple

import numpy as np

from schnetpack_softadapt.descriptors.acsf.kernels.loops import CUTOFF_CODES
from schnetpack_softadapt.descriptors.acsf.layout import KINDS, Layout, SymmetryFunction

__all__ = ["ALL_CHANNELS", "NO_WEIGHTS", "Plan", "compile_layout"]

#: channel number of the weighted functions, which sum over all neighbours
ALL_CHANNELS = -1
#: row of `Plan.element_weights` of the functions that have none
NO_WEIGHTS = -1

# rows of the array of powers: 1, (1 + cos)/2 and (1 - cos)/2, then what `steps` makes
_ONES = 0
_COSINE = {1.0: 1, -1.0: 2}

_INT, _FLOAT = np.int64, np.float64


def _record(**fields) -> np.dtype:
    return np.dtype(list(fields.items()), align=True)


_TABLES = {
    "shells": _record(
        cutoff=_FLOAT, first_fn=_INT, first_factor=_INT, first_radial=_INT, first_group=_INT
    ),
    "fn_codes": _INT,
    "factors": _record(curvature=_FLOAT, center=_FLOAT, fn=_INT, channel=_INT, weights=_INT),
    "radials": _record(factor=_INT, column=_INT),
    "groups": _record(
        channel_a=_INT,
        channel_b=_INT,
        fn=_INT,
        narrow=_INT,
        weights=_INT,
        by_distance=_INT,  # whether an exponent depends on the sum of the distances
        first_base=_INT,
        first_width=_INT,
        first_step=_INT,
        # steps from first_step: for the exponentials, for values, the others for derivatives
        n_width_steps=_INT,
        n_value_steps=_INT,
    ),
    "bases": _record(constant=_FLOAT, linear=_FLOAT, quadratic=_FLOAT, squares=_FLOAT, row=_INT),
    "widths": _record(linear=_FLOAT, quadratic=_FLOAT, squares=_FLOAT, row=_INT, first_term=_INT),
    "steps": _record(row=_INT, left=_INT, right=_INT, exponent=_FLOAT),
    "terms": _record(slope_factor=_FLOAT, row=_INT, slope_row=_INT, column=_INT),
}


class Plan(NamedTuple):
    """Tables of a layout; where a table has a field `first_x`, its last record only ends the x."""

    # (119,) row of an atomic number in `shell_first`, -1 where the layout has none
    species: np.ndarray
    channel: np.ndarray  # (119,) channel of an atomic number
    # number of channels, largest numbers of cutoff functions and factors of a shell, of widths and
    # of rows of powers of a group
    sizes: np.ndarray
    element_weights: np.ndarray  # (n, 119) tables of weights by atomic number
    shell_first: np.ndarray  # (n_species + 1,) first shell of each species
    # shells, fn_codes, factors, radials, groups, bases, widths, steps, terms: see the module;
    # `terms` of a width are padded to a multiple of four with records of column -1
    shells: np.ndarray
    fn_codes: np.ndarray
    factors: np.ndarray
    radials: np.ndarray
    groups: np.ndarray
    bases: np.ndarray
    widths: np.ndarray
    steps: np.ndarray
    terms: np.ndarray


class Exponent(NamedTuple):
    """Exponent of a radial part: constant + linear s_1 + quadratic s_1^2 + squares s_2.

    s_1 and s_2 are the sums of the distances and of their squares.
    """

    constant: float
    linear: float
    quadratic: float
    squares: float


def exponent(f: SymmetryFunction, eta: float) -> Exponent:
    """Exponent of a function, see `layout.Kind`, with the width `eta` instead of its own."""
    kind = KINDS[f.kind]
    n, both = kind.n_distances, kind.each + kind.n_distances * kind.joint
    return Exponent(
        -eta * n * both * f.r_s**2, 2.0 * eta * both * f.r_s, -eta * kind.joint, -eta * kind.each
    )


class _Powers:
    """Rows that hold powers of some base rows, and the products that make them."""

    def __init__(self, first_row: int):
        self.first_row = first_row
        self.rows: dict[tuple[float, int], int] = {}  # (exponent, base row) -> row
        self.steps: list[tuple[int, int, int, float]] = []

    def row(self, exponent: float, base: int) -> int:
        """The row of base^exponent; adds the steps that are missing."""
        if exponent == 0:
            return _ONES
        if exponent == 1:
            return base
        if (exponent, base) in self.rows:
            return self.rows[exponent, base]
        if exponent != int(exponent):
            step = (base, base, exponent)
        else:
            known = {1.0, *(e for e, b in self.rows if b == base and e == int(e))}
            pairs = [(e, exponent - e) for e in known if exponent - e in known]
            # a product of two known rows, or else of two halves
            left, right = max(pairs) if pairs else (exponent // 2, exponent - exponent // 2)
            step = (self.row(left, base), self.row(right, base), 0.0)
        row = self.first_row + len(self.rows)
        self.rows[exponent, base] = row
        self.steps.append((row, *step))
        return row

    @property
    def end(self) -> int:
        return self.first_row + len(self.rows)


def _common_base(etas: list[float]) -> tuple[float, list[float]] | None:
    """eta_0 and the integers eta / eta_0, where powers of one exponential are worth it."""
    best, best_cost = None, float(len(etas))
    for divisor in (1, 2, 3, 4):
        base = min(etas) / divisor
        if base <= 0 or max(etas) / base > 64:
            continue
        ratios = [eta / base for eta in etas]
        if any(abs(x - round(x)) > 1e-15 * x for x in ratios):
            continue
        powers = _Powers(1)
        for x in sorted(ratios):
            powers.row(float(round(x)), 0)
        # a product of rows costs a sixth of an exponential
        cost = 1.0 + len(powers.steps) / 6.0
        if cost < best_cost:
            best, best_cost = (base, [float(round(x)) for x in ratios]), cost
    return best


class _Builder:
    def __init__(self, channel: np.ndarray):
        self.channel = channel
        self.weights: dict[tuple, np.ndarray] = {}
        self.shells, self.fn_codes, self.factors, self.radials = [], [], [], []
        self.groups, self.bases, self.widths, self.steps, self.terms = [], [], [], [], []
        self.most_rows = 3

    def ends(self) -> tuple:
        return len(self.fn_codes), len(self.factors), len(self.radials), len(self.groups)

    def shell(self, cutoff: float, members: list[tuple[int, SymmetryFunction]]) -> None:
        """Add a shell with the functions (column, function) that share a cutoff radius."""
        self.shells.append((cutoff, *self.ends()))
        codes = sorted({CUTOFF_CODES[f.cutoff_fn] for _, f in members})
        self.fn_codes += codes
        factors: dict[tuple, int] = {}
        angular: dict[tuple, list[tuple[int, SymmetryFunction]]] = {}
        for column, f in members:
            kind, fn = KINDS[f.kind], codes.index(CUTOFF_CODES[f.cutoff_fn])
            channels = [int(self.channel[z]) for z in f.neighbors] or [ALL_CHANNELS] * 2
            weights = self._weights(f) if kind.weighted else NO_WEIGHTS
            if kind.n_distances > 1:
                key = (*channels, fn, int(kind.n_distances == 3), weights)
                angular.setdefault(key, []).append((column, f))
            else:
                curvature = -f.eta * (kind.each + kind.joint)
                key = (curvature, f.r_s, fn, channels[0], weights)
                self.radials.append((factors.setdefault(key, len(factors)), column))
        for key, members_of_group in sorted(angular.items()):
            self._group(key, members_of_group)
        self.factors += list(factors)

    def _weights(self, f: SymmetryFunction) -> int:
        self.weights.setdefault(f.weights, f.weight_of)
        return list(self.weights).index(f.weights)

    def _group(self, key: tuple, members: list[tuple[int, SymmetryFunction]]) -> None:
        # functions whose exponents differ by eta alone may share an exponential
        forms: dict[Exponent, dict[float, list[tuple[int, SymmetryFunction]]]] = {}
        for column, f in members:
            forms.setdefault(exponent(f, 1.0), {}).setdefault(f.eta, []).append((column, f))
        by_distance = int(any(form.linear or form.quadratic for form in forms))
        firsts = (len(self.bases), len(self.widths), len(self.steps))
        widths, row = [], 2
        for _, etas in sorted(forms.items()):
            common = _common_base(sorted(etas))
            for k, (eta, terms) in enumerate(sorted(etas.items())):
                base_eta, power = (common[0], common[1][k]) if common else (eta, 1.0)
                if k == 0 or not common:
                    row += 1
                    self.bases.append((*exponent(terms[0][1], base_eta), row))
                widths.append((exponent(terms[0][1], eta), (power, row), terms))
        powers = _Powers(row + 1)
        for power in sorted(power for _, power, _ in widths):
            powers.row(*power)
        n_width_steps = len(powers.steps)
        for _, f in sorted(members, key=lambda m: m[1].zeta):
            powers.row(f.zeta, _COSINE[f.lam])
        n_value_steps = len(powers.steps) - n_width_steps
        for (_, *slopes), power, terms in widths:
            self.widths.append((*slopes, powers.row(*power), len(self.terms)))
            for column, f in sorted(terms, key=lambda m: (m[1].lam, m[1].zeta)):
                # 2^(1-zeta) (1 + lam c)^zeta = 2 u^zeta, its slope by c is zeta lam u^(zeta-1)
                base = _COSINE[f.lam]
                rows = powers.row(f.zeta, base), powers.row(f.zeta - 1, base)
                self.terms.append((0.5 * f.zeta * f.lam, *rows, column))
            self.terms += [(0.0, _ONES, _ONES, -1)] * (-len(self.terms) % 4)
        self.steps += powers.steps
        self.most_rows = max(self.most_rows, powers.end)
        self.groups.append((*key, by_distance, *firsts, n_width_steps, n_value_steps))


def compile_layout(layout: Layout) -> Plan:
    """The tables of a layout."""
    functions = [f for values in layout.functions.values() for f in values]
    neighbors = sorted({z for f in functions for z in f.neighbors})
    channel = np.full(119, len(neighbors), _INT)
    channel[neighbors] = np.arange(len(neighbors))
    species = np.full(119, -1, _INT)
    species[list(layout.elements)] = np.arange(len(layout.elements))

    builder = _Builder(channel)
    shell_first = [0]
    for members in layout.functions.values():
        for cutoff in sorted({f.cutoff for f in members}):
            builder.shell(cutoff, [(k, f) for k, f in enumerate(members) if f.cutoff == cutoff])
        shell_first.append(len(builder.shells))
    builder.shells.append((0.0, *builder.ends()))
    ends = (len(builder.bases), len(builder.widths), len(builder.steps))
    builder.groups.append((0, 0, 0, 0, 0, 0, *ends, 0, 0))
    builder.widths.append((0.0, 0.0, 0.0, 0, len(builder.terms)))
    tables = {name: np.array(getattr(builder, name), dtype) for name, dtype in _TABLES.items()}

    def most(table: str, name: str) -> int:
        return int(np.diff(tables[table][name]).max(initial=0))

    sizes = [
        len(neighbors) + 1,
        most("shells", "first_fn"),
        most("shells", "first_factor"),
        most("groups", "first_width"),
        builder.most_rows,
    ]
    first = np.array(shell_first, _INT)
    weights = np.array([*builder.weights.values()], _FLOAT).reshape(-1, len(species))
    return Plan(species, channel, np.array(sizes, _INT), weights, first, **tables)
