"""A LAMMPS input and a README beside an exported potential, ready to run."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_masses, chemical_symbols, reference_states
from torch import nn

from schnetpack_softadapt.deploy.exchange.lammps_mliap import (
    EXTRAPOLATIONS,
    PICKLE_NAME,
    SPREAD,
)
from schnetpack_softadapt.descriptors.elements import atomic_number, check_elements
from schnetpack_softadapt.files import write_file
from schnetpack_softadapt.model.baseline import Baseline
from schnetpack_softadapt.model.composition import UnsupportedModelError

__all__ = ["write_lammps", "write_with_overlay"]

_INPUT = """\
# Short NVE run with the potential of this folder; start it here:
#   mpirun -np 4 lmp -in in.lammps
units           metal
atom_style      atomic
newton          on
boundary        {boundary}
read_data       structure.data

{masses}

{pair}
velocity        all create 300.0 12345 mom yes rot yes dist gaussian
timestep        0.001
thermo          10
thermo_style    custom step temp pe ke etotal press{columns}
fix             1 all nve
run             100
"""

_MLIAP = """\
pair_style      mliap unified {file}
pair_coeff      * * {symbols}

# descriptors outside of the training range so far, over all atoms and ranks
fix             counts all property/atom {properties}
python          connect input 1 SELF format p here &
                "from schnetpack_softadapt.deploy.exchange.lammps_mliap import connect"
python          connect invoke
compute         counts all property/atom {extrapolations}
compute         outside all reduce sum c_counts
"""

_SPREAD = """\
# standard deviation over the committee of the energy of each atom, eV
#dump            spread all custom 100 spread.dump id type x y z {spread}
"""

_HDNNP = """\
# the cutoff may be a little larger than that of the potential, never smaller
{off}pair_style      {overlay}hdnnp {cutoff} dir "." showew no showewsum 100 resetew no &
{off}                maxew 1000000 cflength 1.0 cfenergy 1.0
{off}pair_coeff      * * {name}{symbols}
"""

_STYLES = {
    "snap": ("SNAP potential", "potential.snapcoeff`, `potential.snapparam", "ML-SNAP"),
    "pace": ("Atomic cluster expansion", "potential.yace", "ML-PACE"),
}
_STYLE_FILES = """\
- `{files}`: the potential of `pair_style {style}`.
- LAMMPS: `in.lammps` runs 100 steps of NVE on any number of MPI ranks; `{style}.lammps`, which it
  includes, holds the commands of the potential, for inputs of yours. LAMMPS must contain the
  package {package}. Atom types are, in this order: {symbols}."""

_README = """\
# Potential for {names}
{format}, in Ang and eV, written by
schnetpack_softadapt. These are text files: reading them executes no code.
{files}
- {structure}
- ASE: `SoftAdaptCalculator("this/folder")` of `schnetpack_softadapt.deploy.calculator`.
- Largest cutoff radius: {cutoff} Ang.
"""

_N2P2_FILES = """\
- `input.nn` (settings), `scaling.data` (ranges seen in training), `weights.ZZZ.data` (networks).
- LAMMPS: `in.lammps` runs 100 steps of NVE with `pair_style hdnnp` on any number of MPI ranks;
  LAMMPS must contain the package ML-HDNNP. Atom types are, in this order: {symbols}."""

_TEXT_FILES = """\
- `potential.json`: descriptors, scaling, networks{members}.
- LAMMPS: `in.lammps` runs 100 steps of NVE with `pair_style mliap unified potential.mliap` on any
  number of MPI ranks. Atom types are, in this order: {symbols}. It needs the packages ML-IAP and
  PYTHON (`-D PKG_ML-IAP=on -D MLIAP_ENABLE_PYTHON=on -D BUILD_SHARED_LIBS=on`), and a Python where
  `import schnetpack_softadapt, lammps` works. `potential.mliap` is four lines of text that tell
  LAMMPS what to call with which file: start it in this folder, or write the path in there.
- After an installation or an update run on one rank first: the kernels are compiled, and cached.
- Each rank has one thread; `NUMBA_NUM_THREADS=4` gives it four.
- `c_outside` in the output counts descriptors outside of the training range since the start, over
  all atoms and ranks, those of setup included; many are the sign of a simulation gone astray.
  `fix halt` with a variable that holds it stops there.
- `compute stress/atom`: of each pair vector's term r (x) dE/dr half goes to either atom. The sum
  over atoms is the virial; a single one is a convention, and `compute heat/flux` wants another
  (`centroid/stress/atom`), which LAMMPS refuses with this style.
