"""What a model says about itself: names of its outputs, its units, its cutoff radius."""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import nn

from schnetpack_softadapt.data.formats.units import ENERGY_UNITS, LENGTH_UNITS, unit_factor
from schnetpack_softadapt.model.baseline import baseline_of
from schnetpack_softadapt.model.outputs import property_kinds

__all__ = ["common_unit", "cutoff_of", "output_keys"]

_ARGUMENTS = {"energy": "energy_key", "forces": "force_key", "stress": "stress_key"}
_UNITS = {"energy": ENERGY_UNITS, "position": LENGTH_UNITS}


def output_keys(model: nn.Module, given: Mapping[str, str | None]) -> dict[str, str | None]:
    """Names of energy, forces and stress in a model; None for a stress that it does not give.

    Args:
        given: name of each; "auto" for what the model's modules say.

    Raises:
        ValueError: it has no output of the name that is given, or nothing says which one it is.
    """
    outputs, kinds = sorted(model.model_outputs), property_kinds(model)
    keys: dict[str, str | None] = {}
    for kind, key in given.items():
        found = [name for name, k in kinds.items() if k == kind] if key == "auto" else [key]
        if len(found) > 1 or (not found and kind != "stress"):
            which = f"{' and '.join(found) or 'none'} of these"
            raise ValueError(
                f"the model gives {outputs}; by what its modules (such as Forces) say, {which} is"
                f" its {kind}: give {_ARGUMENTS[kind]}"
            )
        keys[kind] = found[0] if found else None
    missing = [key for key in keys.values() if key not in (None, *outputs)]
    if missing:
        raise ValueError(
            f"the model gives {outputs}, not {' and '.join(missing)}; set energy_key, force_key"
            " and stress_key, or give the model a Forces module"
        )
    return keys


def common_unit(
    models: Sequence[nn.Module], names: Sequence[str], kind: str, given: str | float | None
) -> tuple[str | float, float]:
    """The unit of a quantity in all of some models, and its size in eV or Ang.

    Args:
        models: their `metadata["units"]` are asked, if they have any.
        names: of the quantity in the units of each model.
        kind: "energy" or "position", also the start of the calculator's argument.
        given: a name or a number of eV or Ang, which then holds; None for what the models state.

    Raises:
        ValueError: a model does not state it, models that differ, or no such unit.
    """
    if given is None:
        stated = [(getattr(m, "metadata", None) or {}).get("units", {}) for m in models]
        units = [unit.get(name) for unit, name in zip(stated, names, strict=True)]
        if None in units:
            raise ValueError(
                f"the model does not tell the unit of its {names[units.index(None)]}: give"
                f" {kind}_unit, that of the data it was trained on ({', '.join(_UNITS[kind])})"
            )
        if len(set(units)) > 1:
            raise ValueError(
                f"the models of a committee must have the same units, not {' and '.join(units)}"
            )
        given = units[0]
    if isinstance(given, str):
        return given, unit_factor(given, _UNITS[kind], kind)
    if not 0 < given < np.inf:
        raise ValueError(f"{kind}_unit must be a name or a positive number, got {given}")
    return given, float(given)


def cutoff_of(model: nn.Module, given: float | None) -> float:
    """Radius of the neighbour list that a model needs, in its unit.

    Raises:
        ValueError: none is given and the model does not tell it.
    """
    if given is not None:
        return float(given)
    cutoff = getattr(getattr(model, "representation", None), "cutoff", None)
    if cutoff is None:
        raise ValueError("the model does not tell its cutoff radius: give `cutoff`")
    # a calculator as baseline has no cutoff of pairs
    return max(float(cutoff), getattr(baseline_of(model), "cutoff", 0.0))
