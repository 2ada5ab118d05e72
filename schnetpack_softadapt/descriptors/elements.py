"""Chemical elements by symbol or atomic number, and the error for those that are not known."""

from collections.abc import Iterable, Sequence

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import Tensor, nn

__all__ = ["ElementIndex", "UnknownElementError", "atomic_number", "check_elements"]


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
        numbers: atomic numbers.
        known: atomic numbers of the model.
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


class ElementIndex(nn.Module):
    """Maps atomic numbers to rows 0, 1, ... of per-element parameters, elements ascending.

    Args:
        elements: atomic numbers or symbols that a model knows.

    Raises:
        UnknownElementError: what is no chemical element.
        ValueError: an element given twice.
    """

    rows: Tensor  # (119,) row of each atomic number, one beyond the last where unknown

    def __init__(self, elements: Sequence[int | str]):
        super().__init__()
        self.elements = tuple(sorted(map(atomic_number, elements)))
        if len(set(self.elements)) != len(self.elements):
            raise ValueError(f"an element is given twice: {list(elements)}")
        rows = torch.full((len(chemical_symbols),), len(self.elements))
        rows[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("rows", rows, persistent=False)

    def __len__(self):
        return len(self.elements)

    def forward(self, numbers: Tensor) -> Tensor:
        """Rows of the atoms; `numbers` and the result have shape (n_atoms,).

        On a GPU no check is made, because it would stop the host in every step: an unknown element
        indexes beyond the end of any table there.

        Raises:
            UnknownElementError: on the CPU, naming the elements that are not known.
        """
        rows = self.rows[numbers]
        if rows.device.type == "cpu" and len(rows) and rows.max() == len(self.elements):
            check_elements(numbers.tolist(), self.elements)
        return rows
