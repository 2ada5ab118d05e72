"""What limits the compiled symmetry functions: machine code, roofline, choice of the wide ones.

    python tests/benchmarks/kernels.py [--part code roofline wide] [--json FILE] [--repeat 25]

    code       double-precision instructions in the innermost loops of the kernels, by register
               width. The remainders of vector loops are loops of their own, narrower ones, so a
               function in vector form has all widths; one that is only scalar stands out.
    roofline   some loops alone, then the stages of values and of vector-Jacobian products of Mo54
               with 24 functions and of water: differences of runs that end one stage later each.
               Beside the time stand the operations (counted in the source, see `machine_code`), the
               peak of fused multiply-add of this core and the rate of out = a * b in the
               first-level cache. A stage cannot take less than the larger of flops / peak and
               bytes / rate: `bound`, as a share of its time.
    wide       wide angular functions (G5) by triples and by moments, values + vector-Jacobian
               product, around the number of neighbours where the kernels change from one to the
               other; `regret` is what their choice loses against the better of the two.

One thread; best CPU time of `--repeat` turns, in which all that is compared takes turns.
"""

import argparse
import warnings
from collections import Counter

import numpy as np
import torch
from environment import describe_machine, write_result
from evaluation import systems
from kernel_stages import best_times, machine_limits, measure_loops, measure_stages
from machine_code import count_instructions
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels import (
    geometry as kernel_geometry,
)
from schnetpack_softadapt.descriptors.acsf.kernels import (
    moments,
)
from schnetpack_softadapt.descriptors.acsf.kernels import (
    values as kernel_values,
)
from schnetpack_softadapt.descriptors.acsf.kernels import (
    vjp as kernel_vjp,
)
from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelBackend
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

_CODE_COLUMNS = (
    "zmm",
    "ymm",
    "xmm",
    "scalar",
    "div",
    "div, scalar",
    "sqrt",
    "sqrt, scalar",
    "gather",
    "scatter",
)
# exponents, widths and number of elements of the wide functions
_WIDE = tuple(
    (zetas, etas, n)
    for n in (1, 2)
    for zetas in ((1,), (1, 2, 4), (1, 2, 4, 16))
    for etas in ((0.05,), (0.01, 0.03, 0.1))
)


def measure_code() -> list[dict]:
    """Rows of instruction counts, printed on the way."""
    layout = Layout({42: [SymmetryFunction("G4", (42, 42), 5.0, 0.1)]})
    backend = KernelBackend(layout)
    nothing = torch.zeros(0, dtype=torch.int64)
    inputs = (torch.zeros((0, 3), dtype=torch.float64), nothing, nothing, torch.tensor([42]))
    backend.vjp(*inputs, backend.values(*inputs))  # the signatures
    rows = []
    for name, kernel in {"values": kernel_values.values, "VJP": kernel_vjp.vjp}.items():
        print(
            f"\n{name + ', innermost loops of':28s}" + "".join(f"{x:>13s}" for x in _CODE_COLUMNS)
        )
        found = count_instructions(kernel)
        found["all"] = sum(found.values(), start=Counter())
        for function, counts in found.items():
            print(f"  {function:26s}" + "".join(f"{counts[x]:13d}" for x in _CODE_COLUMNS))
            rows.append({"part": "code", "kernel": name, "function": function, **counts})
    return rows


@njit
def _chosen(plan, n):
    """Whether n neighbours, half of each element if there are two, are done by moments."""
    neighbors = kernel_geometry.new_neighbors(plan.sizes, n)
    neighbors.bounds[0] = kernel_geometry.FIRST
    neighbors.bounds[1:] = kernel_geometry.FIRST + n
    if len(neighbors.bounds) > 3:  # two elements and the channel of all others
        neighbors.bounds[1] = kernel_geometry.FIRST + n // 2
    return moments.by_moments(plan, 0, neighbors)


