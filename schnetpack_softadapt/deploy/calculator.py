"""ASE calculator for our models and for any SchNetPack potential."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.outputs import Properties
from schnetpack.interfaces import SpkCalculator
from torch import nn

from schnetpack_softadapt.deploy.evaluate import (
    BatchModel,
    ComposedModels,
    Geometry,
    Prediction,
    activate_responses,
    evaluate_in_chunks,
)
from schnetpack_softadapt.deploy.extrapolation import ExtrapolationMonitor
from schnetpack_softadapt.deploy.loading import load_members
from schnetpack_softadapt.deploy.self_description import common_unit, cutoff_of, output_keys
from schnetpack_softadapt.deploy.skin import SkinList
from schnetpack_softadapt.model.composition import UnsupportedModelError, take_apart
from schnetpack_softadapt.neighbors.cells import stress_volumes
from schnetpack_softadapt.quantities import VOIGT_IN_FULL

__all__ = ["SoftAdaptCalculator", "StressNotDefinedError"]

log = logging.getLogger(__name__)

# larger structures are evaluated in chunks
_LARGEST_WHOLE = 50_000
_ATOMS_PER_CHUNK = 10_000

_VOIGT = np.array(VOIGT_IN_FULL)
_DTYPES = {"float32": torch.float32, "float64": torch.float64}


class StressNotDefinedError(PropertyNotImplementedError, ValueError):
    """Stress was asked of a structure that has no volume, or of a model without stress."""


class SoftAdaptCalculator(SpkCalculator):
    """Energy, forces and stress for ASE, in eV and Ang, stress in Voigt order (positive = tension).

    It takes the place of `schnetpack.interfaces.SpkCalculator`, which gives kcal/mol by default, no
    `free_energy`, stress as (3, 3), fails for subclasses of `Atoms` and for `Path`, and edits the
    model it is given. For our models it goes straight from the pair list through descriptors and
    networks; other SchNetPack models are called as they are.

    Args:
        model: a model, its path (`best_model`, a run directory, an exported folder), or several of
            these: a committee, which gives the mean, and the spread over its members as
            `results["energy_std"]`, `["forces_std"]`, `["stress_std"]`. A saved model is a pickle,
            which can execute code when it is loaded: open only what you trust. An exported
            folder is text that executes nothing.
        dtype: "float64", or "float32" (faster; relaxations to tight forces need float64).
        device: "cpu" or "cuda".
        skin: the neighbour list reaches this much farther than the cutoff and is kept until a pair
            could have been missed, Ang.
        max_extrapolations: stop with `ExtrapolationError` when more descriptors than this lie
            outside of the training range (of any member of a committee) in one step; None only
            counts them.
        neighbor_list: ignored, accepted as `SpkCalculator` asks for one.
        energy_key: name of the energy in the model; "auto" is the energy that its forces are
            derivatives of, whatever it is called.
        force_key: name of the forces; "auto" as the model's modules say.
        stress_key: name of the stress; "auto" as the model's modules say, None: no stress.
        energy_unit: unit of the model's energies, a name or a number of eV; needed for a model that
            does not state it (`SoftAdaptTask` writes `model.metadata["units"]`, SchNetPack's own
            task does not). Forces and stress are in this unit and that of the lengths.
        position_unit: unit of the model's lengths, likewise; a name or a number of Ang.
        cutoff: radius of the neighbour list in the model's unit, for models that do not tell it.
        transforms: for stock models that need more than pairs, applied to each structure.
        additional_inputs: constant entries of the batch, for stock models.
        atoms_per_chunk: evaluate this many atoms at a time, each step with their neighbours
            searched anew, instead of all with a list that is kept: as fast, in about 200 bytes an
            atom and 220 bytes a neighbour of the atoms at a time. When not given, structures of
            more than 50,000 atoms go in chunks of 10,000; a number no smaller than the structure
            keeps it whole. Only for models with descriptors on the CPU.
        kwargs: of `ase.calculators.calculator.Calculator`.

    Attributes:
        extrapolation: the `ExtrapolationMonitor`, None for models without descriptors.
        neighbors: the `SkinList`, not used for a structure in chunks.

    Raises:
        FileNotFoundError: no model at the path.
        ValueError: the model lacks an output or does not tell its units, or an argument makes no
            sense.
    """

    implemented_properties = ["energy", "free_energy", "energies", "forces", "stress"]  # noqa: RUF012

    def __init__(
        self,
        model: str | Path | nn.Module | Sequence[str | Path | nn.Module],
        neighbor_list=None,
        energy_key: str = "auto",
        force_key: str = "auto",
        stress_key: str | None = "auto",
        energy_unit: str | float | None = None,
        position_unit: str | float | None = None,
        device: str | torch.device = "cpu",
        dtype: str | torch.dtype = "float64",
        skin: float = 0.5,
        max_extrapolations: int | None = None,
        cutoff: float | None = None,
        transforms: Sequence[Callable] | Callable = (),
        additional_inputs: Mapping[str, torch.Tensor] | None = None,
        atoms_per_chunk: int | None = None,
        **kwargs,
    ):
        Calculator.__init__(self, **kwargs)
        if str(dtype).removeprefix("torch.") not in _DTYPES:
            raise ValueError(f"dtype must be float32 or float64, got {dtype!r}")
        dtype = _DTYPES[str(dtype).removeprefix("torch.")]
        device = _usable(device)
        given = [model] if isinstance(model, (str, Path, nn.Module)) else list(model)
        if not given:
            raise ValueError("a committee needs at least one model")
        models = [loaded for m in given for loaded in load_members(m, device, dtype)]
        self.model, self.models = models[0], models
        self.device, self.dtype = device, dtype
        for loaded in models:
            activate_responses(loaded, force_key, stress_key)
        given_keys = {"energy": energy_key, "forces": force_key, "stress": stress_key}
        self._keys = [output_keys(loaded, given_keys) for loaded in models]
        if any(keys["stress"] is None for keys in self._keys):
            self._keys = [{**keys, "stress": None} for keys in self._keys]
        self.property_map = self._keys[0]
        self.energy_key, self.force_key, self.stress_key = self.property_map.values()
        self._set_units(energy_unit, position_unit)
        self.cutoff = max(cutoff_of(m, cutoff) for m in models) * self.position_conversion
        self.neighbors = SkinList(self.cutoff, skin)
        self.extrapolation: ExtrapolationMonitor | None = None
        transforms = [transforms] if callable(transforms) else list(transforms)
        if transforms or additional_inputs:
            self._evaluators = self._batch_models(transforms, additional_inputs)
        else:
            self._evaluators = self._short_way(max_extrapolations) or self._batch_models((), None)
        if max_extrapolations is not None and self.extrapolation is None:
            raise ValueError(
                "max_extrapolations needs models with descriptors, on the CPU and all with the same"
            )
        self._can_chunk = isinstance(self._evaluators[0], ComposedModels)
        if atoms_per_chunk is not None and not (self._can_chunk and atoms_per_chunk > 0):
            raise ValueError(
                "atoms_per_chunk must be positive and needs models with descriptors, on the CPU,"
                f" called without transforms; got {atoms_per_chunk}"
            )
        self.atoms_per_chunk = atoms_per_chunk

    # --- setting up

    def _set_units(self, energy_unit, position_unit) -> None:
        energies = [keys["energy"] for keys in self._keys]
        self.energy_unit, self.energy_conversion = common_unit(
            self.models, energies, "energy", energy_unit
        )
        self.position_unit, self.position_conversion = common_unit(
            self.models, ["length"] * len(self.models), "position", position_unit
        )
        self.property_units = {
            "energy": self.energy_conversion,
            "forces": self.energy_conversion / self.position_conversion,
            "stress": self.energy_conversion / self.position_conversion**3,
        }

    def _short_way(self, max_extrapolations: int | None) -> list | None:
        """Our models on the CPU, one evaluator for each descriptor."""
        if self.device.type != "cpu":
            return None
        try:
            models = [take_apart(m, short_range=True) for m in self.models]
        except UnsupportedModelError as error:
            log.info("calling the model through SchNetPack: %s", error)
            return None
        groups: dict = {}
        for model, keys in zip(models, self._keys, strict=True):
            if model.networks.output_key != keys["energy"]:
                log.info("calling the model through SchNetPack: %s is no energy", keys["energy"])
                return None
            groups.setdefault(model.descriptor, []).append(model)
        scalings = [model.scaling for model in models]
        if len(groups) == 1 and all(scaling.is_fitted for scaling in scalings):
            descriptor = models[0].descriptor
            self.extrapolation = ExtrapolationMonitor(descriptor, scalings, max_extrapolations)
        return [ComposedModels(group, self.extrapolation) for group in groups.values()]

    def _batch_models(self, transforms, additional_inputs) -> list:
        models = zip(self.models, self._keys, strict=True)
        given = self.device, self.dtype, transforms, additional_inputs
        return [BatchModel(model, keys, *given) for model, keys in models]

    # --- calculating

    def check_state(self, atoms: Atoms, tol: float = 0.0) -> list[str]:
        """What has changed since `results`; ASE's own takes longer than a step of ten atoms."""
        last = self._last
        if last is None:
            return list(all_changes)
        pairs = {
            "positions": (atoms.positions, last.positions),
            "numbers": (atoms.numbers, last.numbers),
            "cell": (atoms.cell.array, last.cell),
            "pbc": (atoms.pbc, last.pbc),
        }
        # of few atoms faster than comparing arrays
        return [name for name, (a, b) in pairs.items() if a.tobytes() != b.tobytes()]

    @property
    def atoms(self) -> Atoms | None:
        """The structure of `results`, made when it is asked for; without what no model looks at."""
        last = self._last
        if last is None:
            return None
        return Atoms(last.numbers, last.positions, cell=last.cell, pbc=last.pbc)

    @atoms.setter
    def atoms(self, atoms: Atoms | None) -> None:
        self._last = None if atoms is None else _structure(atoms)

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """Compute everything the model gives and keep it in `results`.

        Args:
            atoms: the structure; any subclass of `Atoms`.
            properties: what the caller is after; only looked at for an error that explains itself.

        Raises:
            StressNotDefinedError: stress of a molecule, or with a model that has none.
            ValueError: an unknown element, no atoms, or a result that is not finite.
            ExtrapolationError: see `max_extrapolations`.
        """
        self.results = {}  # after an error nothing old may pass for the new structure's
        if atoms is not None:
            self.atoms = atoms
        structure = self._last
        if structure is None or len(structure.numbers) == 0:
            raise ValueError("there are no atoms to calculate")
        if self.stress_key is None:
            structure = replace(structure, volume=0.0)
        if "stress" in properties:
            self._check_stress(structure)
        members = [self._to_ase(p) for p in self._predictions(structure)]
        results = members[0] if len(members) == 1 else _mean_and_spread(members)
        if not math.isfinite(results["energy"]):
            raise ValueError(
                f"the energy is {results['energy']}: atoms on top of each other, or a model whose"
                " training failed"
            )
        self.results = {**results, "free_energy": results["energy"]}

    def _predictions(self, structure: Geometry) -> list[Prediction]:
        atoms_per_chunk = self.atoms_per_chunk
        if atoms_per_chunk is None and self._can_chunk and len(structure.numbers) > _LARGEST_WHOLE:
            atoms_per_chunk = _ATOMS_PER_CHUNK
        if atoms_per_chunk is not None and len(structure.numbers) > atoms_per_chunk:
            return evaluate_in_chunks(
                self._evaluators, structure, self.cutoff, atoms_per_chunk, self.position_conversion
            )
        pairs = self.neighbors.update(structure.positions, structure.cell, structure.pbc)
        if self.position_conversion != 1.0:
            structure, pairs = self._to_model_unit(structure, pairs)
        return [p for evaluate in self._evaluators for p in evaluate(structure, pairs)]

    def _check_stress(self, structure: Geometry) -> None:
        if structure.volume:
            return
        if self.stress_key is None:
            raise StressNotDefinedError(
                "the model gives no stress (it needs a Forces module), or the calculator was made"
                " without (stress_key=None)"
            )
        raise StressNotDefinedError(
            "stress is not defined: the structure has no periodic cell with a volume (pbc"
            f" {structure.pbc.tolist()}, cell {structure.cell.tolist()}). For a slab give the"
            " missing lattice vector, `atoms.center(vacuum=..., axis=2)`; a molecule has no stress."
        )

    def _to_model_unit(self, structure: Geometry, pairs) -> tuple:
        factor = 1.0 / self.position_conversion
        scaled = Geometry(
            structure.numbers,
            structure.positions * factor,
            structure.cell * factor,
            structure.pbc,
            structure.volume * factor**3,
        )
        return scaled, pairs._replace(r_ij=pairs.r_ij * factor, offsets=pairs.offsets * factor)

    def _to_ase(self, p: Prediction) -> dict[str, float | np.ndarray]:
        unit = self.property_units
        results = {"energy": p.energy * unit["energy"], "forces": p.forces * unit["forces"]}
        if p.energies is not None:
            results["energies"] = p.energies * unit["energy"]
        if p.stress is not None:
            results["stress"] = p.stress.take(_VOIGT) * unit["stress"]
        return results

    def export_properties(self):
        """ASE's standard properties; the committee's spread is not one of them."""
        standard = [name for name in self.implemented_properties if name in self.results]
        return Properties({name: self.results[name] for name in standard})


