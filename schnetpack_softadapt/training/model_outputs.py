"""SchNetPack's own `ModelOutput`s as loss components, so that an experiment needs no rewriting."""

from collections.abc import Iterable, Mapping

import numpy as np
import torch
from schnetpack import properties
from schnetpack.task import ModelOutput, UnsupervisedModelOutput
from torch import nn

from schnetpack_softadapt.data.statistics import TrainingTargets
from schnetpack_softadapt.model.outputs import property_kinds
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, LossComponent, StressLoss

__all__ = ["ModelOutputLoss", "components_of", "constrained"]

#: SchNetPack's losses that our components have too
_KNOWN = {nn.MSELoss: "mse", nn.L1Loss: "mae"}
_COMPONENTS = {c.kind: c for c in (EnergyLoss, ForcesLoss, StressLoss)}


def components_of(outputs: Iterable[ModelOutput], model: nn.Module) -> list[LossComponent]:
    """Loss components for outputs of a task, those that are to be split in their pieces.

    Energy, forces and stress with a mean squared or mean absolute loss become ours (per atom, with
    masks); every other output is a `ModelOutputLoss`. `loss_weight` is kept for the rule's prior.

    Raises:
        ValueError: something that is no `ModelOutput`.
    """
    kinds, components = property_kinds(model), []
    for output in outputs:
        if isinstance(output, LossComponent):
            components += output.pieces()
        elif isinstance(output, ModelOutput):
            components.append(_component(output, kinds.get(output.name)))
        else:
            raise ValueError(
                f"task.outputs holds a {type(output).__name__}; an output is a ModelOutput of"
                " SchNetPack, or EnergyLoss, ForcesLoss, StressLoss of"
                " schnetpack_softadapt.training.losses"
            )
    return components


def _component(output: ModelOutput, kind: str | None) -> LossComponent:
    loss = _KNOWN.get(type(output.loss_fn))
    ours = kind and loss and output.loss_fn.reduction == "mean" and output.loss_weight > 0
    if not ours or output.constraints or isinstance(output, UnsupervisedModelOutput):
        return ModelOutputLoss(output)
    component = _COMPONENTS[kind](
        output.name,
        target_property=output.target_property,
        loss=loss,
        loss_weight=output.loss_weight,
    )
    component.model_output = output
    return component


def constrained(
    components: Iterable[LossComponent],
    pred: Mapping[str, torch.Tensor],
    batch: Mapping[str, torch.Tensor],
) -> tuple[Mapping[str, torch.Tensor], Mapping[str, torch.Tensor]]:
    """Predictions and references after the constraints of all outputs, as SchNetPack applies them.

    Constraints take entries out of what they are given; that is a copy here.
    """
    for c in components:
        for constraint in () if c.model_output is None else c.model_output.constraints:
            pred, batch = constraint(dict(pred), dict(batch), c.model_output)
    return pred, batch


class ModelOutputLoss(LossComponent):
    """An output of SchNetPack that is no plain energy, forces or stress, with its own `loss_fn`.

    Raw, the loss is the output's own. Standardised, prediction and reference are divided by the
    spread of the reference in the training set before `loss_fn` sees them; integers and outputs
    without a reference are left as they are. An output without `loss_fn`, or with `loss_weight` 0,
    is measured by its metrics and not trained.
    """

    kind = None
    ase_unit = None

    def __init__(self, output: ModelOutput):
        super().__init__(
            output.name, target_property=output.target_property, loss_weight=output.loss_weight
        )
        self.loss = type(output.loss_fn).__name__
        self.model_output = output
        self.has_reference = not isinstance(output, UnsupervisedModelOutput)
        self.register_buffer("target_spread", torch.ones((), dtype=torch.float64))

    @property
    def is_trained(self) -> bool:
        return self.model_output.loss_fn is not None and self.loss_weight > 0

    def bind(self, dataset) -> None:
        """Nothing to take from the data set."""

    def fit(self, targets: TrainingTargets) -> None:
        values = targets.labels.get(self.target_property)
        if self.has_reference and values is not None and np.issubdtype(values.dtype, np.floating):
            spread = float(np.std(values.astype(np.float64)))
            self.target_spread.fill_(spread if spread > 0 else 1.0)

    def labels(self, targets):
        if not self.has_reference:
            return 1.0
        entries = {key: torch.from_numpy(np.asarray(v)) for key, v in targets.labels.items()}
        pred = {self.name: entries[self.target_property]}
        _, entries = constrained([self], pred, entries)
        return entries[self.target_property].numel() / len(targets.n_atoms)

    def terms(self, pred, batch, standardization=None, error=None, raw_delta=False):
        """Sum and count; the loss of the batch counts as often as it has labels.

        Predictions and references after constraints, see `constrained`. The mean over an epoch is
        so that over its labels; a structure repeated to fill a rank counts here.
        """
        arguments = [pred[self.name]]
        count = len(batch[properties.n_atoms])
        if self.has_reference:
            arguments.append(batch[self.target_property])
            count = arguments[1].numel()
        if count == 0:
            return arguments[0].sum() * 0.0, 0.0
        if standardization is not None:
            arguments = [
                x / self.target_spread.to(x.dtype) if x.is_floating_point() else x
                for x in arguments
            ]
        return self.model_output.loss_fn(*arguments) * count, float(count)

    def settings(self) -> dict:
        return {"loss": repr(self.model_output.loss_fn)}
