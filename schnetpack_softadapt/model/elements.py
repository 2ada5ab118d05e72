"""From atomic numbers to the rows of per-element parameters."""

from collections.abc import Sequence

import torch
from ase.data import atomic_numbers, chemical_symbols
from torch import nn

__all__ = ["ElementIndex", "UnknownElementError", "to_atomic_numbers"]


class UnknownElementError(ValueError):
    """A structure contains an element that the model has no parameters for."""


def to_atomic_numbers(elements: Sequence[int | str]) -> tuple[int, ...]:
    """Ascending atomic numbers of chemical symbols or atomic numbers.

    Raises:
        ValueError: for a symbol that is no chemical element, or an element given twice.
    """
    numbers = []
    for element in elements:
        if isinstance(element, str) and element not in atomic_numbers:
            raise ValueError(f"{element!r} is not a chemical symbol")
        numbers.append(atomic_numbers[element] if isinstance(element, str) else int(element))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"an element is given twice: {list(elements)}")
    return tuple(sorted(numbers))


class ElementIndex(nn.Module):
    """Maps atomic numbers to rows 0, 1, ... of per-element parameters, elements ascending.

    Args:
        elements: atomic numbers or symbols that the model knows.
    """

    rows: torch.Tensor  # (119,) row of each atomic number, -1 where unknown

    def __init__(self, elements: Sequence[int | str]):
        super().__init__()
        self.elements = to_atomic_numbers(elements)
        rows = torch.full((len(chemical_symbols),), -1, dtype=torch.long)
        rows[list(self.elements)] = torch.arange(len(self.elements))
        self.register_buffer("rows", rows, persistent=False)

    def __len__(self):
        return len(self.elements)

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Rows of the atoms; `numbers` and the result have shape (n_atoms,).

        On a GPU no check is made, because it would stop the host in every step: callers treat a
        row of -1 as "not a number" there.

        Raises:
            UnknownElementError: on the CPU, naming the elements that are not known.
        """
        rows = self.rows[numbers]
        if rows.device.type == "cpu" and rows.numel() and int(rows.min()) < 0:
            unknown = sorted({int(z) for z in numbers[rows < 0]})
            raise UnknownElementError(
                f"the model does not know {', '.join(chemical_symbols[z] for z in unknown)}; it was"
                f" built for {', '.join(chemical_symbols[z] for z in self.elements)}. Train a model"
                " on data that contain the missing element."
            )
        return rows