- Types without an element: `pair_style hybrid/overlay mliap unified potential.mliap zbl 0.8 1.2`
  with `pair_coeff * * mliap {symbols} NULL` leaves the last type to the other style, which may also
  repel atoms closer than any in the training set.{limit}"""

# LAMMPS of 4 Feb 2025: MLIAPData:lmp_firstneigh, which is touched in places but asked for whole
_LIMIT = """
- Some releases of ML-IAP (that of 4 Feb 2025) ask for (atoms of a rank)^2 x (neighbours within the
  cutoff) x 4 bytes of address space, which is refused beyond all memory of the machine
  ("lmp_firstneigh"); no command changes that: use more ranks (5,000 atoms each are safe)."""


def write_lammps(
    folder: str | Path,
    elements: Sequence[str],
    cutoff: float,
    structure: Atoms | None = None,
    styles: Sequence[str] = ("hdnnp",),
    n_members: int = 1,
    zbl: tuple[Sequence[str], Sequence[str]] = ((), ()),
) -> list[Path]:
    """Write `in.lammps`, `README.md` and, where one is known, `structure.data`.

    Args:
        elements: symbols, the LAMMPS atom types in this order.
        structure: what to simulate; it gets some vacuum along directions that are not periodic.
            Without one, a crystal of about 200 atoms when the potential has a single element whose
            crystal structure ASE knows, else none is written.
        styles: "mliap", "hdnnp" or both: pair styles that the folder has files for; the first is
            used, the other one stands in a comment. Or "snap", or "pace", alone.
        zbl: what `pair_style hdnnp` needs below its networks, from `ZBL.lammps`.


    Raises:
        ValueError: the structure has elements that the potential does not know, or a periodic
            direction without a lattice vector.
    """
    folder = Path(folder)
    if structure is None:
        structure = _crystal(elements)
    files = []
    if structure is None:
        boundary = "p p p"
        remark = (
            "`structure.data` is missing: write yours with ASE, `atoms.write('structure.data',"
            f" format='lammps-data', specorder={list(elements)})`."
        )
    else:
        structure = _in_box(structure, cutoff)
        text = _structure_text(structure, elements)
        files.append(write_file(folder / "structure.data", text))
        boundary = " ".join("p" if periodic else "f" for periodic in structure.pbc)
        remark = (
            f"`structure.data` holds {len(structure)} atoms, {structure.get_chemical_formula()}."
        )
    symbols, names = " ".join(elements), ", ".join(elements)
    text = _INPUT.format(
        boundary=boundary,
        masses="\n".join(
            f"mass            {k} {atomic_masses[atomic_number(symbol)]:.6g}  # {symbol}"
            for k, symbol in enumerate(elements, start=1)
        ),
        pair="\n".join(_pair(style, styles, symbols, cutoff, n_members, zbl) for style in styles),
        columns=" c_outside" if styles[0] == "mliap" else "",
    )
    files.append(write_file(folder / "in.lammps", text))
    formats = ["Behler-Parrinello neural network potential in n2p2's format"]
    about = [_N2P2_FILES.format(symbols=symbols)]
    if "mliap" in styles:
        members = f" of {n_members} models, of which LAMMPS runs the mean" if n_members > 1 else ""
        formats[:0] = ["Interatomic potential"]
        about[:0] = [_TEXT_FILES.format(symbols=symbols, members=members, limit=_LIMIT)]
        about[1:] = [
            "- n2p2: `input.nn`, `scaling.data`, `weights.ZZZ.data` for `pair_style hdnnp`"
            " (package ML-HDNNP), slower:\n  the comment in `in.lammps`."
            + " They hold the networks alone; `pair_style zbl` there adds the rest."
            * bool(zbl[0])
        ] * ("hdnnp" in styles)
    if styles[0] in _STYLES:
        title, names_of_files, package = _STYLES[styles[0]]
        given = {"files": names_of_files, "style": styles[0], "package": package}
        formats, about = [title], [_STYLE_FILES.format(symbols=symbols, **given)]
    text = _README.format(
        names=names,
        format=formats[0],
        files="\n".join(about),
        cutoff=f"{cutoff:g}",
        structure=remark,
    )
    files.append(write_file(folder / "README.md", text))
    return files


def write_with_overlay(
    model: nn.Module,
    folder: str | Path,
    structure: Atoms | None,
    style: str,
    files: Sequence[Path],
    baseline: Baseline | None,
) -> list[Path]:
    """`STYLE.lammps` with the commands of a potential and of a ZBL below it, and an input.

    Args:
        structure: see `write_lammps`.
        style: "snap" or "pace".
        files: what `pair_coeff` reads.
        baseline: what LAMMPS has another pair style for.

    Raises:
        UnsupportedModelError: it has none.
    """
    folder, symbols = Path(folder), model.representation.descriptor.elements
    symbols = [chemical_symbols[z] for z in symbols]
    if baseline is not None and not hasattr(baseline, "lammps"):
        raise UnsupportedModelError(f"LAMMPS has no pair style for {baseline.to_dict()}")
    words, lines = ([], []) if baseline is None else baseline.lammps(symbols)
    overlay, name = (f"hybrid/overlay {' '.join(words)} ", f"{style} ") if words else ("", "")
    names = " ".join(file.name for file in files)
    commands = [
        f"pair_style      {overlay}{style}",
        f"pair_coeff      * * {name}{names} {' '.join(symbols)}",
        *lines,
    ]
    commands = write_file(folder / f"{style}.lammps", "\n".join(commands) + "\n")
    cutoff = max(float(model.representation.cutoff), 0.0 if baseline is None else baseline.cutoff)
    return [*files, commands, *write_lammps(folder, symbols, cutoff, structure, [style])]


def _pair(
    style: str, styles: Sequence[str], symbols: str, cutoff: float, n_members: int, zbl
) -> str:
    """What the input says of a pair style, behind # for a second choice."""
    if style in _STYLES:
        return f"include         {style}.lammps\n"
    if style == "hdnnp":
        # rounding of the last digit must not make it smaller than the potential's
        rounded = f"{np.ceil(cutoff * 100 + 1e-6) / 100:.2f}"
        off = "" if style == styles[0] else "#"
        words, lines = zbl
        overlay, name = (f"hybrid/overlay {' '.join(words)} ", "hdnnp ") if words else ("", "")
        text = _HDNNP.format(cutoff=rounded, symbols=symbols, off=off, overlay=overlay, name=name)
        text += "".join(f"{off}{line}\n" for line in lines)
        return (
            text if not off else f"# or, with the package ML-HDNNP, instead of the above;\n{text}"
        )
    names = [EXTRAPOLATIONS, SPREAD] if n_members > 1 else [EXTRAPOLATIONS]
    text = _MLIAP.format(
        file=PICKLE_NAME,
        symbols=symbols,
        properties=" ".join(names),
        extrapolations=EXTRAPOLATIONS,
    )
    return text + (_SPREAD.format(spread=SPREAD) if n_members > 1 else "")


