"""Which engine a descriptor gets."""

import warnings
from functools import lru_cache
from importlib import import_module

from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine, check_engine_name

__all__ = ["choose_engine"]


@lru_cache(maxsize=64)
def choose_engine(descriptor: Descriptor, device: str, name: str) -> Engine:
    """That of `kernels.engine` or of `reference` in the package of the descriptor's class.

    Raises:
        ValueError: an unknown name, or "kernels" for a device other than the CPU.
        ImportError: "kernels" with NUMBA_DISABLE_JIT.
    """
    check_engine_name(name)
    package = type(descriptor).__module__.rpartition(".")[0]

    def reference(**arguments) -> Engine:
        return import_module(f"{package}.reference").ReferenceEngine(descriptor, **arguments)

    if name == "reference":
        return reference(is_exact=True)
    if device != "cpu":
        if name == "kernels":
            raise ValueError(f"backend='kernels' runs on the CPU, not on {device}; use 'auto'")
        return reference()
    try:
        # imported here, as the other: numba takes a second to load, torch several
        return import_module(f"{package}.kernels.engine").KernelEngine(descriptor)
    except ImportError as error:
        if name == "kernels":
            raise
        warn_no_kernels(str(error))
        return reference()


@lru_cache(maxsize=1)
def warn_no_kernels(message: str) -> None:
    """Say once why the slower engine is used."""
    warnings.warn(
        f"the compiled descriptors cannot be used ({message}); using the slower reference backend."
        " Remedy: pip install numba, and unset NUMBA_DISABLE_JIT",
        stacklevel=4,
    )
