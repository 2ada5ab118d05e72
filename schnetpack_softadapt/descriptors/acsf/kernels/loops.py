"""Loops over plain arrays from which the compiled symmetry functions are put together.

Everything here runs over arrays that lie in the first-level cache and has no branch inside a loop,
so that LLVM turns it into vector instructions. Four rules keep it so:

* a loop writes few arrays, and `noalias` promises the compiler that they do not overlap: without
  it LLVM would guard each loop with run-time checks, or give up;
* nothing is fetched by an index array in these loops: hardware gathers were measured slower than
  scalar loads (microcode against speculative reads made them several times slower), and where
  gathers are needed (`triples`) `noalias` is left out so that LLVM does not use them;
* they run from 0 over slices: numba must allow for negative indices, and where LLVM cannot prove
  that an index is positive it gives up consecutive loads for gathers;
* of the fast-math flags only contraction to fused multiply-add is on, and reassociation in sums,
  so NaN and infinity go their normal way.

Relative error bounds, tested in tests/descriptors/test_kernels.py: `exponential` 1e-15 for
arguments above -708, the cutoff functions 1e-14 where they exceed 1e-6.
"""

import math

import numpy as np
from numba import njit, types
from numba.core.compiler import Compiler
from numba.extending import intrinsic

__all__ = [
    "CUTOFF_CODES",
    "LOOP",
    "SCALAR",
    "STAGE",
    "SUM",
    "aligned",
    "cutoff_factors",
    "dot4",
    "exponential",
    "multiply_rows",
    "power_row",
    "round_up",
    "scale_by_element",
]


class _NoAlias(Compiler):
    """Marks the array arguments of a function as not overlapping, as numba does in `prange`."""

    def define_pipelines(self):
        self.state.flags.noalias = True
        return super().define_pipelines()


#: options of elementwise loops; arguments must not overlap unless only the same index is shared
LOOP = {
    "pipeline_class": _NoAlias,
    "fastmath": {"contract"},
    "error_model": "numpy",
    "nogil": True,
    "forceinline": True,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
    "_nrt": False,
}
#: options of sums: their order is free
SUM = dict(LOOP, fastmath={"contract", "reassoc", "nsz"})
#: options of loops that LLVM should leave alone
SCALAR = {key: value for key, value in LOOP.items() if key != "pipeline_class"}
#: options of functions that call the loops
STAGE = dict(SCALAR, forceinline=False)

#: cutoff functions by number; the names are those of `acsf.cutoffs`
_NAMES = ("cosine", "tanh3", "exp", "poly1", "poly2", "poly3", "poly4")
CUTOFF_CODES = {name: code for code, name in enumerate(_NAMES)}
# of poly1 to poly4: coefficients of x to x^4 (see `_poly`) and -df/dx / (x (1 - x))^order
_POLYNOMIALS = (
    (2.0, 0.0, 0.0, 0.0, 6.0),
    (3.0, 6.0, 0.0, 0.0, 30.0),
    (4.0, 10.0, 20.0, 0.0, 140.0),
    (5.0, 15.0, 35.0, 70.0, 630.0),
)

_LOG2_E = 1.4426950408889634
_LN2_HI = 0.6931471803691238  # the upper 32 bits of ln 2: products with small integers are exact
_LN2_LO = 1.9082149292705877e-10
_ROUND = 1.5 * 2.0**52  # added and subtracted again it rounds to an integer
_SMALLEST = -708.0  # exp of less is below the normal numbers


@intrinsic
def _scale_by_power_of_two(typingctx, x, n):
    """x * 2^n for the integer that stands in the low bits of the float `n` = integer + _ROUND."""
    if x is not types.float64 or n is not types.float64:
        return None

    def codegen(context, builder, signature, args):
        from llvmlite import ir

        word = ir.IntType(64)
        bits, shift = (builder.bitcast(arg, word) for arg in args)
        shift = builder.shl(shift, ir.Constant(word, 52))
        return builder.bitcast(builder.add(bits, shift), ir.DoubleType())

    return types.float64(types.float64, types.float64), codegen


@njit(**STAGE)
def round_up(n):
    """The next multiple of eight."""
    return (n + 7) & ~7


