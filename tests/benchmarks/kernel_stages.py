"""Time, operations and memory traffic of the stages of the compiled symmetry functions."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from evaluation import System
from machine_code import Work, work_per_element
from numba import njit

from schnetpack_softadapt.descriptors.acsf.kernels import loops, neighbors, products, triples
from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelEngine
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import (
    FIRST,
    channel_range,
    load_shell,
    new_neighbors,
)
from schnetpack_softadapt.descriptors.acsf.kernels.plan import Plan
from schnetpack_softadapt.descriptors.acsf.kernels.triples import (
    fill_powers,
    fill_weights,
    new_triples,
    select_triples,
)
from schnetpack_softadapt.descriptors.acsf.layout import Layout

__all__ = ["best_times", "machine_limits", "measure_loops", "measure_stages"]

_gather, _new_sums, _scatter = triples._gather, products._new_sums, products._scatter
_sum_functions = products.sum_functions

#: stages that both kernels begin with, and those that follow
_COMMON = (
    "neighbours",
    "pairs of neighbours",
    "selection by r_jk",
    "gather of factors",
    "radial parts",
    "powers",
)
STAGES = {
    "values": (*_COMMON, "sums, radial functions"),
    "VJP": (*_COMMON, "sums over functions", "scatter", "finish, radial functions"),
}


def best_times(functions: list[Callable], repeat: int) -> np.ndarray:
    """Best seconds of CPU time of each function; they take turns."""
    best = np.full(len(functions), np.inf)
    for turn in range(repeat + 1):  # the first compiles and warms up
        for k, function in enumerate(functions):
            start = time.process_time_ns()
            function()
            if turn:
                best[k] = min(best[k], 1e-9 * (time.process_time_ns() - start))
    return best


# --- the machine


@njit(fastmath={"contract"})
def _polynomials(x, out, repeat):
    """Four chains of eight fused multiply-adds for each of few numbers."""
    for _ in range(repeat):
        for t in range(len(x)):
            y = x[t]
            a = b = c = d = y
            for _ in range(8):
                a, b, c, d = a * y + 0.5, b * y + 0.25, c * y + 0.125, d * y + 0.75
            out[t] = (a + b) + (c + d)


@njit
def _products(a, b, out, repeat):
    for _ in range(repeat):
        for t in range(len(a)):
            out[t] = a[t] * b[t]


def _aligned(n: int) -> np.ndarray:
    """n numbers from the beginning of a cache line on."""
    room = np.full(n + 8, 0.5)
    begin = -(room.ctypes.data // 8) % 8
    return room[begin : begin + n]


def machine_limits(repeat: int) -> tuple[float, float, float]:
    """Of one core, in the first-level cache: flops per second of fused multiply-add; bytes per
    second of out = a * b, arrays aligned to cache lines; the same, 32 bytes beside them.
    """
    n, calls = 512, 2000
    aligned = [_aligned(n + 4) for _ in range(3)]
    seconds = best_times(
        [
            lambda: _polynomials(aligned[0][:n], aligned[1][:n], calls),
            lambda: _products(*(x[:n] for x in aligned), calls),
            lambda: _products(*(x[4:] for x in aligned), calls),
        ],
        repeat,
    )
    return n * calls * 67 / seconds[0], *(n * calls * 24 / seconds[1:])


# --- single loops

_cosine, _tanh3 = loops._cosine, loops._tanh3
_exponentials, _multiply = triples._exponentials, triples._multiply


@njit
def _run_loop(which, s, a, b, n, repeat):
    for _ in range(repeat):
        if which == 0:
            _cosine(s, 0.01, a, b, n)
        elif which == 1:
            _tanh3(s, 0.01, a, b, n)
        elif which == 2:
            _exponentials(0.0, 0.0, 0.0, -0.03, b, s, a, n)
        else:
            _multiply(s, b, a, n)


def measure_loops(limits: tuple[float, ...], repeat: int) -> list[dict]:
    """Rows of loops over 512 elements, again and again over the same ones; printed on the way."""
    n, calls = 512, 400
    s, a, b = (_aligned(n) for _ in range(3))
    s[:] = np.linspace(4.0, 90.0, n)
    names = ("_cosine", "_tanh3", "_exponentials", "_multiply")
    seconds = best_times([partial(_run_loop, k, s, a, b, n, calls) for k in range(4)], repeat)
    work = _loop_work()
    rows = []
    print(f"\n  {'loops over 512 elements':26s}ns/element  flops  of peak  bytes   GB/s")
    for name, time_ in zip(names, seconds / (n * calls), strict=True):
        flops, bytes_ = work[name]
        row = {"part": "loops", "loop": name, "ns": 1e9 * time_, "flops": flops, "bytes": bytes_}
        rows.append(row)
        print(
            f"    {name:24s}{row['ns']:10.3f}{flops:7.0f}{flops / time_ / limits[0]:9.0%}"
            f"{bytes_:7.0f}{1e-9 * bytes_ / time_:7.0f}"
        )
    return rows


# --- the stages


@njit(nogil=True)
def _run_stages(plan, pairs, last, derivative, grad, counts):
    """The kernels up to stage `last`; counts (n_groups + 1, 3): neighbours, pairs, triples."""
    around = new_neighbors(plan.sizes, pairs.most)
    chunk = new_triples(plan.sizes, pairs.most)
    sums = _new_sums(len(chunk.s))
    sums.cross[:] = sums.common[:] = sums.turn[:] = sums.total[:] = 0.5
    cross, common, turn, inverse = sums.cross, sums.common, sums.turn, around.inverse
    out, vectors = np.zeros((2, 4 * len(around.x)))
    total = 0.0
    for i in range(len(pairs.numbers)):
        species = plan.species[pairs.numbers[i]]
        for shell in range(plan.shell_first[species], plan.shell_first[species + 1]):
            counts[-1, 0] += load_shell(plan, shell, pairs, i, around) - FIRST
            begin, after = plan.shells[shell].first_group, plan.shells[shell + 1].first_group
            for g in range(begin, after if last > 0 else begin):
                group = plan.groups[g]
                slope = around.slope[group.fn]
                lo, hi = channel_range(around, group.channel_a)
                low, high = channel_range(around, group.channel_b)
                m = hi - lo
                same = group.channel_a == group.channel_b
                counts[g, 1] += m * (m - 1) // 2 if same else m * (high - low)
                j = FIRST
                while j >= 0:
                    n, j = select_triples(around, group, plan.shells[shell].cutoff, j, chunk)
                    counts[g, 2] += n
                    if n == 0:
                        continue
                    if last == 2:
                        cut = around.cut[group.fn]
                        _gather(chunk.index, cut, around.r2, chunk.product, chunk.sum2, n)
                    if last > 2:
                        fill_weights(plan, shell, g, around, chunk, n)
                    if last > 3:
                        fill_powers(plan, g, chunk, n, derivative)
                    if last > 4:
                        _sum_functions(plan, g, chunk, grad[i], sums, n)
                    if last > 5:
                        of_triples = chunk.index, cross, sums.total, common, turn
                        _scatter(*of_triples, slope, inverse, vectors, out, n)
        total += out[4 * FIRST]
    return total


def _loop_work() -> dict[str, Work]:
    exponential = work_per_element(loops.exponential)
    found = {}
    for module in (loops, neighbors, triples, products):
        for name, loop in vars(module).items():
            if hasattr(loop, "py_func") and name not in products.__all__:
                found[name] = work_per_element(loop, {"exponential": exponential})
    found["_compress"] = found["_compress"]._replace(flops=1.0)  # it counts with integers
    return found


def stage_work(plan: Plan, counts: np.ndarray) -> dict[str, Work]:
    """Work of the stages of a plan of unshifted, unweighted groups with triples; `_run_stages`."""
    w = _loop_work()
    cutoffs = ["_cosine", "_tanh3", "_exp"]
    cutoffs = [w[cutoffs[c] if c < 3 else "_poly"] for c in plan.fn_codes]
    nothing = Work(0.0, 0.0)
    work = dict.fromkeys((*STAGES["values"], *STAGES["VJP"]), nothing)
    powers = {"values": nothing, "VJP": nothing}
    n_factors = len(plan.factors) / (len(plan.shells) - 1)
    neighbor = w["_normalize"] + cutoffs[0] + w["_gaussians"] * n_factors
    work["neighbours"] = neighbor * counts[-1, 0]
    for g, (group, after) in enumerate(zip(plan.groups, plan.groups[1:], strict=False)):
        _, n_pairs, n = counts[g]
        radial = Work(0.0, 0.0)
        if group["narrow"]:
            work["selection by r_jk"] += w["_compress"] * n_pairs
            radial += cutoffs[int(group["fn"])] + w["_narrow"]
        radial += w["_exponentials"] * (after["first_base"] - group["first_base"])
        n_widths = after["first_width"] - group["first_width"]
        radial += w["multiply_rows"] * group["n_width_steps"] + w["_multiply"] * n_widths
        steps = after["first_step"] - group["first_step"] - group["n_width_steps"]
        widths = plan.widths[group["first_width"] : after["first_width"] + 1]
        blocks = (widths["first_term"][-1] - widths["first_term"][0]) / 4
        sums = w["_combine4"] * (2 * n_widths) + w["_add4"] * (2 * (blocks - n_widths))
        sums += w["_first_width"] + w["_next_width"] * (n_widths - 1)
        finish = w["_finish_narrow"] if group["narrow"] else w["_finish_wide"]
        work["pairs of neighbours"] += w["_row"] * n_pairs
        work["gather of factors"] += w["_gather"] * n
        work["radial parts"] += radial * n
        powers["values"] += (w["_bases"] + w["multiply_rows"] * group["n_value_steps"]) * n
        powers["VJP"] += (w["_bases"] + w["multiply_rows"] * steps) * n
        work["sums, radial functions"] += w["dot4"] * (blocks * n)
        work["sums over functions"] += sums * n
        work["scatter"] += w["_scatter"] * n
        work["finish, radial functions"] += (w["_inverse_products"] + finish) * n
    return {**work, "powers": powers["values"], "powers, VJP": powers["VJP"]}


def measure_stages(system: System, limits: tuple[float, ...], repeat: int) -> list[dict]:
    """Rows of the roofline of a system, printed on the way; `limits` of `machine_limits`."""
    engine = KernelEngine(system.layout)
    plan = engine._plan
    r_ij, idx_i, idx_j, _ = system.pairs()
    pairs = engine.prepare(r_ij, idx_i, idx_j, system.atoms.numbers)
    n_atoms = len(pairs.neighbors.numbers)
    grad = np.random.default_rng(0).normal(size=(n_atoms, system.layout.n_columns))
    # the same without the condition on r_jk, which leaves all pairs of neighbours
    wide = KernelEngine(
        Layout(
            {
                z: [replace(f, kind=f.kind.replace("G4", "G5")) for f in functions]
                for z, functions in system.layout.functions.items()
            }
        )
    )._plan

    def run(plan: Plan, last: int, derivative: bool) -> np.ndarray:
        counts = np.zeros((len(plan.groups), 3), np.int64)
        _run_stages(plan, pairs.neighbors, last, derivative, grad, counts)
        return counts

    def prefixes(last: int, derivative: bool) -> list[Callable]:
        begin = [partial(run, plan, 0, derivative), partial(run, wide, 1, derivative)]
        return begin + [partial(run, plan, k, derivative) for k in range(1, last + 1)]

    values = [*prefixes(4, False), lambda: engine.values(pairs)]
    vjp = [*prefixes(6, True), lambda: engine.vjp(pairs, grad)]
    times = best_times(values + vjp, repeat)
    counts = run(plan, 1, False)
    work = stage_work(plan, counts)
    n_triples, n_pairs = counts[:, 2].sum(), counts[:, 1].sum()
    print(
        f"\n{system.name}: {n_atoms} atoms, per atom {counts[-1, 0] / n_atoms:.0f} neighbours, "
        f"{n_pairs / n_atoms:.0f} pairs of them, {n_triples / n_atoms:.0f} triples"
    )
    rows = []
    for kernel, cumulated in {"values": times[: len(values)], "VJP": times[len(values) :]}.items():
        done = [
            work[f"{s}, VJP" if f"{s}, {kernel}" == "powers, VJP" else s] for s in STAGES[kernel]
        ]
        done.append(sum(done, Work(0.0, 0.0)))
        seconds = [*np.diff(cumulated, prepend=0.0), cumulated[-1]]
        print(
            f"  {kernel:26s} us/atom ns/triple  share flops/triple Gflop/s of peak bytes/triple "
            "  GB/s bound"
        )
        for stage, s, of in zip((*STAGES[kernel], "all"), seconds, done, strict=True):
            bound = max(of.flops / limits[0], of.bytes / limits[1]) / s
            row = {
                "part": "roofline",
                "system": system.name,
                "kernel": kernel,
                "stage": stage,
                "us_per_atom": 1e6 * s / n_atoms,
                "ns_per_triple": 1e9 * s / n_triples,
                "share": s / cumulated[-1],
                "flops_per_triple": of.flops / n_triples,
                "gflops": 1e-9 * of.flops / s,
                "of_peak": of.flops / s / limits[0],
                "bytes_per_triple": of.bytes / n_triples,
                "gbytes_per_s": 1e-9 * of.bytes / s,
                "bound": bound,
            }
            rows.append(row)
            print(
                f"    {stage:24s}{row['us_per_atom']:8.2f}{row['ns_per_triple']:10.3f}"
                f"{row['share']:7.0%}{row['flops_per_triple']:13.1f}{row['gflops']:8.1f}"
                f"{row['of_peak']:8.0%}{row['bytes_per_triple']:13.0f}{row['gbytes_per_s']:7.0f}"
                f"{bound:6.0%}"
            )
    return rows
