"""Symmetry functions by plain loops over atoms, and the layouts and structures of the tests."""

import math
from itertools import combinations

import numpy as np
import torch
from n2p2_reference import pair_list

from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

__all__ = [
    "assert_columns_close",
    "brute_force",
    "by_positions",
    "by_strain",
    "mixed_layout",
    "pair_jacobian",
    "perturbed_crystal",
    "random_cluster",
]


def _cut(name: str, r: float, cutoff: float) -> float:
    x = r / cutoff
    if x >= 1:
        return 0.0
    y = 1 - x  # each polynomial is one minus itself at the mirrored argument
    return {
        "cosine": lambda: 0.5 * (math.cos(math.pi * x) + 1),
        "tanh3": lambda: math.tanh(y) ** 3,
        "exp": lambda: math.exp(1 - 1 / (1 - x**2)),
        "poly1": lambda: 3 * y**2 - 2 * y**3,
        "poly2": lambda: 10 * y**3 - 15 * y**4 + 6 * y**5,
        "poly3": lambda: 35 * y**4 - 84 * y**5 + 70 * y**6 - 20 * y**7,
        "poly4": lambda: 126 * y**5 - 420 * y**6 + 540 * y**7 - 315 * y**8 + 70 * y**9,
    }[name]()


def _weight(f: SymmetryFunction, z: int) -> float:
    return dict(f.weights).get(z, 0.0) if f.weights else z


def _radial(f: SymmetryFunction, vectors, z_j) -> float:
    total = 0.0
    for v, z in zip(vectors, z_j, strict=True):
        r = math.dist(v, (0, 0, 0))
        if f.neighbors and z != f.neighbors[0]:
            continue
        weight = 1.0 if f.neighbors else _weight(f, z)
        total += weight * math.exp(-f.eta * (r - f.r_s) ** 2) * _cut(f.cutoff_fn, r, f.cutoff)
    return total


def _angular(f: SymmetryFunction, vectors, z_j) -> float:
    total = 0.0
    for j, k in combinations(range(len(vectors)), 2):
        if f.neighbors and tuple(sorted((z_j[j], z_j[k]))) != f.neighbors:
            continue
        r_ij = math.dist(vectors[j], (0, 0, 0))
        r_ik = math.dist(vectors[k], (0, 0, 0))
        r_jk = math.dist(vectors[j], vectors[k])
        cosine = max(-1.0, min(1.0, float(np.dot(vectors[j], vectors[k])) / (r_ij * r_ik)))
        sides = (r_ij, r_ik, r_jk) if f.kind.endswith("G4") else (r_ij, r_ik)
        term = 2 ** (1 - f.zeta) * (1 + f.lam * cosine) ** f.zeta
        shifted = [(r_ij + r_ik) / 2] if f.kind == "ANI" else sides
        term *= math.exp(-f.eta * sum((r - f.r_s) ** 2 for r in shifted))
        term *= math.prod(_cut(f.cutoff_fn, r, f.cutoff) for r in sides)
        total += term if f.neighbors else term * _weight(f, z_j[j]) * _weight(f, z_j[k])
    return total


def brute_force(layout: Layout, r_ij, idx_i, idx_j, numbers) -> np.ndarray:
    """(N, D) symmetry functions of numpy arrays, one term at a time."""
    g = np.zeros((len(numbers), layout.n_columns))
    for i, z in enumerate(numbers):
        mine = idx_i == i
        vectors, z_j = r_ij[mine], numbers[idx_j[mine]]
        for column, f in enumerate(layout.functions[int(z)]):
            sum_terms = _angular if f.kind.endswith(("G4", "G5", "ANI")) else _radial
            g[i, column] = sum_terms(f, vectors, z_j)
    return g


def mixed_layout() -> Layout:
    """Two elements with different functions: every kind, cutoff function, sign, shift, exponent."""
    s = SymmetryFunction
    return Layout(
        {
            "H": [
                s("G2", (1,), 4.0, 0.3),
                s("G2", (1,), 4.0, 1.1, 1.5),
                s("G2", (1,), 3.2, 0.3),
                s("G2", (1,), 4.0, 0.3, cutoff_fn="poly1"),
                s("G2", (8,), 3.5, 0.2, 1.0, cutoff_fn="tanh3"),
                s("wG2", (), 4.0, 0.4, 2.0, cutoff_fn="poly2"),
                s("G4", (1, 8), 4.0, 0.05, zeta=1, lam=1),
                s("G4", (1, 8), 4.0, 0.05, zeta=1, lam=-1),
                s("G4", (1, 8), 4.0, 0.1, zeta=4, lam=-1),
                s("G4", (8, 8), 3.5, 0.03, zeta=2.5, lam=1, cutoff_fn="tanh3"),
                s("G5", (1, 1), 3.8, 0.1, zeta=3, lam=-1, cutoff_fn="exp"),
                s("G5", (1, 8), 4.0, 0.02, 0.5, zeta=16, lam=1, cutoff_fn="poly1"),
                s("wG4", (), 3.6, 0.02, 0.7, zeta=2, lam=1, cutoff_fn="poly3"),
                s("wG5", (), 3.0, 0.1, zeta=1.3, lam=-1, cutoff_fn="poly4"),
                s("wG2", (), 4.0, 0.4, 2.0, cutoff_fn="poly2", weights={"H": -0.7, "O": 1.3}),
                s("wG5", (), 3.9, 0.1, zeta=2, lam=1, weights={"H": 0.4, "O": -1.1}),
            ],
            "O": [
                s("G2", (8,), 4.0, 0.3),
                s("G5", (8, 8), 4.0, 0.1, zeta=1, lam=-1),
                s("G5", (1, 8), 4.0, 0.1, zeta=2, lam=1),
                s("ANI", (1, 8), 4.0, 0.9, 1.4, zeta=4, lam=-1),
                s("ANI", (1, 8), 4.0, 0.3, 1.4, zeta=1, lam=1),
                s("ANI", (8, 8), 3.5, 0.2, zeta=2.5, lam=1, cutoff_fn="poly2"),
                s("G4", (1, 1), 3.9, 0.2, 1.0, zeta=7, lam=-1),
                s("wG4", (), 3.6, 0.02, 0.7, zeta=2, lam=-1, cutoff_fn="poly3"),
                s("wG2", (), 4.0, 0.3, weights={"O": 1.5}),
                s("wG4", (), 3.6, 0.02, 0.7, zeta=2, lam=-1, weights={"H": 1.2, "O": -0.9}),
            ],
        }
    )


