"""Widths of hidden layers that go with the number of descriptors."""

import re

__all__ = ["hidden_widths"]


def hidden_widths(name: str, n_columns: int) -> tuple[int, ...]:
    """Widths of the hidden layers of a network of type A or B for D descriptors.

    Type A steps down from D, type B first expands to 2 D and then contracts. The size k is the
    number of hidden layers, whose widths go to zero in equal steps:

        A: D (k + 1 - l) / (k + 1),  B: 2 D (k + 1 - l) / k,  l = 1, ..., k.

    The two types in five sizes are those of D. Montes de Oca Zapiain et al., npj Comput. Mater. 8,
    189 (2022); the equal steps are ours.

    Args:
        name: "A1" to "A5", "B1" to "B5".
        n_columns: D.

    Raises:
        ValueError: another name.
    """
    if not re.fullmatch("[AB][1-5]", name):
        raise ValueError(
            f"n_hidden={name!r} is neither a list of widths nor a network of type A or B and size 1"
            " to 5, such as A2"
        )
    size = int(name[1])
    step = n_columns / (size + 1) if name[0] == "A" else 2 * n_columns / size
    return tuple(max(1, round(step * n)) for n in range(size, 0, -1))