def _neighbours(n: int, n_atoms: int, elements: tuple[int, ...]) -> tuple[np.ndarray, ...]:
    """r_ij, idx_i, idx_j, numbers of atoms with n neighbours each, anywhere from 2 to 5.9 Ang."""
    rng = np.random.default_rng(0)
    r_ij = rng.normal(size=(n_atoms * n, 3))
    r_ij *= rng.uniform(2.0, 5.9, (len(r_ij), 1)) / np.linalg.norm(r_ij, axis=1, keepdims=True)
    idx_i = np.repeat(np.arange(n_atoms), n)
    # neighbours are of the elements in turn, as the atoms are
    idx_j = np.tile(np.arange(n) % len(elements), n_atoms)
    return r_ij, idx_i, idx_j, np.resize(elements, n_atoms)


def measure_wide(repeat: int) -> list[dict]:
    """Rows of moments against triples, printed on the way."""
    rows = []
    for zetas, etas, n_elements in _WIDE:
        elements = (42, 52)[:n_elements]
        functions = [
            SymmetryFunction("G5", (42, elements[-1]), 6.0, eta, zeta=zeta, lam=lam)
            for eta in etas
            for zeta in zetas
            for lam in (-1, 1)
        ]
        layout = Layout(dict.fromkeys(elements, functions))
        backends = [KernelBackend(layout) for _ in range(2)]
        backends[0]._plan.crossover[0], backends[1]._plan.crossover[0] = np.inf, 0.0
        plan = KernelBackend(layout)._plan
        change = next(n for n in range(1, 200) if _chosen(plan, n))
        print(
            f"\nG5 of {n_elements} element(s), zeta {', '.join(map(str, zetas))}, {len(etas)} "
            f"width(s), {len(functions)} functions; moments from {change} neighbours on\n"
            "  neighbours   triples us/atom   moments us/atom   moments/triples   regret"
        )
        sizes = {4, 8, 12, 16, 20, 24, 30, 40, 50, 60, 80, 100, 120, change - 2, change}
        for n in sorted(sizes):
            n_atoms = max(12, 20_000 // n**2)
            grad = np.ones((n_atoms, layout.n_columns))
            pairs = backends[0].prepare(*_neighbours(n, n_atoms, elements))

            def both(backend, pairs=pairs, grad=grad):
                backend.values_of(pairs)
                backend.vjp_of(pairs, grad)

            seconds = best_times([lambda b=b: both(b) for b in backends], repeat)
            triples, by_moments = 1e6 * seconds / n_atoms
            regret = (by_moments if n >= change else triples) / min(triples, by_moments) - 1.0
            print(
                f"  {n:10d}{triples:18.2f}{by_moments:18.2f}{by_moments / triples:18.2f}"
                f"{regret:9.0%}"
            )
            rows.append(
                {
                    "part": "wide",
                    "n_elements": n_elements,
                    "zetas": zetas,
                    "n_widths": len(etas),
                    "n_neighbors": n,
                    "triples_us_per_atom": triples,
                    "moments_us_per_atom": by_moments,
                    "chosen": "moments" if n >= change else "triples",
                    "regret": regret,
                }
            )
    worst = max(rows, key=lambda row: row["regret"])
    print(f"\nlargest regret {worst['regret']:.0%}, at {worst['n_neighbors']} neighbours")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("code", "roofline", "wide")
    parser.add_argument("--part", nargs="+", choices=parts, default=parts)
    parser.add_argument("--repeat", type=int, default=25)
    parser.add_argument("--json", metavar="FILE", help="write the numbers to a file")
    args = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    print(f"{describe_machine()}; one thread")
    rows = []
    if "code" in args.part:
        rows += measure_code()
    if "roofline" in args.part:
        limits = machine_limits(args.repeat)
        flops, rate, beside = (1e-9 * x for x in limits)
        print(
            f"\npeak of multiply-add {flops:.0f} Gflop/s; out = a * b in the first-level cache "
            f"{rate:.0f} GB/s, {beside:.0f} beside cache lines"
        )
        row = {"part": "limits", "gflops": flops, "gbytes_per_s": rate}
        rows.append({**row, "gbytes_per_s_unaligned": beside})
        rows += measure_loops(limits, args.repeat)
        chosen = [system for system in systems() if "39" not in system.name]
        for system in chosen:
            repeat = args.repeat if len(system.atoms) < 200 else max(2, args.repeat // 5)
            rows += measure_stages(system, limits, repeat)
    if "wide" in args.part:
        rows += measure_wide(args.repeat)
    if args.json:
        write_result(args.json, rows)


if __name__ == "__main__":
    main()
