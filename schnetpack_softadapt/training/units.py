"""Units by name: those that SchNetPack reads, and the prefixed ones that people use."""

from schnetpack.units import convert_units

__all__ = ["unit_factor"]

#: units that SchNetPack's parser does not know, in those that it does
_PREFIXED = {"meV": ("eV", 1e-3), "MPa": ("GPa", 1e-3), "kbar": ("GPa", 0.1)}


def unit_factor(source: str, target: str) -> float:
    """What a value in `source` is multiplied with to be in `target`.

    Raises:
        ValueError: a unit that cannot be read.
    """
    head, *rest = target.split("/")
    known, factor = _PREFIXED.get(head.strip(), (head, 1.0))
    try:
        return float(convert_units(source, "/".join([known, *rest]))) / factor
    except Exception as error:  # its parser looks names up in ase.units, and raises Warning too
        raise ValueError(
            f"cannot convert {source!r} to {target!r}; units are written as in eV, meV, kcal/mol,"
            " eV/Ang, eV/Ang/Ang/Ang, GPa"
        ) from error
