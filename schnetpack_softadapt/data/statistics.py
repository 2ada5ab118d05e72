"""Targets of the training set, gathered once, and what is fitted to them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from schnetpack import properties
from schnetpack.data import AtomsDataModule

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.dataset import without_neighbors
from schnetpack_softadapt.data.ragged import RaggedSamples
from schnetpack_softadapt.neighbors.cells import volumes

__all__ = ["TrainingTargets", "composition_fit", "element_contributions", "training_targets"]


@dataclass(frozen=True)
class TrainingTargets:
    """Labels of the training structures as the loss sees them (after transforms), float64.

    S: structures, N: atoms of all of them.

    Attributes:
        elements: (n_elements,) atomic numbers that occur, ascending.
        compositions: (S, n_elements) atoms of each element.
        n_atoms: (S,)
        volumes: (S,) cell volumes in Ang^3, 0 without a cell.
        numbers: (N,) atomic numbers.
        energy: (S,) eV, or None if the data have none.
        forces: (N, 3) eV/Ang, or None.
        stress: (S, 3, 3) eV/Ang^3, or None; meaningless where `stress_mask` is False.
        stress_mask: (S,) bool, or None without stress.
        group: (S,) index of the group, all 0 without groups.
        labels: every other entry of the samples by key, all structures joined along the first axis.
    """

    elements: np.ndarray
    compositions: np.ndarray
    n_atoms: np.ndarray
    volumes: np.ndarray
    numbers: np.ndarray
    group: np.ndarray
    energy: np.ndarray | None = None
    forces: np.ndarray | None = None
    stress: np.ndarray | None = None
    stress_mask: np.ndarray | None = None
    labels: Mapping[str, np.ndarray] = field(default_factory=dict)

    @property
    def weight(self) -> np.ndarray:
        """(S,) weights of the structures; all 1 where the data have none."""
        given = self.labels.get(keys.structure_weight)
        return np.ones(len(self.n_atoms)) if given is None else given.reshape(-1).astype(float)

    @property
    def atom_weight(self) -> np.ndarray:
        """(N,) weights of the forces on the atoms."""
        given = self.labels.get(keys.forces_weight)
        of_atoms = np.ones(len(self.numbers)) if given is None else given.reshape(-1).astype(float)
        return of_atoms * np.repeat(self.weight, self.n_atoms)

    def named(
        self,
        energy: str = properties.energy,
        forces: str = properties.forces,
        stress: str = properties.stress,
    ) -> "TrainingTargets":
        """The same structures with the labels of other keys; None where there are none."""
        mask = self.labels.get(keys.stress_mask)
        stresses = self._joined(stress, (-1, 3, 3))
        if stresses is not None:
            n = len(stresses)
            mask = np.ones(n, dtype=bool) if mask is None else mask.reshape(-1) > 0
        return replace(
            self,
            energy=self._joined(energy, (-1,)),
            forces=self._joined(forces, (-1, 3)),
            stress=stresses,
            stress_mask=mask if stresses is not None else None,
        )

    def _joined(self, key: str, shape: tuple[int, ...]) -> np.ndarray | None:
        values = self.labels.get(key)
        return None if values is None else values.astype(np.float64).reshape(shape)

    @classmethod
    def from_dataset(cls, dataset) -> "TrainingTargets":
        """Gather from any data set of SchNetPack; neighbour lists are not made.

        Labels of energy, forces and stress are those of SchNetPack's keys; see `named` for others.

        Raises:
            ValueError: the set is empty.
        """
        if len(dataset) == 0:
            raise ValueError("the training set is empty")
        light = without_neighbors(dataset)
        samples = RaggedSamples(light[k] for k in range(len(light)))
        labels = {key: samples.values(key) for key in samples.keys}
        numbers, n_atoms = labels[properties.Z], labels[properties.n_atoms]
        elements, element_of = np.unique(numbers, return_inverse=True)
        compositions = np.zeros((len(n_atoms), len(elements)))
        np.add.at(compositions, (np.repeat(np.arange(len(n_atoms)), n_atoms), element_of), 1.0)
        group = labels.get(keys.group, np.zeros(len(n_atoms)))
        return cls(
            elements=elements,
            compositions=compositions,
            n_atoms=n_atoms,
            volumes=volumes(labels[properties.cell].reshape(-1, 3, 3).astype(np.float64)),
            numbers=numbers,
            group=group.reshape(-1).astype(int),
            labels=labels,
        ).named()


def training_targets(datamodule: AtomsDataModule) -> TrainingTargets:
    """Targets of a data module's training set, gathered at the first call and kept there."""
    dataset = datamodule.train_dataset
    if dataset is None:
        raise RuntimeError("the data module is not set up; call datamodule.setup() first")
    known = getattr(datamodule, "_training_targets", None)
    if known is None or known[0] is not dataset:
        known = (dataset, TrainingTargets.from_dataset(dataset))
        datamodule._training_targets = known
    return known[1]


def composition_fit(targets: TrainingTargets) -> tuple[np.ndarray, np.ndarray]:
    """Energies per element that explain the training energies best.

    Minimises sum_s w_s ((E_s - sum_Z n_sZ mu_Z) / n_s)^2, errors per atom as in the loss, with the
    weights w of the structures. Compositions are often linearly dependent (all structures MoTe2, or
    one element only): the solution of minimum norm is taken, by singular values, where normal
    equations would be singular.

    Returns:
        atomic numbers (n_elements,) and energies mu (n_elements,) in eV.

    Raises:
        ValueError: the training set has no energies.
    """
    if targets.energy is None:
        raise ValueError("the training set has no energies to fit elements to")
    return targets.elements, _per_element(targets, targets.energy / targets.n_atoms)


def element_contributions(
    targets: TrainingTargets, property: str, is_extensive: bool
) -> torch.Tensor:
    """What each element contributes to a property, by a minimum-norm fit; (100,) float64.

    The property is a sum over atoms if `is_extensive`, else their mean. Elements that do not occur
    contribute 0.
    """
    values = targets.labels[property].astype(np.float64).reshape(-1)
    values = values / targets.n_atoms if is_extensive else values
    result = torch.zeros(100, dtype=torch.float64)
    result[torch.from_numpy(targets.elements)] = torch.from_numpy(_per_element(targets, values))
    return result


def _per_element(targets: TrainingTargets, per_atom: np.ndarray) -> np.ndarray:
    """Solution (n_elements,) of minimum norm for values (S,) that are means over atoms."""
    root = np.sqrt(targets.weight)
    matrix = targets.compositions / targets.n_atoms[:, None]
    return np.linalg.lstsq(matrix * root[:, None], per_atom * root, rcond=None)[0]