def random_cluster(n_atoms: int, seed: int = 0, size: float = 3.0, min_distance: float = 1.0):
    """positions (n, 3) without close contacts and numbers (n,) of H and O."""
    rng = np.random.default_rng(seed)
    positions = [rng.uniform(0, size, 3)]
    while len(positions) < n_atoms:
        trial = rng.uniform(0, size, 3)
        if min(math.dist(trial, p) for p in positions) > min_distance:
            positions.append(trial)
    numbers = np.array([1, 8])[np.arange(n_atoms) % 2]
    return np.array(positions), numbers


def perturbed_crystal(displacement: float = 0.1, seed: int = 0):
    """positions, cell, numbers of a small triclinic cell of H and O, many images per cutoff."""
    rng = np.random.default_rng(seed)
    cell = np.array([[2.9, 0.0, 0.0], [0.6, 3.1, 0.0], [-0.3, 0.4, 3.3]])
    scaled = np.array([[0.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, 0.0, 0.5]])
    positions = scaled @ cell + rng.uniform(-displacement, displacement, (3, 3))
    return positions, cell, np.array([1, 8, 1])


def pairs_of(positions, cell, pbc, cutoff, seed: int | None = 0):
    """The pair list of `n2p2_reference`, in random order."""
    r_ij, idx_i, idx_j = pair_list(positions, cell, pbc, cutoff)
    order = np.random.default_rng(seed).permutation(len(r_ij))
    return r_ij[order], idx_i[order], idx_j[order]


def assert_columns_close(actual, expected, elements, tolerance: float) -> None:
    """Every function agrees to `tolerance` of its own largest value.

    Args:
        actual, expected: (n, ..., D).
        elements: (n,) atomic number of the atom to which each row belongs; a column holds another
            function for each.
    """
    actual, expected, elements = (np.asarray(x) for x in (actual, expected, elements))
    assert actual.shape == expected.shape
    for z in np.unique(elements):
        mine, theirs = (x[elements == z].reshape(-1, x.shape[-1]) for x in (actual, expected))
        error, size = np.abs(mine - theirs).max(axis=0), np.abs(theirs).max(axis=0)
        # so written that NaN fails; a function that is zero must be exactly that
        wrong = np.flatnonzero(~(error <= tolerance * size))
        assert not len(wrong), f"columns {wrong} of {z}: {error[wrong]} of {size[wrong]}"


def pair_jacobian(backend, inputs) -> torch.Tensor:
    """dG_i/dr_ij of all columns by the backend's `vjp`, (P, 3, D); `inputs` as for `vjp`."""
    n_columns = backend.descriptor.n_columns
    columns = []
    for column in range(n_columns):
        grad_g = inputs[0].new_zeros(len(inputs[3]), n_columns)
        grad_g[:, column] = 1.0  # a pair belongs to one atom
        columns.append(backend.vjp(*inputs, grad_g))
    return torch.stack(columns, dim=2)


def by_positions(jacobian, idx_i, idx_j, n_atoms: int) -> np.ndarray:
    """dG_i/dR_k (N, N, 3, D), images summed, of a `pair_jacobian`."""
    out = np.zeros((n_atoms, n_atoms, *jacobian.shape[1:]))
    np.add.at(out, (idx_i, idx_j), jacobian)
    np.add.at(out, (idx_i, idx_i), -jacobian)
    return out


def by_strain(jacobian, r_ij, idx_i, n_atoms: int) -> np.ndarray:
    """sum_j dG_i/dr_ij (x) r_ij (N, 3, 3, D) of a `pair_jacobian`."""
    out = np.zeros((n_atoms, 3, *jacobian.shape[1:]))
    np.add.at(out, idx_i, np.asarray(jacobian)[:, :, None] * np.asarray(r_ij)[:, None, :, None])
    return out
