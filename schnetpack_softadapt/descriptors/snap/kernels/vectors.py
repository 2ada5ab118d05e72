"""Eight float64 numbers as one value of compiled code: one AVX-512 register, or two or four others.

LLVM vectorises innermost loops, and here the innermost loops are short sums that do not pay. What
is independent is further out, eight neighbours or eight atoms, so the lanes are written down.
"""

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, register_model

__all__ = ["LANES", "add", "fma", "fnma", "load", "mul", "splat", "store", "sub", "total"]

LANES = 8

_DOUBLE, _WORD = ir.DoubleType(), ir.IntType(32)
_VECTOR = ir.VectorType(_DOUBLE, LANES)


class _Lanes(types.Type):
    def __init__(self):
        super().__init__(name="Float64x8")


_lanes = _Lanes()


@register_model(_Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm, fe_type):
        super().__init__(dmm, fe_type, _VECTOR)


def _address(context, builder, signature, args):
    array = context.make_array(signature.args[0])(context, builder, args[0])
    pointer = builder.gep(array.data, [args[1]])
    return builder.bitcast(pointer, _VECTOR.as_pointer())


@intrinsic
def load(typingctx, array, index):
    """Lanes array[index : index + 8] of a contiguous array of one dimension."""

    def codegen(context, builder, signature, args):
        return builder.load(_address(context, builder, signature, args), align=8)

    return _lanes(array, types.intp), codegen


@intrinsic
def store(typingctx, array, index, value):
    """array[index : index + 8] = lanes."""

    def codegen(context, builder, signature, args):
        builder.store(args[2], _address(context, builder, signature, args), align=8)
        return context.get_dummy_value()

    return types.void(array, types.intp, _lanes), codegen


@intrinsic
def splat(typingctx, number):
    """The same number in all lanes."""

    def codegen(context, builder, signature, args):
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        one = builder.insert_element(undefined, args[0], ir.Constant(_WORD, 0))
        zeros = ir.Constant(ir.VectorType(_WORD, LANES), [0] * LANES)
        return builder.shuffle_vector(one, undefined, zeros)

    return _lanes(types.float64), codegen


@intrinsic
def add(typingctx, x, y):
    """x + y."""
    return _lanes(_lanes, _lanes), lambda _, builder, __, args: builder.fadd(*args)


@intrinsic
def sub(typingctx, x, y):
    """x - y."""
    return _lanes(_lanes, _lanes), lambda _, builder, __, args: builder.fsub(*args)


@intrinsic
def mul(typingctx, x, y):
    """x y."""
    return _lanes(_lanes, _lanes), lambda _, builder, __, args: builder.fmul(*args)


def _multiply_add(builder, x, y, z):
    # fused where the machine can, which `llvm.fma` would demand of any
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    name = f"llvm.fmuladd.v{LANES}f64"
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [x, y, z])


@intrinsic
def fma(typingctx, x, y, z):
    """x y + z."""
    return _lanes(_lanes, _lanes, _lanes), lambda _, b, __, args: _multiply_add(b, *args)


@intrinsic
def fnma(typingctx, x, y, z):
    """z - x y."""

    def codegen(context, builder, signature, args):
        return _multiply_add(builder, builder.fneg(args[0]), args[1], args[2])

    return _lanes(_lanes, _lanes, _lanes), codegen


@intrinsic
def total(typingctx, x):
    """Sum over the lanes."""

    def codegen(context, builder, signature, args):
        (x,) = args
        undefined = ir.Constant(_VECTOR, ir.Undefined)
        for step in (4, 2, 1):
            order = [(k + step) % LANES for k in range(LANES)]
            mask = ir.Constant(ir.VectorType(_WORD, LANES), order)
            x = builder.fadd(x, builder.shuffle_vector(x, undefined, mask))
        return builder.extract_element(x, ir.Constant(_WORD, 0))

    return types.float64(_lanes), codegen
