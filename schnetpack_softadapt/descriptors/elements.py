"""Chemical elements by symbol or atomic number, and the error for those that are not known."""

from collections.abc import Iterable

from ase.data import atomic_numbers, chemical_symbols

__all__ = ["UnknownElementError", "atomic_number", "check_elements"]


class UnknownElementError(ValueError):
    """An element that does not exist, or that a model was not made for."""


def atomic_number(element: int | str) -> int:
    """Atomic number of a chemical symbol or atomic number.

    Raises:
        UnknownElementError: there is no such element.
    """
    number = atomic_numbers.get(element, 0) if isinstance(element, str) else int(element)
    if not 0 < number < len(chemical_symbols):
        raise UnknownElementError(f"{element!r} is no chemical element")
    return number


def check_elements(numbers: Iterable[int], known: Iterable[int], where: str = "") -> None:
    """Refuse elements that a model was not made for.

    Args:
        where: what has them, such as "structure 3".

    Raises:
        UnknownElementError: naming them.
    """
    known = sorted(set(known))
    unknown = sorted(set(numbers) - set(known))
    if unknown:
        names = _names(unknown)
        raise UnknownElementError(
            f"{f'{where}: ' if where else ''}the model does not know {names}; it was made for"
            f" {_names(known)}. Leave out what contains {names}, or train a model on data with it"
        )


def _names(numbers: Iterable[int]) -> str:
    symbols = dict(enumerate(chemical_symbols))
    symbols[0] = "atomic number 0"
    return ", ".join(symbols.get(z, f"atomic number {z}") for z in numbers)
