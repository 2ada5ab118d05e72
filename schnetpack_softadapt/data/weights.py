"""Weights of structures: by how far they are from equilibrium, or by group.

Sets for hot or dense matter hold structures on purpose that are electronvolts per atom above the
ground state. Their errors are large however well they are fitted, and so are the spreads of such
labels: unweighted, the structures that simulations visit count next to nothing. After the schemes
of pacemaker (A. Bochkarev et al., Phys. Rev. Mater. 6, 013804, 2022), with the hull of the training
set:

- "uniform": every structure counts alike in the forces, whatever its number of atoms.
- "energy": a structure e above the hull weighs 1 / (1 + e / 1 eV/atom)^2 in all losses. The
  weights 1 / (1 + |F|^2) of single forces that pacemaker has beside are left out: with them all
  errors were larger.
- "auto": "energy" where more than one in a hundred of the training structures is more than
  2 eV/atom above the hull, which hot liquids are not; otherwise no weights.

Or given: what the structures of a group weigh.
"""

from collections.abc import Mapping

import numpy as np
from scipy.spatial import ConvexHull

from schnetpack_softadapt.data.statistics import TrainingTargets

__all__ = ["SCHEMES", "energy_above_hull", "weights_of", "weights_of_groups"]

SCHEMES = ("uniform", "energy", "auto")
ENERGY_EV = 1.0  # per atom
FAR_EV, MANY = 2.0, 0.01  # per atom; of the training structures


def weights_of(
    scheme: str, targets: TrainingTargets, train: np.ndarray, ev: float = 1.0
) -> tuple[np.ndarray, np.ndarray] | None:
    """Weights of structures (S,) and of the forces on atoms (N,), those of a training set mean 1.

    None if "auto" sees no need.

    Args:
        scheme: one of `SCHEMES`.
        targets: all structures.
        train: (n,) rows of the training structures, which span the hull.
        ev: the unit of their energies.

    Raises:
        ValueError: another scheme; "energy" without energies.
    """
    if scheme == "auto" and targets.energy is None:
        return None
    structure, forces = np.ones(len(targets.n_atoms)), np.ones(len(targets.numbers))
    if scheme == "uniform":
        in_train = np.repeat(np.isin(np.arange(len(structure)), train), targets.n_atoms)
        forces /= np.repeat(targets.n_atoms, targets.n_atoms)
        return structure, forces / forces[in_train].mean()
    if targets.energy is None:
        raise ValueError("data.weights=energy, but the data have no energies")
    fractions = targets.compositions / targets.n_atoms[:, None]
    above = energy_above_hull(fractions, ev * targets.energy / targets.n_atoms, train)
    if scheme == "auto" and not np.mean(above[train] > FAR_EV) > MANY:
        return None
    structure = 1.0 / (1.0 + above.clip(min=0) / ENERGY_EV) ** 2
    return structure / structure[train].mean(), forces


def weights_of_groups(
    weights: Mapping[str, float], groups: np.ndarray, train: np.ndarray
) -> np.ndarray:
    """Weights of structures (S,) by the groups they belong to, those of a training set mean 1.

    Args:
        weights: by name of the group; 1 for those that are not named.
        groups: (S,) name of the group of each structure.
        train: (n,) rows of the training structures.

    Raises:
        ValueError: a group that the data do not have; a weight that is none.
    """
    if unknown := sorted(set(weights) - set(groups)):
        known = ", ".join(sorted(set(groups) - {""})) or "no groups"
        raise ValueError(f"data.weights names {', '.join(unknown)}, but the data have {known}")
    try:
        found = np.array([weights.get(name, 1.0) for name in groups], dtype=float)
    except (TypeError, ValueError) as error:
        raise ValueError(f"data.weights={dict(weights)}: {error}") from error
    if not (np.isfinite(found).all() and found.min() >= 0 and found[train].max() > 0):
        raise ValueError("data.weights are finite and not negative, and some training one is not 0")
    return found / found[train].mean()


def energy_above_hull(fractions: np.ndarray, energies: np.ndarray, of: np.ndarray) -> np.ndarray:
    """Distance (S,) to the lower convex hull of energies over compositions; less than 0 below it.

    With one composition only, the distance to the lowest energy. Hulls in many dimensions have too
    many facets: of more than five independent elements, the energies of the elements are fitted,
    and the lowest energy above the fit counts for all compositions.

    Args:
        fractions: (S, n_elements) of atoms of each element.
        energies: (S,) per atom.
        of: (n,) rows of the structures that make the hull.
    """
    mean = fractions[of].mean(axis=0)
    # coordinates of compositions, as many as are independent: all MoTe2 have none
    _, sizes, axes = np.linalg.svd(fractions[of] - mean, full_matrices=False)
    x = (fractions - mean) @ axes[sizes > 1e-8 * max(1.0, np.sqrt(len(of)))].T
    if x.shape[1] == 0:
        return energies - energies[of].min()
    if x.shape[1] > 4:
        fit = np.linalg.lstsq(fractions[of], energies[of], rcond=None)[0]
        energies = energies - fractions @ fit
        return energies - energies[of].min()
    # the lowest energy of each composition; rounding makes no new ones
    _, which = np.unique(np.round(x[of], 9), axis=0, return_inverse=True)
    order = np.argsort(energies[of], kind="stable")
    _, first = np.unique(which.reshape(-1)[order], return_index=True)
    low = of[order[first]]
    # with a point above all others there are facets, however few compositions
    top = np.append(x[low].mean(axis=0), energies[low].max() + 1.0)
    hull = ConvexHull(
        np.vstack([np.column_stack([x[low], energies[low]]), top]), qhull_options="QJ"
    )
    planes = hull.equations[hull.equations[:, -2] < -1e-9]  # normals that point down
    lower = -(x @ planes[:, :-2].T + planes[:, -1]) / planes[:, -2]
    return energies - lower.max(axis=1)
