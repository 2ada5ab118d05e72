"""The public tungsten-beryllium set as a database, and the published SNAP on its test set.

    python tests/benchmarks/wbe.py prepare FOLDER [--n N] [--max-atoms N] [--stress] [--seed 0]
    python tests/benchmarks/wbe.py snap FOLDER
    python tests/benchmarks/wbe.py table FOLDER [RUN ...]

`prepare` writes FOLDER/wbe.db and its split: the structures of M. A. Wood, M. A. Cusentino,
B. D. Wirth and A. P. Thompson, Phys. Rev. B 99, 184305 (2019), and of D. Montes de Oca Zapiain et
al., npj Comput. Mater. 8, 189 (2022); all, or about N of them from all groups (--n), no larger ones
than so many atoms (--max-atoms), or only those with a stress (--stress). Structures with the
positions and cell of an earlier one are left out. Stresses of exact zeros are no labels. Those of
all groups but two are 1000 times too small: they are multiplied after a check against the
energies. Of each group 70 % are for training, 10 for validation, 20 for testing.

`snap` evaluates the published potential, with its ZBL, on the test set and writes FOLDER/snap.npz.
`table` prints errors of the test set by group, of SNAP and of runs of
`spktrain` on the database.
"""

import argparse
import itertools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from fits import RIGHT_STRESS, by_group, published_snap, split_by_group, subcommand

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.dataset import read_database
from schnetpack_softadapt.data.formats.format import ImportOptions, read_files
from schnetpack_softadapt.data.importing.checks import leave_out_placeholder_stress, raise_problems
from schnetpack_softadapt.data.importing.sources import find_sources
from schnetpack_softadapt.data.importing.stress_labels import StressRepair, repair
from schnetpack_softadapt.data.splitting import Split, load_split, save_split, split_path
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.deploy.predict import predict
from schnetpack_softadapt.quantities import QUANTITIES
from schnetpack_softadapt.reports.errors import error_rows
from schnetpack_softadapt.reports.predictions import Predictions
from schnetpack_softadapt.training.predictions import write_predictions
from schnetpack_softadapt.training.text_table import text_table

FILES = ("wbe.extxyz.xz", "w.extxyz.xz")
LEAST_OF_A_GROUP = 5
STRESS_FACTOR = 1e3  # of all groups but RIGHT_STRESS


# --- the database


def read_all() -> list[Structure]:
    """All structures once, with right stresses or none."""
    from shared import shared_path

    sources = find_sources([shared_path(f"data/wbe/{name}") for name in FILES])
    structures, problems, _ = read_files(sources, ImportOptions())
    raise_problems([], problems)
    once: dict[tuple, Structure] = {}
    for s in structures:
        once.setdefault((s.numbers.tobytes(), s.positions.tobytes(), s.cell.tobytes()), s)
    print(f"{len(structures)} structures, {len(structures) - len(once)} duplicates left out")
    structures = list(once.values())
    print(*leave_out_placeholder_stress(structures), sep="\n")
    repair_stress(structures)
    return structures


def repair_stress(structures: Sequence[Structure]) -> None:
    """Multiply the stresses that lack the factor, in place.

    Raises:
        ValueError: the energies of a group do not say so.
    """
    groups = defaultdict(list)
    for s in structures:
        if s.stress is not None:
            groups[s.group].append(s)
    for group, members in groups.items():
        factor = 1.0 if group in RIGHT_STRESS else STRESS_FACTOR
        ratio, n = work_ratio(members)
        print(f"{group:22s} dE / work of the stress {ratio:7.1f} ({n} pairs), factor {factor:g}")
        if n >= 20 and abs(np.log10(ratio / factor)) > 0.5:
            raise ValueError(f"the energies of {group} want a factor of {ratio:.4g}, not {factor}")
    wrong = [StressRepair(g, factor=STRESS_FACTOR) for g in groups if g not in RIGHT_STRESS]
    repair(structures, wrong)


