"""Writes run directories in the formats that training writes, with random but sound content."""

import csv
import json
from pathlib import Path

import numpy as np
from ase import units

__all__ = ["expected_rmse", "make_arrays", "write_history", "write_run"]

MPA = 1000.0 / units.GPa


def make_arrays(
    n_structures: int = 40,
    atoms: tuple[int, int] = (4, 12),
    elements: tuple[int, ...] = (42, 52),
    errors: tuple[float, float, float] = (0.003, 0.05, 0.0004),
    stress_labelled: float = 1.0,
    seed: int = 0,
    outliers: bool = False,
) -> dict[str, np.ndarray]:
    """Arrays of a predictions file; `errors` are standard deviations per atom, component, Voigt."""
    rng = np.random.default_rng(seed)
    n_atoms = rng.integers(*atoms, size=n_structures, endpoint=True)
    total = int(n_atoms.sum())
    numbers = rng.choice(elements, size=total)
    idx_m = np.repeat(np.arange(n_structures), n_atoms)
    shifts = {z: -3.0 - 0.1 * z for z in elements}
    composition = np.zeros(n_structures)
    np.add.at(composition, idx_m, [shifts[z] for z in numbers])
    energy_ref = composition + n_atoms * rng.gamma(2.0, 0.06, size=n_structures)
    energy = energy_ref + n_atoms * rng.normal(0.0005, errors[0], size=n_structures)
    forces_ref = rng.standard_t(4, size=(total, 3)) * 0.9
    noise = rng.normal(size=(total, 3)) * errors[1] * (0.6 + 0.5 * np.abs(forces_ref))
    if outliers:
        noise *= np.where(rng.random((total, 1)) < 0.001, 6.0, 1.0)
    stress_ref = _symmetric(rng.normal(0.0, 0.03, size=(n_structures, 6)))
    stress = stress_ref * 0.985 + _symmetric(rng.normal(0.0, errors[2], size=(n_structures, 6)))
    mask = rng.random(n_structures) < stress_labelled
    stress_ref[~mask] = 0.0
    return {
        "energy": energy,
        "energy_ref": energy_ref,
        "n_atoms": n_atoms,
        "forces": (forces_ref * 0.995 + noise).astype(np.float32),
        "forces_ref": forces_ref.astype(np.float32),
        "numbers": numbers,
        "stress": stress.astype(np.float32),
        "stress_ref": stress_ref.astype(np.float32),
        "stress_mask": mask.astype(np.float32),
        "group": rng.integers(0, 3, size=n_structures),
        "group_names": np.array(["bulk", "surface", "liquid <hot>"]),
    }


def _symmetric(voigt: np.ndarray) -> np.ndarray:
    xx, yy, zz, yz, xz, xy = voigt.T
    return np.stack([xx, xy, xz, xy, yy, yz, xz, yz, zz], axis=1).reshape(-1, 3, 3)


def expected_rmse(arrays: dict[str, np.ndarray]) -> dict[str, float]:
    """RMSE in meV/atom, meV/Ang and MPa, written out without the package's code."""
    energy = [
        (e - r) / n
        for e, r, n in zip(arrays["energy"], arrays["energy_ref"], arrays["n_atoms"], strict=True)
    ]
    forces = (arrays["forces"].astype(float) - arrays["forces_ref"].astype(float)).ravel()
    stress = [
        float(s[a, b]) - float(r[a, b])
        for s, r, m in zip(
            arrays["stress"], arrays["stress_ref"], arrays["stress_mask"], strict=True
        )
        if m
        for a, b in ((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))
    ]
    values = zip(("energy", "forces", "stress"), (energy, forces, stress), strict=True)
    scale = {"energy": 1000.0, "forces": 1000.0, "stress": MPA}
    return {q: scale[q] * float(np.sqrt(np.mean(np.square(v)))) for q, v in values}


def write_history(
    path: Path, n_epochs: int, seed: int = 0, best: int | None = None, floor: float = 0.05
) -> None:
    """history.csv with losses, weights and errors that fall and rise again after `best`."""
    rng = np.random.default_rng(seed)
    epochs = np.arange(n_epochs)
    best = n_epochs - 1 if best is None else best
    shape = np.exp(-epochs / (0.18 * n_epochs)) + floor
    shape = shape + 0.03 * np.clip((epochs - best) / n_epochs, 0, None)
    mixed = rng.dirichlet([40, 30, 30], size=n_epochs)
    drift = np.stack([0.33 + 0.2 * (1 - shape), 0.33 + 0.0 * shape, 0.34 - 0.2 * (1 - shape)], 1)
    weights = 0.5 * mixed + 0.5 * drift
    weights /= weights.sum(1, keepdims=True)
    columns = {"epoch": epochs}
    for subset, factor in (("train", 1.0), ("val", 1.25)):
        wobble = 1 + 0.04 * rng.normal(size=n_epochs)
        columns[f"{subset}_loss"] = factor * shape * np.where(epochs == best, 0.8, wobble)
        for name, size in (("energy", 0.02), ("forces", 0.6), ("stress", 0.01)):
            wobble = 1 + 0.05 * rng.normal(size=n_epochs)
            columns[f"{subset}_{name}_rmse"] = size * factor * shape * wobble
            columns[f"{subset}_{name}_mae"] = 0.7 * size * factor * shape * wobble
            columns[f"{subset}_{name}_loss"] = (factor * shape) ** 2
    for k, name in enumerate(("energy", "forces", "stress")):
        columns[f"weight_{name}"] = weights[:, k]
        columns[f"rate_{name}"] = rng.normal(size=n_epochs)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(zip(*columns.values(), strict=True))


def write_run(
    folder: Path,
    subsets: tuple[str, ...] = ("train", "val", "test"),
    n_epochs: int | None = 30,
    metrics: bool = True,
    seed: int = 0,
    beta: float = 1.0,
    sizes: dict[str, int] | None = None,
    **arrays: object,
) -> dict[str, dict[str, np.ndarray]]:
    """A run directory; returns the arrays of each subset. `n_epochs=None` writes no history."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(
        f"seed: {seed}\n"
        "run:\n  experiment: mote2_softadapt\n  id: ${uuid:1}\n  path: ${run.work_dir}/runs\n"
        "task:\n  _target_: schnetpack_softadapt.training.task.SoftAdaptTask\n"
        f"  weighting:\n    _target_: some.SoftAdapt\n    beta: {beta}\n"
        "trainer:\n  max_epochs: 30\n"
    )
    written = {}
    for k, subset in enumerate(subsets):
        size = (sizes or {"train": 60, "val": 20, "test": 12})[subset]
        written[subset] = make_arrays(size, seed=10 * seed + k, **arrays)
        (folder / "predictions").mkdir(exist_ok=True)
        np.savez(folder / "predictions" / f"{subset}.npz", **written[subset])
    if n_epochs is not None:
        floor = 0.04 + 0.02 * beta
        write_history(folder / "history.csv", n_epochs, seed, int(0.8 * n_epochs), floor)
    if metrics:
        content = {"epochs": n_epochs, "wall_s": 65.0 + seed}
        for subset, arrays_of in written.items():
            rmse = expected_rmse(arrays_of)
            content[subset] = {
                "energy_rmse_meV_per_atom": rmse["energy"],
                "forces_rmse_meV_per_Ang": rmse["forces"],
                "stress_rmse_MPa": rmse["stress"],
            }
        (folder / "metrics.json").write_text(json.dumps(content))
    return written
