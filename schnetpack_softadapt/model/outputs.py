"""What the outputs of a model are, whatever they are called."""

from torch import nn

from schnetpack_softadapt.model.atomwise import ElementalAtomwise
from schnetpack_softadapt.model.shift import ElementShift

__all__ = ["property_kinds"]

#: words that name an energy of a whole structure, and those of energies that are something else
_ENERGY = {"energy", "enthalpy", "e", "u", "u0", "h", "g"}
_OTHER = {"gap", "homo", "lumo", "excitation", "ionization", "affinity", "atomic", "per"}


def property_kinds(model: nn.Module) -> dict[str, str]:
    """What each output of a model is: "energy", "forces" or "stress", by its name.

    The names are those that the modules which differentiate the energy were given
    (`schnetpack.atomistic.Forces`, `Response`, ours). Without such a module, the energy is the
    output of our networks or shifts, or of the one SchNetPack `Atomwise` that sums over atoms and
    has the name of an energy: it may predict anything else. An output that is not among them (a
    dipole moment, one of two energies) has no entry.
    """
    modules = list(getattr(model, "output_modules", ()))
    kinds = {}
    for module in modules:
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
    if "energy" not in kinds.values():
        energies = {module.output_key for module in modules if _gives_energy(module)}
        if len(energies) == 1:
            kinds[energies.pop()] = "energy"
    return kinds


def _gives_energy(module: nn.Module) -> bool:
    if isinstance(module, ElementalAtomwise | ElementShift):
        return True
    # other heads, such as DipoleMoment, have no aggregation_mode
    sums = getattr(module, "aggregation_mode", None) == "sum" and module.n_out == 1
    words = set(module.output_key.lower().split("_")) if sums else set()
    return bool(words & _ENERGY) and not words & _OTHER