def _in_box(structure: Atoms, vacuum: float) -> Atoms:
    """The structure in a box as LAMMPS wants it: a along x, b in the xy plane, little tilt."""
    atoms = structure.copy()
    atoms.set_constraint()
    free = np.flatnonzero(~atoms.pbc)
    if len(free):  # LAMMPS takes no tilt there and loses atoms outside of the box
        atoms.cell[free] = 0.0
        atoms.center(vacuum=vacuum, axis=tuple(free))
    if atoms.cell.rank < 3:
        raise ValueError("a periodic direction of the structure has no lattice vector")
    if atoms.cell.handedness < 0:  # then all three directions are periodic
        atoms.set_cell(atoms.cell[[1, 0, 2]])
    triangular = np.linalg.qr(atoms.cell.T, mode="r").T
    box = triangular * np.sign(np.diag(triangular))
    atoms.set_cell(box, scale_atoms=True)  # turns the whole
    for row, column in ((2, 1), (2, 0), (1, 0)):
        box[row] -= np.round(box[row, column] / box[column, column]) * box[column]
    # rounding must not look like a tilt
    atoms.set_cell(np.where(np.abs(box) > 1e-12 * box.max(), box, 0.0))
    atoms.wrap()
    return atoms


def _structure_text(atoms: Atoms, elements: Sequence[str]) -> str:
    """A data file of a structure from `_in_box`, atom types in the order of `elements`."""
    check_elements(atoms.numbers.tolist(), map(atomic_number, elements), "the structure")
    (lx, _, _), (xy, ly, _), (xz, yz, lz) = atoms.cell.array.tolist()
    lines = [f"{atoms.get_chemical_formula()}, written by schnetpack_softadapt", ""]
    lines += [f"{len(atoms)} atoms", f"{len(elements)} atom types", ""]
    lines += [f"0.0 {length!r} {x}lo {x}hi" for length, x in zip((lx, ly, lz), "xyz", strict=True)]
    lines += [f"{xy!r} {xz!r} {yz!r} xy xz yz", "", "Atoms # atomic", ""]
    for k, atom in enumerate(atoms, start=1):
        x, y, z = atom.position.tolist()
        lines.append(f"{k} {elements.index(atom.symbol) + 1} {x!r} {y!r} {z!r}")
    return "\n".join(lines) + "\n"


def _crystal(elements: Sequence[str]) -> Atoms | None:
    """About 200 atoms of the element's crystal, if it is one that ASE can build."""
    if len(elements) != 1:
        return None
    state = reference_states[atomic_number(elements[0])] or {}
    if state.get("symmetry") not in ("fcc", "bcc", "diamond"):
        return None
    cell = bulk(elements[0], cubic=True)
    n = max(1, round((200 / len(cell)) ** (1 / 3)))
    return cell * (n, n, n)