def work_ratio(structures: Iterable[Structure], least_ev: float = 0.02) -> tuple[float, int]:
    """Median of dE / (V sigma : strain) between neighbours in volume, and the number of pairs.

    Of cells with the same atoms at the same fractional positions, by the midpoint rule; 1 if
    stresses are in the unit of the energies. `least_ev`: smaller differences are left out.
    """
    families = defaultdict(list)
    for s in structures:
        families[s.numbers.tobytes()].append(s)
    ratios, identity = [], np.eye(3)
    for family in families.values():
        family.sort(key=lambda s: s.volume)
        for a, b in itertools.pairwise(family):
            deformation = np.linalg.solve(a.cell, b.cell)
            moved = a.positions @ np.linalg.inv(a.cell) - b.positions @ np.linalg.inv(b.cell)
            is_strain = np.abs(moved - np.round(moved)).max() < 1e-3
            if not is_strain or not 1e-3 < np.linalg.norm(deformation - identity) < 0.1:
                continue
            strain = 2 * (deformation - identity) @ np.linalg.inv(deformation + identity)
            work = 0.5 * ((a.volume * a.stress + b.volume * b.stress) * strain).sum()
            if abs(b.energy - a.energy) > least_ev:
                ratios.append((b.energy - a.energy) / work)
    return (float(np.median(ratios)), len(ratios)) if ratios else (float("nan"), 0)


def prepare(args: argparse.Namespace) -> None:
    structures = read_all()
    if args.stress:
        structures = [s for s in structures if s.stress is not None]
    if args.max_atoms:
        structures = [s for s in structures if s.n_atoms <= args.max_atoms]
    if args.n:
        share = args.n / len(structures)
        parts = [
            members[: max(LEAST_OF_A_GROUP, round(share * len(members)))]
            for members in by_group([s.group for s in structures], args.seed)
        ]
        structures = [structures[k] for k in np.sort(np.concatenate(parts))]
    raise_problems(structures)
    args.folder.mkdir(parents=True, exist_ok=True)
    path = args.folder / "wbe.db"
    provenance = "W-Be, Phys. Rev. B 99, 184305 and npj Comput. Mater. 8, 189"
    fingerprint = write_database(path, structures, provenance, overwrite=True)
    subsets = split_by_group([s.group for s in structures], args.seed)
    split = Split(*subsets, fingerprint=fingerprint)
    save_split(split_path(path), split)
    n_stress = sum(s.stress is not None for s in structures)
    print(
        f"{path}: {len(structures)} structures, {sum(s.n_atoms for s in structures)} atoms,"
        f" {len({s.group for s in structures})} groups, {n_stress} with stress;"
        f" {len(split.train)} train, {len(split.val)} val, {len(split.test)} test"
    )


# --- the published potential


def snap(args: argparse.Namespace) -> None:
    path = args.folder / "wbe.db"
    structures = read_database(path)
    test = load_split(split_path(path), len(structures)).test
    chosen = [structures[k] for k in test]
    arrays = predict(published_snap(), chosen)
    names, groups = np.unique([s.group for s in chosen], return_inverse=True)
    arrays |= {"index": np.array(test), "group": groups, "group_names": names}
    print(f"written {write_predictions(args.folder / 'snap.npz', arrays)}")


# --- tables


def errors_by_group(path: Path) -> Mapping[str, dict]:
    """RMSE and MAE by quantity, of each group and of all structures ("all")."""
    found = Predictions.load(path)
    found.subset = "test"
    rows = error_rows({"test": found})
    rows = rows[rows["selection"].isin(("all", "group"))]
    table = defaultdict(dict)
    for row in rows.itertuples():
        table[row.name or "all"][row.quantity] = row
    return table


def table(args: argparse.Namespace) -> None:
    """Print RMSE (MAE) by group, a column for SNAP and each run."""
    sources = {run.name: run / "predictions" / "test.npz" for run in args.runs}
    if (args.folder / "snap.npz").exists():
        sources = {"SNAP": args.folder / "snap.npz", **sources}
    tables = {name: errors_by_group(path) for name, path in sources.items()}
    for q in QUANTITIES:
        groups = sorted({g for t in tables.values() for g in t if q.name in t[g]})
        lines = [[f"{q.name}, {q.shown_unit}", "n", *tables]]
        for group in ["all", *(g for g in groups if g != "all")]:
            rows = [t.get(group, {}).get(q.name) for t in tables.values()]
            cells = ["-" if r is None else f"{r.rmse:.4g} ({r.mae:.4g})" for r in rows]
            lines.append([group, str(next(r.n for r in rows if r is not None)), *cells])
        print("\n".join(text_table(lines)), end="\n\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    command = subcommand(commands, prepare)
    command.add_argument("--n", type=int, help="about so many structures, of all groups")
    command.add_argument("--max-atoms", type=int, help="only structures that are no larger")
    command.add_argument("--stress", action="store_true", help="only structures with a stress")
    command.add_argument("--seed", type=int, default=0)
    subcommand(commands, snap)
    subcommand(commands, table).add_argument("runs", type=Path, nargs="*")
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
