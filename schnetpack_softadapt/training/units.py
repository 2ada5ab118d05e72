"""Units by name: those that SchNetPack reads, and meV, MPa and kbar."""

from schnetpack.units import convert_units

__all__ = ["record_units", "unit_factor"]

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


def record_units(model, dataset, components=()) -> None:
    """Write the units of the data a model is trained on into `model.metadata["units"]`.

    By output of the model and property of the data, and "length" for positions. A model is
    otherwise a file of numbers that does not say whether its energies are eV or kcal/mol.
    """
    units = {**dict(dataset.units), "length": dataset.distance_unit}
    for c in components:
        if c.target_property in units:
            units[c.name] = units[c.target_property]
    model.metadata = {**(getattr(model, "metadata", None) or {}), "units": units}
