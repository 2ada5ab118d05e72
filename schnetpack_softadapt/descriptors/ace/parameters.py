"""The parameters of an atomic cluster expansion."""

import math
from collections.abc import Mapping, Sequence
from functools import cached_property

import numpy as np
from ase.data import chemical_symbols

from schnetpack_softadapt.descriptors.ace.coupling import MOST_DENSITIES, independent
from schnetpack_softadapt.descriptors.ace.functions import Density, Function, choose
from schnetpack_softadapt.descriptors.acsf.channels import element_channels
from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.descriptors.protocol import Descriptor

__all__ = ["CUTOFF_FUNCTIONS", "RADIAL", "ClusterExpansion"]

RADIAL = ("chebyshev", "bessel", "chebyshev_power")
CUTOFF_FUNCTIONS = ("cosine", "power", "none")

#: orders that are coupled: bodies less one
MOST_FACTORS = 4


class ClusterExpansion(Descriptor):
    """Invariant products of up to four densities of an atom's neighbours (five bodies).

    With real spherical harmonics Y_lm (4 pi normalised, so that Y_00 = 1) the densities are

        A_{i c n l m} = sum_j w_c(z_j) R_n(r_ij) Y_lm(r_ij / r_ij),

    for channels c of the neighbours' elements, radial functions n = 1, 2, ..., and the functions
    are the products of one to four of them that rotations and reflections leave alone and that do
    not depend on each other linearly (`coupling`):

        B_i = sum_{m1 m2 ...} C_{m1 m2 ...} A_{c1 n1 l1 m1} A_{c2 n2 l2 m2} ...

    R. Drautz, Phys. Rev. B 99, 014104 (2019); Y. Lysogorskiy et al., npj Comput. Mater. 7, 97
    (2021); A. Bochkarev et al., Phys. Rev. Materials 6, 013804 (2022). The radial functions do not
    depend on l, except by a `radial_table`. With the cutoff functions f_c and f_in they are

    - "chebyshev", in the distance scaled exponentially (Drautz 2019),

          R_1 = f_c f_in,  R_n = (1 - T_{n-1}(x)) / 2 f_c f_in,
          x = 1 - 2 (exp(-decay (r / r_c - 1)) - 1) / (exp(decay) - 1);

    - "bessel", the orthonormal combinations of spherical Bessel functions of order zero that have
      two vanishing derivatives at r_c (E. Kocer, J. K. Mason, H. Erturk, AIP Advances 10, 015021,
      2020; "simplified" in Bochkarev et al. 2022), n counted from 0 and s_k = sin(k pi r / r_c)
      r_c / (k pi r):

          f_n = (-1)^n sqrt(2) pi r_c^(-3/2) (n+1) (n+2) / sqrt((n+1)^2 + (n+2)^2)
                (s_{n+1} + s_{n+2}),
          R_n = (f_n + sqrt(e_n / d_{n-1}) R_{n-1}) / sqrt(d_n),
          e_n = n^2 (n+2)^2 / (4 (n+1)^4 + 1),  d_0 = 1,  d_n = 1 - e_n / d_{n-1},

      times f_c f_in;
    - "chebyshev_power", which end at r_c by themselves (decay > 1),

          R_n = (1 - T_n(x)) / 2 f_in,  x = 1 - 2 (1 - r / r_c)^decay.

    The functions are sorted by their degree, sum_t (n_t + l_weight l_t) rounded up, lower orders
    first, so that the first N of them are a sensible set of any size.

    Args:
        elements: symbols or atomic numbers that have descriptors.
        cutoff: r_c, Ang.
        radial: one of `RADIAL`.
        decay: of "chebyshev": larger ones resolve short distances better.
        cutoff_fn: f_c: "cosine" (1 + cos(pi r / r_c)) / 2, "power" (1 - (r / r_c)^2)^2, or "none";
            not given, "none" for Bessel functions, which need none, "cosine" for others.
        inner, inner_width: Ang: f_in rises from 0 at `inner - inner_width` to 1 at `inner`, as
            t^3 (10 - 15 t + 6 t^2); 0: no such cutoff.
        max_order: most densities in a product, bodies less one, up to 4.
        n_functions: how many are taken.
        degree: the largest one.
        n_max, l_max: largest n and l in products of one, two, ... densities, one number for each
            order. What is not given is not limited; of `n_functions`, `degree`, and `n_max` with
            `l_max` one at least.
        l_weight: see above; small ones take more of the angles: linear fits of 100 functions to Mo
            have force errors of 245 with 0.3, 274 with 0.5, and 352 meV/Ang with 1.
        channels: None: one of each element, w_c(z) = 1 for its neighbours. A number: so many
            weighted sums over all (`acsf.channels.element_channels`), which keeps the number of
            functions the same for many elements. Or the weights of each by element.
        outer_width: Ang: f_c is multiplied by (1 + cos(pi (r - r_c + outer_width) / outer_width))
            / 2 in this last part; 0: it is not.
        radial_table: c of each l, list (n, k), by elements of atom and neighbour (ascending), so
            that R_nl = sum_k c_nk R_k takes the place of R_n: radial functions that depend on l and
            on the bond, such as those of potentials that were fitted elsewhere.
        products: the functions one by one, instead of what chooses them: for each, [l, n, channel]
            of its densities, ascending, and the L of its coupling (`functions.Function`).

    Raises:
        UnknownElementError: an element that there is not.
        ValueError: a parameter out of range, weights that depend on each other, no function or too
            many.
    """

    kind = "ace"
    name = "cluster functions"

    def __init__(
        self,
        elements: Sequence[int | str],
        cutoff: float = 5.0,
        radial: str = "bessel",
        decay: float = 5.25,
        cutoff_fn: str | None = None,
        inner: float = 0.0,
        inner_width: float = 0.0,
        max_order: int = MOST_FACTORS,
        n_functions: int | None = None,
        degree: float | None = None,
        n_max: Sequence[int] | None = None,
        l_max: Sequence[int] | None = None,
        l_weight: float = 0.3,
        channels: int | Sequence[Mapping[int | str, float]] | None = None,
        outer_width: float = 0.0,
        radial_table: Sequence | None = None,
        products: Sequence | None = None,
    ):
        self.elements = tuple(sorted(map(atomic_number, elements)))
        if not self.elements or len(set(self.elements)) != len(self.elements):
            raise ValueError(f"elements must be given, and each once: {list(elements)}")
        self.cutoff, self.decay = float(cutoff), float(decay)
        self.inner, self.inner_width = float(inner), float(inner_width)
        if cutoff_fn is None:
            cutoff_fn = "cosine" if radial == "chebyshev" else "none"
        self.radial, self.cutoff_fn = radial, cutoff_fn
        for name, value, known in (
            ("radial", radial, RADIAL),
            ("cutoff_fn", cutoff_fn, CUTOFF_FUNCTIONS),
        ):
            if value not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")
        if radial == "chebyshev" and cutoff_fn == "none":
            raise ValueError(
                "cutoff_fn=none is for others than radial=chebyshev, which would jump at the cutoff"
            )
        for name, value in (("cutoff", self.cutoff), ("decay", self.decay)):
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"{name} must be positive, got {value}")
        if not (0 <= self.inner < self.cutoff and 0 <= self.inner_width <= self.inner) or (
            self.inner > 0 and self.inner_width == 0
        ):
            raise ValueError(
                "inner must be below the cutoff, and inner_width above 0 up to inner (or both 0);"
                f" got {self.inner}, {self.inner_width}"
            )
        self.outer_width = float(outer_width)
        if not 0 <= self.outer_width <= self.cutoff:
            raise ValueError(f"outer_width must be from 0 to the cutoff, got {outer_width}")
        if radial == "chebyshev_power" and not self.decay > 1:
            raise ValueError(f"radial=chebyshev_power needs a decay above 1, got {decay}")
        if max_order not in range(1, MOST_FACTORS + 1):
            raise ValueError(f"max_order must be from 1 to {MOST_FACTORS}, got {max_order}")
        self.max_order, self.l_weight = int(max_order), float(l_weight)
        if not (math.isfinite(self.l_weight) and self.l_weight > 0):
            raise ValueError(f"l_weight must be positive, got {l_weight}")
        self.number = _whole("n_functions", n_functions, 1)
        self.degree = None if degree is None else float(degree)
        if self.degree is not None and not (math.isfinite(self.degree) and self.degree >= 1):
            raise ValueError(f"degree must be 1 or more, got {degree}")
        self.n_max = self._limits("n_max", n_max, 1)
        self.l_max = self._limits("l_max", l_max, 0)
        self.radial_table = self._table(radial_table)
        given = self.number is not None or self.degree is not None or products is not None
        if not given and None in (self.n_max, self.l_max):
            raise ValueError("give n_functions, or degree, or n_max and l_max")
        self._given_channels = channels
        self.weights = self._weights(channels)
        self.products = None if products is None else tuple(map(self._product, products))
        # settings that are wrong shall be found before the data are read
        _ = self.functions
        if self.radial_table is not None:
            for x in {x for f in self.functions for x in f.parts}:
                if x.l >= len(self.radial_table) or x.n > self.radial_table[x.l].shape[2]:
                    raise ValueError(f"radial_table has no radial function {x.n} of l = {x.l}")

    def _table(self, table: Sequence | None) -> list[np.ndarray] | None:
        """(E, E, n, K) of each l."""
        if table is None:
            return None
        n = len(self.elements)
        try:
            arrays = [np.array(x, float) for x in zip(*(b for a in table for b in a), strict=True)]
            arrays = [x.reshape(n, n, *x.shape[1:]) for x in arrays]
            k = {x.shape[3] for x in arrays}
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(
                "radial_table must have coefficients [l][n][k] for each pair of elements, the same"
                f" numbers of them for all ({error})"
            ) from error
        if len(k) != 1 or not all(np.isfinite(x).all() for x in arrays):
            raise ValueError("radial_table must have finite coefficients, as many k for every l")
        return arrays

    def _product(self, given: Sequence) -> Function:
        parts, level = given
        parts = tuple(Density(*map(int, x)) for x in parts)
        level = int(level) if isinstance(level, int) else tuple(map(int, level))
        same = tuple(parts.index(x) for x in parts)
        if (
            len(parts) not in range(1, MOST_DENSITIES + 1)
            or list(parts) != sorted(parts)
            or any(x.l < 0 or x.n < 1 or x.channel not in range(len(self.weights)) for x in parts)
            or level not in independent(tuple(x.l for x in parts), same)
        ):
            raise ValueError(
                "products must be independent invariants of up to"
                f" {MOST_DENSITIES} densities [l, n, channel] in ascending order, not {given}"
            )
        return Function(parts, level)

    def _limits(self, name: str, values: Sequence[int] | None, least: int) -> list[int] | None:
        if values is None:
            return None
        if not isinstance(values, Sequence) or len(values) != self.max_order:
            raise ValueError(
                f"{name} must have one number for each order up to max_order={self.max_order},"
                f" got {values!r}"
            )
        return [_whole(name, x, least) for x in values]

    def _weights(self, channels) -> np.ndarray:
        n = len(self.elements)
        if channels is None:
            return np.eye(n)
        if isinstance(channels, int) and not isinstance(channels, bool):
            if channels > n:
                raise ValueError(f"{n} elements have no more than {n} channels, got {channels}")
            channels = [dict(table) for table in element_channels(self.elements, channels)]
        if isinstance(channels, str | bool) or not all(isinstance(c, Mapping) for c in channels):
            raise ValueError(
                f"channels must be a number, or weights by element for each, got {channels!r}"
            )
        rows = []
        for table in channels:
            table = {atomic_number(key): float(value) for key, value in table.items()}
            if set(table) != set(self.elements) or not all(map(math.isfinite, table.values())):
                raise ValueError(
                    "every channel must have a finite weight for each of"
                    f" {', '.join(chemical_symbols[z] for z in self.elements)}"
                )
            rows.append([table[z] for z in self.elements])
        weights = np.array(rows).reshape(-1, n)
        if not len(weights) or np.linalg.matrix_rank(weights) < len(weights):
            raise ValueError("the weights of the channels depend on each other linearly")
        return weights

    @cached_property
    def functions(self) -> tuple[Function, ...]:
        """The columns, of every element the same."""
        if self.products is not None:
            return self.products
        return choose(
            len(self.weights),
            self.max_order,
            self.number,
            self.degree,
            self.n_max,
            self.l_max,
            self.l_weight,
        )

    @cached_property
    def n_functions(self) -> dict[int, int]:
        """The same number for all elements."""
        return dict.fromkeys(self.elements, len(self.functions))

    @property
    def n_radial(self) -> int:
        """R_n that are used."""
        if self.radial_table is not None:
            return self.radial_table[0].shape[3]
        return max(x.n for f in self.functions for x in f.parts)

    @property
    def top_level(self) -> int:
        """Largest l that is used."""
        return max(x.l for f in self.functions for x in f.parts)

    def to_dict(self) -> dict:
        """Plain numbers and strings, elements by symbol."""
        data = {"kind": self.kind, "elements": [chemical_symbols[z] for z in self.elements]}
        data |= {name: getattr(self, name) for name in _PLAIN}
        data["n_functions"], data["channels"] = self.number, self._given_channels
        if not isinstance(self._given_channels, int | None):
            data["channels"] = [
                {chemical_symbols[z]: w for z, w in zip(self.elements, row, strict=True)}
                for row in self.weights.tolist()
            ]
        if self.outer_width:
            data["outer_width"] = self.outer_width
        if self.radial_table is not None:
            n = range(len(self.elements))
            data["radial_table"] = [
                [[x[a, b].tolist() for x in self.radial_table] for b in n] for a in n
            ]
        if self.products is not None:
            data["products"] = [
                [[list(x) for x in f.parts], f.level if isinstance(f.level, int) else [*f.level]]
                for f in self.products
            ]
        return data

    def columns(self, z_i: int, z_j: int) -> list[int]:
        """Without weights, a product without the density of an element does not depend on it."""
        weights = self.weights[:, self.elements.index(z_j)]
        return [k for k, f in enumerate(self.functions) if any(weights[x.channel] for x in f.parts)]

    def describe(self, z: int, column: int) -> str:
        """The densities of a product as A(n, l), their channels where there are several, and L."""
        parts, level = self.functions[column]
        names = []
        for x in parts:
            text = f"A({x.n}, {x.l})"
            if len(self.weights) > 1:
                explicit = self._given_channels is None
                text += f"_{chemical_symbols[self.elements[x.channel]] if explicit else x.channel}"
            names.append(text)
        return " ".join(names) + (f", L = {level}" if len(parts) >= MOST_FACTORS else "")


_PLAIN = (
    "cutoff",
    "radial",
    "decay",
    "cutoff_fn",
    "inner",
    "inner_width",
    "max_order",
    "degree",
    "n_max",
    "l_max",
    "l_weight",
)


def _whole(name: str, value: int | None, least: int) -> int | None:
    if value is None:
        return None
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ValueError(f"{name} must be a whole number from {least} on, got {value!r}")
    return int(value)
