"""Loss components: energy per atom, forces, stress.

Each is a SchNetPack `ModelOutput` of its own, computed without the weight of the rule,

    loss = sum_i w_i f(x_i) / sum_i w_i      (rmse: the square root of it, with f(x) = x^2)

over the residuals x of a batch: energies per atom in eV, force components in eV/Ang, six Voigt
components of the stress in eV/Ang^3, or all of them without unit when they are standardised. Sums
and the sums of weights are kept apart, so that means are exact (see `means`).
"""

import copy
import functools
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
from schnetpack_softadapt.training.standardize import Standardization
from schnetpack_softadapt.training.units import unit_factor

__all__ = ["REAL_KEY", "EnergyLoss", "ForcesLoss", "LossComponent", "StressLoss"]

#: (n_structures,) 0 for a structure that a sampler has repeated, which must not count
REAL_KEY = "_softadapt_real"

Batch = Mapping[str, torch.Tensor]


class LossComponent(ModelOutput):
    """Base of the components; use `EnergyLoss`, `ForcesLoss` or `StressLoss`.

    Rows of a batch weigh as `properties.structure_weight` and `forces_weight` say, where it has
    them. The weight w of a structure is that of labels with the spread 1 / sqrt(w): Huber losses
    turn linear at delta / sqrt(w), so that far structures, whose errors are large, stay in their
    square part.

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
        loss_weight: what the component counts, for rules whose prior it is; pieces share it by
            their numbers of labels.
        auto: leave the component out, with a warning, where the data or the model lack it; False:
            an error.
    """

    #: "energy", "forces" or "stress": what the property is, whatever its key; None: anything else
    kind: ClassVar[str | None]
    #: ASE unit of the property, as SchNetPack's units read it
    ase_unit: ClassVar[str | None]
    #: whether it has a loss, and a label to compare with
    is_trained = has_reference = True
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
        self.model_output: ModelOutput | None = None
        self.loss, self.delta = loss, float(delta)
        self.unit_factor = 1.0 if unit is None else unit_factor(self.ase_unit, unit)
        self.groups = None if groups is None else [str(g) for g in groups]
        self.group_ids: list[int] = []
        self.group_of: torch.Tensor | None = None
        self.to_ase = 1.0

    # ---------------------------------------------------------------- before training

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
        members = getattr(self, self.split)
        if not members:
            raise ValueError(
                f"component {self.component}: split={self.split} needs the list `{self.split}`"
            )
        names = members if self.split == "groups" else [chemical_symbols[z] for z in members]
        return {name: {self.split: [m]} for name, m in zip(names, members, strict=True)}

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

    def missing_in(self, available: Sequence[str], model_outputs: Sequence[str] | None) -> str:
        """Why this component cannot be computed; empty if it can."""
        if model_outputs is not None and self.name not in model_outputs:
            return f"the model does not predict {self.name} but {', '.join(sorted(model_outputs))}"
        if self.has_reference and self.target_property not in available:
            return f"the data have no {self.target_property} but {', '.join(available)}"
        return ""

    def labels(self, targets: TrainingTargets) -> float:
        """Labels per structure, mean over a training set; those that do not count are left out."""
        inside = np.ones(len(targets.n_atoms), dtype=bool)
        if self.groups is not None:
            index = targets.labels.get(properties.idx)
            group = targets.group if index is None else self.group_of.numpy()[index.reshape(-1)]
            inside = np.isin(group, self.group_ids)
        return float(self._labels(targets, inside).sum() / len(inside))

    def _labels(self, targets: TrainingTargets, inside: np.ndarray) -> np.ndarray:
        """Labels of each structure or atom, those of structures that are not `inside` zero."""
        return inside

    def settings(self) -> dict:
        names = ("loss", "delta", "unit_factor", "groups", "elements", "voigt")
        return {name: getattr(self, name) for name in names if hasattr(self, name)}

    def metric_names(self, subset: str) -> list[str]:
        """Logged names of the metrics that came with SchNetPack's output."""
        metrics = {} if self.model_output is None else self.model_output.metrics[subset]
        return [f"{subset}_{self.name}_{metric}" for metric in metrics]

    # ---------------------------------------------------------------- of a batch

    def error(self, pred: Batch, batch: Batch) -> torch.Tensor:
        """Prediction less reference in the units of the data, (rows, columns)."""
        raise NotImplementedError

    def scale(self, batch: Batch, standardization: Standardization) -> torch.Tensor:
        """What standardises the error when multiplied with it, (rows, 1)."""
        raise NotImplementedError

    def mask(self, batch: Batch) -> torch.Tensor | None:
        """(rows, 1) 1 where there is a reference that counts; None if everywhere."""
        return self._of_rows(batch, batch.get(REAL_KEY))

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """Mask, group and weights together, (rows, 1); None if all are 1."""
        in_group = None
        if self.groups is not None:
            in_group = _among(self._groups(batch), self.group_ids)
        of_structures = (batch.get(keys.structure_weight), in_group)
        return _product(self.mask(batch), *(self._of_rows(batch, w) for w in of_structures))

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
            standardization: standardise the residuals with it.
            error: what `error` gives, if it is known.
            raw_delta: `delta` is in the unit of raw residuals, though these are standardised.
        """
        error = self.error(pred, batch) if error is None else error
        residual, delta = self.scaled(error, batch, standardization), self.deltas(batch)
        if raw_delta:  # (rows, 1)
            per_raw = self.scale(batch, standardization) / (self.to_ase * self.unit_factor)
            delta = per_raw * delta
        return self.sum(residual, self.weights(batch), delta)

    def deltas(self, batch: Batch) -> float | torch.Tensor:
        """Where the Huber loss turns linear, (rows, 1) if structures have weights."""
        weight = batch.get(keys.structure_weight)
        if weight is None or self.loss != "huber":
            return self.delta
        # a weight of zero counts nowhere
        spread = weight.double().clamp_min(1e-12).rsqrt()
        return self.delta * self._of_rows(batch, spread)

    def sum(
        self,
        residual: torch.Tensor,
        weight: torch.Tensor | None,
        delta: float | torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, float | torch.Tensor]:
        """sum_i w_i f(x_i) and sum_i w_i over the rows and columns of a batch.

        With the Huber loss turning linear at `delta`, a number or (rows, 1); at that of this
        component if None.
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
        # the slope of the root at a mean of exactly zero is infinite
        return (mean + torch.finfo(torch.float32).tiny) ** 0.5

    def slope(self, mean: torch.Tensor) -> torch.Tensor | float:
        """Derivative of the loss by the mean of f."""
        return 0.5 / self.finish(mean) if self.loss == "rmse" else 1.0

    def calculate_loss(self, pred, target):
        """Of SchNetPack's task, which passes labels alone and not what a loss per atom needs."""
        raise ValueError(
            f"the loss component {self.component} is for"
            " task._target_=schnetpack_softadapt.SoftAdaptTask"
        )

    def _of_rows(self, batch: Batch, of_structures: torch.Tensor | None) -> torch.Tensor | None:
        """Values of structures (n_structures,) for each row, (rows, 1)."""
        return None if of_structures is None else of_structures.reshape(-1, 1)

    def _groups(self, batch: Batch) -> torch.Tensor:
        if keys.group in batch:
            return batch[keys.group].reshape(-1)
        index = batch[properties.idx]
        self.group_of = self.group_of.to(index.device)
        return self.group_of[index]


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
        kwargs: those of `LossComponent`.
    """

    kind = "forces"
    ase_unit = FORCES.unit
    splits = ("groups", "elements")
    n_columns = 3

    def __init__(
        self, name: str = properties.forces, elements: Sequence[str | int] | None = None, **kwargs
    ):
        super().__init__(name, **kwargs)
        self.elements = None if elements is None else [atomic_number(e) for e in elements]

    def error(self, pred, batch):
        return pred[self.name] - batch[self.target_property]

    def _labels(self, targets, inside):
        counts = np.repeat(inside, targets.n_atoms)
        if self.elements is not None:
            counts = counts & np.isin(targets.numbers, self.elements)
        return 3.0 * counts

    def scale(self, batch, standardization):
        return standardization.force_scale[batch[properties.Z]].reciprocal()[:, None]

    def weights(self, batch):
        factors = [super().weights(batch)]
        if keys.forces_weight in batch:
            factors.append(batch[keys.forces_weight].reshape(-1, 1))
        if self.elements is not None:
            factors.append(_among(batch[properties.Z], self.elements)[:, None])
        return _product(*factors)

    def _of_rows(self, batch, of_structures):
        if of_structures is None:
            return None
        return of_structures.reshape(-1)[batch[properties.idx_m]][:, None]


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
        # (9, 6), a product with which is faster than indexing; deliberately no buffer, DDP would
        # send it every step
        self.to_voigt = full_to_voigt(torch.eye(9).reshape(9, 3, 3))

    def _restrictions(self):
        if self.split == "groups":
            return super()._restrictions()
        names = self.voigt or VOIGT
        if self.split == "voigt":
            return {name: {"voigt": [name]} for name in names}
        normal = [name for name in names if name[0] == name[1]]
        shear = [name for name in names if name[0] != name[1]]
        return {k: {"voigt": v} for k, v in (("normal", normal), ("shear", shear)) if v}

    @property
    def n_columns(self) -> int:
        return len(self.voigt or VOIGT)

    @property
    def columns(self) -> list[int] | None:
        """Which of the six Voigt components count; None for all."""
        return None if self.voigt is None else [VOIGT.index(name) for name in self.voigt]

    def counted(self, values: torch.Tensor) -> torch.Tensor:
        """The Voigt components that count, (rows, n_columns), of all (rows, 6)."""
        return values if self.voigt is None else values[:, self.columns]

    def error(self, pred, batch):
        # reshape, not view: the stress of schnetpack.atomistic.Forces is not contiguous
        error = (pred[self.name] - batch[self.target_property]).reshape(-1, 9)
        if self.to_voigt.device != error.device or self.to_voigt.dtype != error.dtype:
            self.to_voigt = self.to_voigt.to(error)
        return error @ self.to_voigt

    def scaled(self, error, batch, standardization):
        return super().scaled(self.counted(error), batch, standardization)

    def _labels(self, targets, inside):
        return float(self.n_columns) * (inside & targets.stress_mask)

    def scale(self, batch, standardization):
        cell = batch[properties.cell].detach().reshape(-1, 3, 3)
        factor = volumes(cell) / (batch[properties.n_atoms].sqrt() * standardization.stress_scale)
        return factor[:, None]

    def mask(self, batch):
        known = batch.get(keys.stress_mask)
        return _product(super().mask(batch), None if known is None else known.reshape(-1, 1))


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


def _product(*factors: torch.Tensor | None) -> torch.Tensor | None:
    """Product in float64, None being one."""
    known = [factor.double() for factor in factors if factor is not None]
    return functools.reduce(torch.mul, known) if known else None


def _among(values: torch.Tensor, chosen: Sequence[int]) -> torch.Tensor:
    return functools.reduce(torch.logical_or, [values == number for number in chosen])
