"""What the outputs of a model are, whatever they are called."""

from torch import nn

__all__ = ["property_kinds"]


def property_kinds(model: nn.Module) -> dict[str, str]:
    """What each output of a model is: "energy", "forces" or "stress", by its name.

    The names are those that the modules which differentiate the energy were given
    (`schnetpack.atomistic.Forces`, `Response`, ours); no literal name means anything. An output
    that is not among them (a dipole moment, an energy without forces) has no entry.
    """
    kinds = {}
    for module in getattr(model, "output_modules", ()):
        outputs = getattr(module, "model_outputs", ())
        if isinstance(getattr(module, "energy_key", None), str):
            kinds[module.energy_key] = "energy"
        for kind, key in (("forces", "force_key"), ("stress", "stress_key")):
            if getattr(module, key, None) in outputs:
                kinds[getattr(module, key)] = kind
        derivatives = getattr(module, "map_properties", {})  # of schnetpack.atomistic.Response
        for kind in ("forces", "stress"):
            if derivatives.get(kind) in outputs:
                kinds[derivatives[kind]] = kind
    return kinds
