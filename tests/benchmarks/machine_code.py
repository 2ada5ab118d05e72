"""What the compiler made of a numba function, and what its source asks of the machine."""

import ast
import inspect
import re
import textwrap
from collections import Counter
from typing import NamedTuple

from numba import njit
from numba.core.dispatcher import Dispatcher

__all__ = ["Work", "count_instructions", "work_per_element"]

_ARITHMETIC = re.compile(r"v(add|sub|mul|div|sqrt|max|min|fn?m(add|sub)\d+)(pd|sd)$")
_OTHER = re.compile(r"v(gather|scatter)\w*$")
# names that hold integers in the loops: what is done to them is no floating-point operation
_INTEGERS = {"t", "tag", "jk", "one", "two", "four"}


def _assembly(kernel: Dispatcher) -> str:
    """Assembly of the first signature; compiled anew, for cached code cannot be inspected."""
    fresh = njit(nogil=True)(kernel.py_func)
    fresh.compile(kernel.signatures[0])
    return fresh.inspect_asm(fresh.signatures[0])


def _functions(assembly: str) -> dict[str, list[str]]:
    """Lines of each function of this package, by its name in the source."""
    found: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in assembly.splitlines():
        if re.match(r"[^.\s#][^ ]*:", line):
            words, rest = [], line[3:] if line.startswith("_ZN") else ""
            while match := re.match(r"(\d+)(?=\D)", rest):  # length of a word, the word
                end = match.end() + int(match[1])
                words.append(rest[match.end() : end])
                rest = rest[end:]
            lines = []
            if words[:1] == ["schnetpack_softadapt"]:
                found[words[5]] = lines  # after package, three rooms and module
        lines.append(line.strip())
    return found


def _innermost_loops(lines: list[str]) -> list[list[str]]:
    """Lines between a label and a jump back to it, where no other such stretch lies within."""
    labels = {line[:-1]: k for k, line in enumerate(lines) if re.match(r"\.L\w+:$", line)}
    loops = []
    for k, line in enumerate(lines):
        match = re.match(r"j\w+\s+(\.L\w+)$", line)
        if match and labels.get(match[1], k) < k:
            loops.append((labels[match[1]], k))
    return [
        lines[a : b + 1]
        for a, b in loops
        if not any((c, d) != (a, b) and a <= c and d <= b for c, d in loops)
    ]


def count_instructions(kernel: Dispatcher) -> dict[str, Counter]:
    """Double-precision arithmetic in the innermost loops of a compiled kernel (x86).

    Returns:
        counts per function that was not inlined: "zmm", "ymm", "xmm" packed instructions of 8, 4
        and 2 numbers, "scalar" ones; among them "div" and "sqrt" (packed) and "div, scalar", "sqrt,
        scalar"; besides "gather" and "scatter".
    """
    found = {}
    for name, lines in _functions(_assembly(kernel)).items():
        counts = found[name] = Counter()
        for line in (line for loop in _innermost_loops(lines) for line in loop):
            op = line.split()[0] if line else ""
            if match := _OTHER.match(op):
                counts[match[1]] += 1
            if match := _ARITHMETIC.match(op):
                register = re.search(r"%([xyz]mm)", line)[1]
                packed = match[3] == "pd"
                counts[register if packed else "scalar"] += 1
                if match[1] in ("div", "sqrt"):
                    counts[match[1] if packed else f"{match[1]}, scalar"] += 1
    return {name: counts for name, counts in found.items() if counts}


class Work(NamedTuple):
    """Floating-point operations (a fused multiply-add is two) and bytes loaded and stored."""

    flops: float
    bytes: float

    def __add__(self, other):
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, n):
        return Work(n * self.flops, n * self.bytes)


class _Counter:
    """Walks through the body of a loop; `varying` are the names that change within it."""

    def __init__(self, body: list[ast.stmt], varying: set[str], called: dict[str, Work]):
        self.varying, self.called = varying, called
        nodes = [node for statement in body for node in ast.walk(statement)]
        self.varying |= {
            n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
        }
        self.flops = sum(self._flops(statement) for statement in body)
        places = {(ast.unparse(n), type(n.ctx)) for n in nodes if isinstance(n, ast.Subscript)}
        places |= {
            (ast.unparse(n.target), ast.Load)
            for n in nodes
            if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Subscript)
        }
        self.bytes = sum(4 if place.startswith("index[") else 8 for place, _ in places)

    def _is_constant(self, node: ast.AST) -> bool:
        inner = list(ast.walk(node))
        return not any(
            isinstance(n, ast.Subscript) or (isinstance(n, ast.Name) and n.id in self.varying)
            for n in inner
        )

    def _flops(self, node: ast.AST) -> float:
        if isinstance(node, ast.Subscript | ast.Compare):
            return 0.0
        own = 0.0
        if isinstance(node, ast.BinOp | ast.AugAssign):
            operands = (
                (node.left, node.right)
                if isinstance(node, ast.BinOp)
                else (node.target, node.value)
            )
            names = {n.id for n in operands if isinstance(n, ast.Name)}
            arithmetic = isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div)
            own = float(arithmetic and not names & _INTEGERS and not self._is_constant(node))
        elif isinstance(node, ast.IfExp):
            own = 1.0  # a comparison and a choice: one maximum
        elif isinstance(node, ast.Call):
            name = ast.unparse(node.func).split(".")[-1]
            if name.startswith("uint"):
                return 0.0
            own = self.called[name].flops if name in self.called else 1.0
        return own + sum(self._flops(child) for child in ast.iter_child_nodes(node))


def work_per_element(loop: Dispatcher, called: dict[str, Work] | None = None) -> Work:
    """Work of one turn of the first innermost loop of a function, or of one call without loops.

    Counted in the source: operations on what changes from turn to turn, each array element once.

    Args:
        loop: the function.
        called: work of the functions that it calls; others, like sqrt, count as one operation.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(loop.py_func))).body[0]
    loops = [n for n in ast.walk(tree) if isinstance(n, ast.For | ast.While)]
    inner = [n for n in loops if sum(isinstance(m, ast.For | ast.While) for m in ast.walk(n)) == 1]
    varying = {arg.arg for arg in tree.args.args} if not inner else set()
    counter = _Counter(inner[0].body if inner else tree.body, varying, called or {})
    return Work(counter.flops, counter.bytes)
