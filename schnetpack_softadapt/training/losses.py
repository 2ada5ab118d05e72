"""Loss components: energy per atom, forces, stress.

Each is a SchNetPack `ModelOutput` of its own and is computed unweighted, once per step, for

    loss = sum_i w_i f(x_i) / sum_i w_i      (rmse: the square root of it, with f(x) = x^2)

over the residuals x of a batch: energies per atom in eV, force components in eV/Ang, six Voigt
components of the stress in eV/Ang^3, or all of them without unit when they are standardised. Sums
and the sums of weights are kept apart, so that means over an epoch, over ranks and over batches of
unequal size are exact. Weights of the components belong to the task, not here.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from ase.data import chemical_symbols
from schnetpack import properties
from schnetpack.task import ModelOutput

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.statistics import TrainingTargets
from schnetpack_softadapt.descriptors.elements import atomic_number
from schnetpack_softadapt.neighbors.cells import volumes
from schnetpack_softadapt.quantities import ENERGY, FORCES, STRESS, VOIGT, full_to_voigt
from schnetpack_softadapt.training.ranks import REAL_KEY
from schnetpack_softadapt.training.standardize import Standardization
from schnetpack_softadapt.training.units import unit_factor

__all__ = ["EnergyLoss", "ForcesLoss", "LossComponent", "StressLoss"]

Batch = Mapping[str, torch.Tensor]


class LossComponent(ModelOutput):
    """Base of the components; use `EnergyLoss`, `ForcesLoss` or `StressLoss`.

    Args:
        name: key of the predicted property.
        component: name of the component in logs and for weighting rules; `name` if None. Two
            components of one property need two names.
        target_property: key of the reference, `name` if None.
        loss: "mse", "mae", "huber" or "rmse".
        delta: where the Huber loss goes from square to linear, in the unit of the residuals that
            are trained on: `unit`, or none where they are standardised.
        unit: unit of residuals that are not standardised, as SchNetPack's units read it (such as
            "meV", "kcal/mol/Ang", "GPa"); ASE units if None.
        groups: names of structure groups this component is restricted to (see
            `properties.group`); all structures if None.
        split: train a component, with a weight of its own, for each piece of this one: "groups",
            "elements" (forces), "normal_shear" or "voigt" (stress); see `pieces`.
        structure_weight: batch key (n_structures,) of weights of structures, used where it exists.
        loss_weight: what the component counts, for rules whose prior it is; pieces share it by
            their numbers of labels.
        auto: leave the component out, with a warning, where the data or the model lack it; False:
            an error.
    """

    #: "energy", "forces" or "stress": what the property is, whatever its key; None: anything else
    kind: ClassVar[str | None]
    #: ASE unit of the property, as SchNetPack's units read it
    ase_unit: ClassVar[str | None]
    #: whether it has a loss
    is_trained = True
    #: values of `split`
    splits: ClassVar[tuple[str, ...]] = ("groups",)
    #: residuals of a row: 1 for an energy, 3 for the force on an atom
    n_columns = 1

    def __init__(
        self,
        name: str,
        component: str | None = None,
        target_property: str | None = None,
        loss: str = "mse",
        delta: float = 1.0,
        unit: str | None = None,
        groups: Sequence[str] | None = None,
        split: str | None = None,
        structure_weight: str | None = keys.structure_weight,
        loss_weight: float = 1.0,
        auto: bool = False,
    ):
        # an empty dict: ModelOutput(metrics=None) fails upstream
        super().__init__(
            name=name, target_property=target_property, loss_weight=loss_weight, metrics={}
        )
        if not (math.isfinite(loss_weight) and loss_weight >= 0):
            raise ValueError(f"loss_weight is finite and not negative, not {loss_weight}")
        if loss not in _FUNCTIONS:
            raise ValueError(f"loss is one of {', '.join(_FUNCTIONS)}, not {loss!r}")
        if not delta > 0:
            raise ValueError(f"delta must be positive, not {delta}")
        if split not in (None, *self.splits):
            raise ValueError(f"split is one of {', '.join(self.splits)}, not {split!r}")
        self.component, self.auto, self.split = component or name, auto, split
        #: name of the component that this one is a piece of; its own if it is whole
        self.whole = self.component
        #: SchNetPack's output that this component was made of, with its metrics
        self.output: ModelOutput | None = None
        self.loss, self.delta = loss, float(delta)
        self.unit_factor = 1.0 if unit is None else unit_factor(self.ase_unit, unit)
        self.groups = None if groups is None else [str(g) for g in groups]
        self.structure_weight = structure_weight
        self.group_ids: list[int] = []
        self.group_of: torch.Tensor | None = None
        self.to_ase = 1.0

    def pieces(self) -> list["LossComponent"]:
        """The components that this one is split into, `{component}_{piece}`; itself if it is not.

        Raises:
            ValueError: the names of the groups or elements are not given.
        """
        if self.split is None:
            return [self]
        made = []
        for piece, restriction in self._restrictions().items():
            made.append(copy.deepcopy(self))
            vars(made[-1]).update(component=f"{self.component}_{piece}", split=None, **restriction)
        return made

    def _restrictions(self) -> dict[str, dict]:
        """Attributes of each piece, by the name of the piece."""
        names = getattr(self, self.split)
        if not names:
            raise ValueError(
                f"component {self.component}: split={self.split} needs the list `{self.split}`"
            )
        return {self._name_of(name): {self.split: [name]} for name in names}

    def _name_of(self, member) -> str:
        return str(member)

    def bind(self, dataset) -> None:
        """Take units and structure groups from a SchNetPack dataset.

        Raises:
            ValueError: the dataset has no groups, or not the ones asked for; an unknown unit.
        """
        unit = dict(dataset.units).get(self.target_property)
        self.to_ase = 1.0 if unit is None else unit_factor(unit, self.ase_unit)
        if self.groups is None:
            return
        metadata = dataset.metadata
        names, ids = metadata.get("group_names"), metadata.get("groups_ids", {}).get(keys.group)
        if not names or ids is None:
            raise ValueError(
                f"component {self.component} is restricted to the groups {self.groups}, but the"
                " database has no structure groups; import it with groups or leave `groups` out"
            )
        unknown = [g for g in self.groups if g not in names]
        if unknown:
            raise ValueError(
                f"component {self.component}: the database has no group {', '.join(unknown)}; its"
                f" groups are {', '.join(names)}"
            )
        self.group_ids = [names.index(g) for g in self.groups]
        # looked up by the index of the structure: SchNetPack's datamodule does not load groups
        self.group_of = torch.as_tensor(ids, dtype=torch.long)

    def labels(self, targets: TrainingTargets) -> float:
        """Labels per structure, mean over a training set; those that do not count are left out."""
        inside = np.ones(len(targets.n_atoms), dtype=bool)
        if self.groups is not None:
            index = targets.labels.get(properties.idx)
            group = targets.group if index is None else self.group_of.numpy()[index.reshape(-1)]
            inside = np.isin(group, self.group_ids)
        return float(self._labels(targets, inside).sum() / len(inside))

    def _labels(self, targets: TrainingTargets, inside: np.ndarray) -> np.ndarray:
        """Labels of each structure that counts, (n_structures,) or fewer."""
        raise NotImplementedError

    def settings(self) -> dict:
        """What its loss is of, in plain values."""
        names = ("loss", "delta", "unit_factor", "groups", "elements", "voigt")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def missing_in(self, available: Sequence[str], model_outputs: Sequence[str] | None) -> str:
        """Why this component cannot be computed; empty if it can."""
        if model_outputs is not None and self.name not in model_outputs:
            return f"the model does not predict {self.name} but {', '.join(sorted(model_outputs))}"
        if self.target_property not in available:
            return f"the data have no {self.target_property} but {', '.join(available)}"
        return ""

    def error(self, pred: Batch, batch: Batch) -> torch.Tensor:
        """Prediction less reference in the units of the data, (rows, columns)."""
        raise NotImplementedError

    def scale(self, batch: Batch, standardization: Standardization) -> torch.Tensor:
        """What standardises the error when multiplied with it, (rows, 1)."""
        raise NotImplementedError

    def mask(self, batch: Batch) -> torch.Tensor | None:
        """(rows, 1) 1 where there is a reference that counts; None if everywhere."""
        mask = self._has_reference(batch)
        if REAL_KEY in batch:
            mask = _times(mask, self._of_row(batch[REAL_KEY], batch))
        return mask

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """Mask, group and weights together, (rows, 1); None if all are 1."""
        weight = self.mask(batch)
        if self.structure_weight is not None and self.structure_weight in batch:
            weight = _times(weight, self._of_row(batch[self.structure_weight].reshape(-1), batch))
        if self.groups is not None:
            weight = _times(weight, self._of_row(self._in_group(batch), batch))
        return weight

    def residuals(
        self, pred: Batch, batch: Batch, standardization: Standardization | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Residuals (rows, columns) and their weights (rows, 1), with their graph.

        Standardised if a standardisation is given, else in the unit of this component. The MSE is
        sum(w x^2) / sum(w): sqrt(w) x are the residuals that a least-squares optimizer wants.
        """
        return self.scaled(self.error(pred, batch), batch, standardization), self.weights(batch)

    def scaled(
        self, error: torch.Tensor, batch: Batch, standardization: Standardization | None
    ) -> torch.Tensor:
        """An error (rows, columns) as residual."""
        if standardization is None:
            return error * (self.to_ase * self.unit_factor)
        return error * self.scale(batch, standardization).to(error.dtype)

    def terms(
        self,
        pred: Batch,
        batch: Batch,
        standardization: Standardization | None = None,
        error: torch.Tensor | None = None,
        raw_delta: bool = False,
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """Sum of the loss over a batch and its sum of weights, see `sum`.

        Args:
            pred: what the model predicted.
            batch: the references.
            standardization: standardise the residuals with it.
            error: what `error` gives, if it is known.
            raw_delta: `delta` is in the unit of raw residuals, though these are standardised.
        """
        error = self.error(pred, batch) if error is None else error
        delta = self.standardized_delta(batch, standardization) if raw_delta else None
        residual = self.scaled(error, batch, standardization)
        return self.sum(residual, self.weights(batch), delta)

    def standardized_delta(self, batch: Batch, standardization: Standardization) -> torch.Tensor:
        """`delta` of a task that trains on raw residuals, for standardised ones, (rows, 1)."""
        return self.scale(batch, standardization) * (self.delta / (self.to_ase * self.unit_factor))

    def sum(
        self,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        delta: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """sum_i w_i f(x_i) and sum_i w_i over the rows and columns of a batch.

        With the Huber loss turning linear at `delta` (rows, 1); at that of this component if None.
        """
        function = _FUNCTIONS[self.loss]
        delta = self.delta if delta is None else delta
        if weight is None:
            return function(residual, delta).sum(), float(residual.numel())
        # where, not only a product: nan, as of a stress that is not defined, times 0 is nan
        value = function(torch.where(weight > 0, residual, 0.0), delta) * weight
        return value.sum(), weight.sum() * residual.shape[1]

    def finish(self, mean):
        """The loss from the mean of f: the square root for rmse, else the mean itself."""
        if self.loss != "rmse":
            return mean
        if isinstance(mean, torch.Tensor):
            # the slope of the root at a mean of exactly zero is infinite
            return (mean + torch.finfo(mean.dtype).tiny).sqrt()
        return mean**0.5

    def slope(self, mean: torch.Tensor) -> torch.Tensor | float:
        """Derivative of the loss by the mean of f."""
        return 0.5 / self.finish(mean) if self.loss == "rmse" else 1.0

    def calculate_loss(self, pred, target):
        """The unweighted loss, not standardised, of a batch; for tasks other than ours.

        Raises:
            ValueError: `target` is not the whole batch, which SchNetPack's own task does not pass.
        """
        try:
            residual, weight = self.residuals(pred, target)
        except KeyError as error:
            raise ValueError(
                f"the {self.component} loss needs the batch key {error}; use it with"
                " schnetpack_softadapt.training.task.SoftAdaptTask"
            ) from error
        total, count = self.sum(residual, weight)
        return self.finish(total / max(float(count), 1e-300)) * self.loss_weight

    def _has_reference(self, batch: Batch) -> torch.Tensor | None:
        return None

    def _of_row(self, of_structure: torch.Tensor, batch: Batch) -> torch.Tensor:
        return of_structure[:, None]

    def _in_group(self, batch: Batch) -> torch.Tensor:
        if keys.group in batch:
            group = batch[keys.group].reshape(-1)
        else:
            index = batch[properties.idx]
            if self.group_of.device != index.device:
                self.group_of = self.group_of.to(index.device)
            group = self.group_of[index]
        inside = group == self.group_ids[0]
        for number in self.group_ids[1:]:
            inside = inside | (group == number)
        return inside


class EnergyLoss(LossComponent):
    """Energy per atom, (E_pred - E_ref) / N; standardised, (E_pred - E_ref) / sqrt(sum sigma^2)."""

    kind = "energy"
    ase_unit = ENERGY.unit

    def __init__(self, name: str = properties.energy, **kwargs):
        super().__init__(name, **kwargs)

    def error(self, pred, batch):
        # float64 before the difference, or a float32 total energy loses the error in its digits
        energy = pred[self.name].reshape(-1).double()
        reference = batch[self.target_property].reshape(-1).double()
        return ((energy - reference) / batch[properties.n_atoms])[:, None]

    def _labels(self, targets, inside):
        return inside

    def scale(self, batch, standardization):
        n_atoms = batch[properties.n_atoms]
        spread = standardization.energy_spread(
            batch[properties.Z], batch[properties.idx_m], len(n_atoms)
        )
        return (n_atoms / spread)[:, None]


class ForcesLoss(LossComponent):
    """Force components; standardised by the spread of forces on each element.

    Args:
        elements: symbols (or atomic numbers) of the atoms whose forces count; all if None.
        atom_weight: batch key (n_atoms, 1) of weights of atoms, used where it exists.
        kwargs: those of `LossComponent`.
    """

    kind = "forces"
    ase_unit = FORCES.unit
    splits = ("groups", "elements")
    n_columns = 3

    def __init__(
        self,
        name: str = properties.forces,
        elements: Sequence[str | int] | None = None,
        atom_weight: str | None = keys.forces_weight,
        **kwargs,
    ):
        super().__init__(name, **kwargs)
        self.elements = None if elements is None else [atomic_number(e) for e in elements]
        self.atom_weight = atom_weight

    def _name_of(self, member):
        return chemical_symbols[member] if self.split == "elements" else super()._name_of(member)

    def error(self, pred, batch):
        return pred[self.name] - batch[self.target_property]

    def _labels(self, targets, inside):
        counts = inside[np.repeat(np.arange(len(inside)), targets.n_atoms)]
        if self.elements is not None:
            counts = counts & np.isin(targets.numbers, self.elements)
        return 3.0 * counts

    def scale(self, batch, standardization):
        return standardization.force_scale[batch[properties.Z]].reciprocal()[:, None]

    def weights(self, batch):
        weight = super().weights(batch)
        if self.atom_weight is not None and self.atom_weight in batch:
            weight = _times(weight, batch[self.atom_weight].reshape(-1, 1))
        if self.elements is not None:
            numbers = batch[properties.Z]
            inside = numbers == self.elements[0]
            for number in self.elements[1:]:
                inside = inside | (numbers == number)
            weight = _times(weight, inside[:, None])
        return weight

    def _of_row(self, of_structure, batch):
        return of_structure[batch[properties.idx_m]][:, None]


class StressLoss(LossComponent):
    """Six Voigt components of the stress; standardised as virial, V sigma / (sqrt(N) tau).

    Structures whose `stress_mask` is 0 do not count. Elastic constants of shear, such as C44, may
    want the shear stresses weighted apart: `split="normal_shear"`, or "voigt" for each of the six.

    Args:
        voigt: the components that count, among xx, yy, zz, yz, xz, xy; all if None.
        kwargs: those of `LossComponent`.
    """

    kind = "stress"
    ase_unit = STRESS.unit
    splits = ("groups", "normal_shear", "voigt")

    def __init__(self, name: str = properties.stress, voigt: Sequence[str] | None = None, **kwargs):
        super().__init__(name, **kwargs)
        if voigt is not None and (
            not set(voigt) <= set(VOIGT) or not 0 < len(set(voigt)) == len(voigt)
        ):
            raise ValueError(
                f"voigt names different components among {', '.join(VOIGT)}, not {voigt}"
            )
        self.voigt = None if voigt is None else list(voigt)

    def error(self, pred, batch):
        # reshape, not view: the stress of schnetpack.atomistic.Forces is not contiguous
        return full_to_voigt((pred[self.name] - batch[self.target_property]).reshape(-1, 3, 3))

    @property
    def n_columns(self) -> int:
        """Number of Voigt components that count."""
        return len(VOIGT if self.voigt is None else self.voigt)

    def counted(self, values: torch.Tensor) -> torch.Tensor:
        """The Voigt components that count, (rows, n_columns, ...), of all (rows, 6, ...)."""
        if self.voigt is None:
            return values
        return values[:, [VOIGT.index(name) for name in self.voigt]]

    def scaled(self, error, batch, standardization):
        return super().scaled(self.counted(error), batch, standardization)

    def _restrictions(self):
        if self.split == "groups":
            return super()._restrictions()
        names = self.voigt or VOIGT
        if self.split == "voigt":
            return {name: {"voigt": [name]} for name in names}
        normal = [name for name in names if name[0] == name[1]]
        shear = [name for name in names if name[0] != name[1]]
        return {k: {"voigt": v} for k, v in (("normal", normal), ("shear", shear)) if v}

    def _labels(self, targets, inside):
        return float(self.n_columns) * (inside & targets.stress_mask)

    def scale(self, batch, standardization):
        cell = batch[properties.cell].detach().reshape(-1, 3, 3)
        factor = volumes(cell) / (batch[properties.n_atoms].sqrt() * standardization.stress_scale)
        return factor[:, None]

    def _has_reference(self, batch):
        if keys.stress_mask not in batch:
            return None
        return batch[keys.stress_mask].reshape(-1, 1)


def _huber(x: torch.Tensor, delta: float | torch.Tensor) -> torch.Tensor:
    size = x.abs()
    square = size.clamp(max=delta)
    return square * (size - 0.5 * square)


_FUNCTIONS: dict[str, Callable[[torch.Tensor, float | torch.Tensor], torch.Tensor]] = {
    "mse": lambda x, delta: x.square(),
    "mae": lambda x, delta: x.abs(),
    "huber": _huber,
    "rmse": lambda x, delta: x.square(),
}


def _times(weight: torch.Tensor | None, factor: torch.Tensor) -> torch.Tensor:
    factor = factor.double()
    return factor if weight is None else weight * factor
