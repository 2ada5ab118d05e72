"""What the package dpdata reads: DeePMD's folders, CP2K, ABACUS, Quantum ESPRESSO and others.

dpdata converts to eV, Ang and eV/Ang; its virial is -volume * stress, in eV.
"""

from collections.abc import Iterator, Mapping

from ase.io.formats import string2index

from schnetpack_softadapt.data.formats.format import Format, LabelledFile
from schnetpack_softadapt.descriptors.elements import atomic_number

__all__ = ["FORMAT"]

LABELS = ("energies", "forces", "virials")


def _frames(file: LabelledFile) -> Iterator[tuple[Mapping, int]]:
    """Arrays of all structures, and the index of one."""
    try:
        from dpdata import LabeledSystem
    except ImportError:
        raise ImportError(
            "needs the package dpdata: pip install 'schnetpack-softadapt[dpdata]'"
        ) from None
    name = file.options.format.partition(":")[2]
    data = LabeledSystem(str(file.path), fmt=name).data
    indices = range(len(data["coords"]))[string2index(file.frames or ":")]
    for index in [indices] if isinstance(indices, int) else indices:
        yield data, index


def _structure(frame: tuple[Mapping, int], file: LabelledFile) -> dict:
    data, k = frame
    return {
        "numbers": [atomic_number(str(data["atom_names"][t])) for t in data["atom_types"]],
        "positions": data["coords"][k],
        "cell": data["cells"][k],
        "pbc": not data.get("nopbc", False),
        "labels": [{name: data[name][k] for name in LABELS if name in data}],
        "usual": {"energy": "energies"},
    }


FORMAT = Format(
    "dpdata",
    "through dpdata, if it is installed: deepmd/npy, cp2k/output, abacus/scf, qe/pw/scf..",
    _frames,
    _structure,
    argument="FMT",
    takes_folders=True,
)