@njit(nogil=True)
def aligned(n_rows, n):
    """Room for (n_rows, n) numbers, n a multiple of eight, every row at the start of a cache line.

    Vector loads that straddle two lines cost a tenth of a vector-Jacobian product.
    """
    room = np.empty(n_rows * n + 8, np.float64)
    first = (-(room.ctypes.data // 8)) % 8
    return room[first : first + n_rows * n].reshape((n_rows, n))


@njit(**SCALAR)
def exponential(x):
    """exp(x), -708 <= x <= 709; exp(-708) = 3e-308 below."""
    x = _SMALLEST if x < _SMALLEST else x
    n = x * _LOG2_E + _ROUND
    m = n - _ROUND
    y = (x - m * _LN2_HI) - m * _LN2_LO  # in [-ln 2 / 2, ln 2 / 2]
    # Chebyshev interpolation of exp there, relative error 3e-16 before rounding. In Estrin's order:
    # Horner's chain of dependent operations would take twice as long.
    y2 = y * y
    y4 = y2 * y2
    a = 1.0 + 1.0000000000000067 * y
    b = 0.5000000000000006 + 0.16666666666554403 * y
    c = 0.04166666666657314 + 0.008333333385668096 * y
    d = 0.001388888893248886 + 0.0001984117027004143 * y
    e = 2.4801504346665615e-05 + 2.764018096215644e-06 * y + 2.762635737968284e-07 * y2
    p = (a + b * y2) + y4 * ((c + d * y2) + y4 * e)
    return _scale_by_power_of_two(p, n)


@njit(**LOOP)
def _cosine(s, inverse, f, slope, n):
    """f = cos^2(pi/2 sqrt(u)) with u = s / r_c^2; cos(pi/2 sqrt(u)) = (1 - u) q(u).

    q is a polynomial of degree 7 (Chebyshev interpolation, relative error 3e-17).
    """
    for t in range(n):
        u = s[t] * inverse
        q = -6.30616956165683e-11
        d = q
        q = q * u + 6.318119670622831e-09
        d = d * u + q
        q = q * u - 4.6476318093539006e-07
        d = d * u + q
        q = q * u + 2.47372750411264e-05
        d = d * u + q
        q = q * u - 0.000894522998138162
        d = d * u + q
        q = q * u + 0.01996895776483613
        d = d * u + q
        q = q * u - 0.23370055013616783
        d = d * u + q
        q = q * u + 1.0
        # now q(u), and d = dq/du
        v = 1.0 - u
        w = v * q
        f[t] = w * w
        slope[t] = (2.0 * inverse) * (d * v - q) / w


@njit(**LOOP)
def _tanh3(s, inverse, f, slope, n):
    """f = tanh^3(y), y = 1 - sqrt(u); tanh(y) = y q(y^2), relative error 2e-16 for |y| <= 1."""
    for t in range(n):
        x = math.sqrt(s[t] * inverse)
        y = 1.0 - x
        z = y * y
        q = 1.828625739978947e-07
        q = q * z - 1.8226646212654275e-06
        q = q * z + 9.125953596264835e-06
        q = q * z - 3.1803378030411946e-05
        q = q * z + 9.079348448432776e-05
        q = q * z - 0.00023540928172731117
        q = q * z + 0.0005883602826886761
        q = q * z - 0.0014552898065417585
        q = q * z + 0.0035920010315266884
        q = q * z - 0.008863215065207559
        q = q * z + 0.021869486371314823
        q = q * z - 0.053968253829690074
        q = q * z + 0.13333333332866987
        q = q * z - 0.33333333333327114
        q = q * z + 0.9999999999999999
        h = y * q
        f[t] = h * h * h
        slope[t] = (-1.5 * inverse) * (1.0 - h * h) / (h * x)


@njit(**LOOP)
def _exp(s, inverse, f, slope, n):
    """f = exp(1 - 1/(1 - u))."""
    for t in range(n):
        w = 1.0 / (1.0 - s[t] * inverse)
        f[t] = exponential(1.0 - w)
        slope[t] = -inverse * w * w


@njit(**LOOP)
def _poly(s, inverse, f, slope, a, b, c, d, derivative, order, n):
    """f = (1-x)^(order+1) (1 + a x + b x^2 + c x^3 + d x^4), x = sqrt(u).

    The smoothstep polynomials, factored at their root so that they keep their relative accuracy
    near the cutoff; df/dx = -derivative (x (1-x))^order.
    """
    for t in range(n):
        x = math.sqrt(s[t] * inverse)
        y = 1.0 - x
        q = (((d * x + c) * x + b) * x + a) * x + 1.0
        y2 = y * y
        x2 = x * x
        z = y * y2 if order >= 2 else y2
        z = y2 * y2 if order >= 3 else z
        z = y2 * y2 * y if order >= 4 else z
        # dlog f/ds = f'/f inverse/(2 x): one x of x^order cancels
        w = x if order >= 2 else 1.0
        w = x2 if order >= 3 else w
        w = x2 * x if order >= 4 else w
        f[t] = z * q
        slope[t] = (-0.5 * inverse * derivative) * w / (y * q)


@njit(**SCALAR)
def cutoff_factors(code, s, cutoff, f, slope, n):
    """Cutoff function f and dlog f/ds at the squared distances s < cutoff^2, first `n` entries."""
    inverse = 1.0 / (cutoff * cutoff)
    if code == 0:
        _cosine(s, inverse, f, slope, n)
    elif code == 1:
        _tanh3(s, inverse, f, slope, n)
    elif code == 2:
        _exp(s, inverse, f, slope, n)
    else:
        order = code - 2
        a, b, c, d, derivative = _POLYNOMIALS[order - 1]
        _poly(s, inverse, f, slope, a, b, c, d, derivative, order, n)


@njit(**SCALAR)
def scale_by_element(x, weights, number, out, n):
    """out = x times the weights (119,) of the atomic numbers."""
    for t in range(n):
        out[t] = x[t] * weights[number[t]]


@njit(**LOOP)
def multiply_rows(a, b, out, i, j, k, n):
    """out[k] = a[i] b[j], the three arrays being one and the same with k unlike i and j."""
    for t in range(n):
        out[k, t] = a[i, t] * b[j, t]


@njit(**SCALAR)
def power_row(rows, i, k, exponent, n):
    """rows[k] = rows[i]^exponent for an exponent that is no integer."""
    # below it the base is the rounding error of a vanishing one
    smallest = 8.0 * np.finfo(np.float64).eps
    for t in range(n):
        base = rows[i, t]
        rows[k, t] = (smallest if base < smallest else base) ** exponent


@njit(**SUM)
def dot4(w, rows, i, j, k, m, n):
    """Scalar products of w with four rows."""
    a = b = c = d = 0.0
    for t in range(n):
        x = w[t]
        a += x * rows[i, t]
        b += x * rows[j, t]
        c += x * rows[k, t]
        d += x * rows[m, t]
    return a, b, c, d
