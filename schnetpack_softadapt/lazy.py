"""Names of a package that are loaded when they are asked for."""

from collections.abc import Callable, Mapping
from importlib import import_module

__all__ = ["attributes_of"]


def attributes_of(package: str, homes: Mapping[str, str]) -> Callable[[str], object]:
    """`__getattr__` of a package.

    Args:
        homes: module in it of each attribute; with a colon behind it, the module itself.
    """

    def __getattr__(name: str) -> object:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module, itself, _ = homes[name].partition(":")
        home = import_module(f"{package}.{module}")
        return home if itself else getattr(home, name)

    return __getattr__
