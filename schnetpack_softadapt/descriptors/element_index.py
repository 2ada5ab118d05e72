"""Rows of per-element parameters by atomic number, as a module that goes where its model goes."""

from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from schnetpack_softadapt.descriptors.elements import atomic_number, check_elements

__all__ = ["ElementIndex"]


class ElementIndex(nn.Module):
    """Maps atomic numbers to rows 0, 1, ... of per-element parameters, elements ascending.

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