def _mean_and_spread(
    predictions: Sequence[dict[str, float | np.ndarray]],
) -> dict[str, float | np.ndarray]:
    """Mean of each property over several models, and its spread as `<name>_std`.

    The spread is the standard deviation sqrt(mean_k (x_k - mean)^2) of every number: a measure of
    the model's uncertainty, not its error (all may be wrong in the same way).

    Args:
        predictions: results of each model; only properties that all of them have are kept.
    """
    results: dict[str, float | np.ndarray] = {}
    for name in [n for n in predictions[0] if all(n in p for p in predictions)]:
        values = np.stack([np.asarray(p[name]) for p in predictions])
        mean, spread = values.mean(axis=0), values.std(axis=0)
        results[name] = mean if values.ndim > 1 else float(mean)
        results[f"{name}_std"] = spread if values.ndim > 1 else float(spread)
    return results


def _structure(atoms: Atoms) -> Geometry:
    """A copy of all that a model sees of a structure."""
    cell, pbc = atoms.cell.array.copy(), atoms.pbc.copy()
    return Geometry(
        numbers=np.array(atoms.numbers, dtype=np.int64),
        positions=atoms.positions.copy(),
        cell=cell,
        pbc=pbc,
        volume=_volume(cell.tobytes(), pbc.tobytes()),
    )


@lru_cache(maxsize=8)
def _volume(cell: bytes, pbc: bytes) -> float:
    """Volume that a stress is defined by, Ang^3; in most simulations the same step after step."""
    return float(stress_volumes(np.frombuffer(cell).reshape(1, 3, 3), np.frombuffer(pbc, bool))[0])


def _usable(device: str | torch.device) -> torch.device:
    """The device, after a look whether it is there."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises all of them
        reason = str(error).split("\n")[0]
        raise ValueError(f"device {str(device)!r} cannot be used here: {reason}") from None
