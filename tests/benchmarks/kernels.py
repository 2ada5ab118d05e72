"""What limits the compiled symmetry functions: machine code and roofline.

    python tests/benchmarks/kernels.py [--part code roofline] [--json FILE] [--repeat 25]

    code       double-precision instructions in the innermost loops of the kernels, by register
               width. The remainders of vector loops are loops of their own, narrower ones, so a
               function in vector form has all widths; one that is only scalar stands out.
    roofline   some loops alone, then the stages of values and of vector-Jacobian products of Mo54
               with 24 functions and of water: differences of runs that end one stage later each.
               Beside the time stand the operations (counted in the source, see `machine_code`), the
               peak of fused multiply-add of this core and the rate of out = a * b in the
               first-level cache. A stage cannot take less than the larger of flops / peak and
               bytes / rate: `bound`, as a share of its time.

One thread; best CPU time of `--repeat` turns, in which all that is compared takes turns.
"""

import argparse
import warnings
from collections import Counter

import torch
from environment import describe_machine, write_result
from evaluation import systems
from kernel_stages import machine_limits, measure_loops, measure_stages
from machine_code import count_instructions

from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelEngine
from schnetpack_softadapt.descriptors.acsf.kernels.products import values, vjp
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


def measure_code() -> list[dict]:
    """Rows of instruction counts, printed on the way."""
    layout = Layout({42: [SymmetryFunction("G4", (42, 42), 5.0, 0.1)]})
    engine = KernelEngine(layout)
    nothing = torch.zeros(0, dtype=torch.int64)
    inputs = (torch.zeros((0, 3), dtype=torch.float64), nothing, nothing, torch.tensor([42]))
    pairs = engine.prepare(*inputs)
    engine.vjp(pairs, engine.values(pairs))  # the signatures
    rows = []
    for name, kernel in {"values": values, "VJP": vjp}.items():
        print(
            f"\n{name + ', innermost loops of':28s}" + "".join(f"{x:>13s}" for x in _CODE_COLUMNS)
        )
        found = count_instructions(kernel)
        found["all"] = sum(found.values(), start=Counter())
        for function, counts in found.items():
            print(f"  {function:26s}" + "".join(f"{counts[x]:13d}" for x in _CODE_COLUMNS))
            rows.append({"part": "code", "kernel": name, "function": function, **counts})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parts = ("code", "roofline")
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
    if args.json:
        write_result(args.json, rows)


if __name__ == "__main__":
    main()
