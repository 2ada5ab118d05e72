"""The cluster expansion by compiled loops on the CPU: the fast engine."""

from pathlib import Path

from schnetpack_softadapt.descriptors.ace.kernels.jacobian import jacobian, jvp
from schnetpack_softadapt.descriptors.ace.kernels.neighbors import densities, sort
from schnetpack_softadapt.descriptors.ace.kernels.plan import make_plan
from schnetpack_softadapt.descriptors.ace.kernels.products import values, vjp
from schnetpack_softadapt.descriptors.ace.parameters import ClusterExpansion
from schnetpack_softadapt.descriptors.compiled import stamp_sources
from schnetpack_softadapt.descriptors.compiled_engine import CompiledEngine, Kernels
from schnetpack_softadapt.descriptors.snap.kernels import groups, vectors

__all__ = ["KernelEngine"]


class KernelEngine(CompiledEngine):
    """The cluster expansion by compiled loops."""

    kernels = Kernels(sort, values, vjp, jvp, jacobian, densities)
    stamp_sources(
        kernels, [*sorted(Path(__file__).parent.glob("*.py")), groups.__file__, vectors.__file__]
    )

    def __init__(self, descriptor: ClusterExpansion):
        super().__init__(descriptor, make_plan(descriptor))
