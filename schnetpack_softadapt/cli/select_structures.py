"""`spk-softadapt select`: the structures that are worth labelling, from files or databases."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

__all__ = ["committee_spread", "select_structures"]


def select_structures(
    files: Sequence[str],
    out: str | Path,
    n: int,
    method: str = "farthest",
    known: Sequence[str] = (),
    by: str = "atoms",
    descriptor: str | None = None,
    models: Sequence[str] = (),
) -> str:
    """Choose n structures, write them in the order of choice, and describe the choice.

    Args:
        files: as `import` reads them, databases, or lists of structures without labels.
        out: extended XYZ, with the labels that there are.
        method: of `data.select.select.METHODS`, or "committee".
        known: files of structures that new ones shall differ from.
        by: of `data.select.select.BY`.
        descriptor: a file as `select-functions` writes it; else that of the first model, else
            bispectrum components.
        models: of the committee.

    Raises:
        FileNotFoundError: no such file.
        ValueError: what is wrong.
    """
    import ase.io
    from ase.data import chemical_symbols

    from schnetpack_softadapt.data.select.select import METHODS, select, structure_rows
    from schnetpack_softadapt.deploy.loading import load_members
    from schnetpack_softadapt.deploy.predict import labelled_atoms, read_structures
    from schnetpack_softadapt.descriptors.ambient import default_descriptor
    from schnetpack_softadapt.descriptors.protocol import read_descriptor
    from schnetpack_softadapt.files import replacing

    if Path(out).suffix not in (".extxyz", ".xyz"):
        raise ValueError(f"--out {out}: the name must end in .extxyz or .xyz")
    if method not in (*METHODS, "committee"):
        raise ValueError(f"--method {method} is none of {', '.join(METHODS)}, committee")
    members = [member for model in models for member in load_members(model)]
    if method == "committee" and len(members) < 2:
        raise ValueError("--method committee needs --models with two models at least")
    structures, places = [], []
    for file in files:
        found = read_structures(file)
        structures += found
        places += [(file, k) for k in range(len(found))]
    others = [s for file in known for s in read_structures(file)]
    if not 0 < n <= len(structures):
        raise ValueError(f"--n {n}: the files have {len(structures)} structures")
    elements = sorted({int(z) for s in (*structures, *others) for z in s.numbers})
    if descriptor is not None:
        basis = read_descriptor(descriptor)
    elif members and hasattr(getattr(members[0], "representation", None), "descriptor"):
        basis = members[0].representation.descriptor
    else:
        basis = default_descriptor(elements)
    missing = [chemical_symbols[z] for z in elements if z not in basis.elements]
    if missing:
        raise ValueError(f"the descriptor has no functions for {', '.join(missing)}")

    rows, known_rows = structure_rows(structures, basis, by, others)
    scores = committee_spread(structures, members) if method == "committee" else None
    chosen = select(rows, n, method, known_rows, scores)
    frames = []
    for rank, k in enumerate(chosen):
        atoms = labelled_atoms(structures[k])
        atoms.info["selected_from"] = f"{Path(places[k][0]).name}@{places[k][1]}"
        atoms.info["selected_rank"] = rank
        if scores is not None:
            atoms.info["forces_spread"] = float(scores[k])
        frames.append(atoms)
    with replacing(out) as temporary:
        ase.io.write(temporary, frames, format="extxyz")
    lines = [
        f"chosen       {n} of {len(structures)} structures by {method}, {basis.title}",
        f"atoms        {sum(len(a) for a in frames)} of {sum(s.n_atoms for s in structures)}",
    ]
    if others:
        lines.append(f"known        {len(others)} structures of {', '.join(known)}")
    if scores is not None:
        lines.append(
            f"spread       {scores[chosen[0]]:.3g} to {scores[chosen[-1]]:.3g} eV/Ang, of all"
            f" {np.median(scores):.3g} (median)"
        )
    groups = sorted({s.group for s in structures} - {""})
    for group in groups if len(groups) > 1 else ():
        of_group = [structures[k].group == group for k in chosen]
        lines.append(f"  {group}: {sum(of_group)} of {sum(s.group == group for s in structures)}")
    return "\n".join([*lines, f"written      {out}"])


def committee_spread(structures, models) -> np.ndarray:
    """Largest spread of the force on an atom over a committee (S,), eV/Ang.

    The root of the mean squared length of what a member's force differs from the mean by.

    Raises:
        ValueError: a structure that a model cannot predict.
    """
    from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator
    from schnetpack_softadapt.deploy.predict import calculated

    every = calculated(structures, SoftAdaptCalculator(models))
    return np.array([np.linalg.norm(r["forces_std"], axis=1).max() for r in every])
