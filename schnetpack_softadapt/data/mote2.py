"""The MoTe2 data set that comes with the package: PBE monolayers, strained and perturbed."""

import contextlib
import hashlib
import logging
from functools import cache
from importlib import resources
from pathlib import Path

import ase.io

from schnetpack_softadapt.data.database import write_database
from schnetpack_softadapt.data.datamodule import SoftAdaptDataModule
from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.data.structures import Structure
from schnetpack_softadapt.errors import in_one_line

__all__ = ["MoTe2DataModule", "create_mote2_database", "mote2_structures"]

log = logging.getLogger(__name__)

FOLDER = resources.files(__package__) / "mote2"  # its README.md is the provenance
STATE = ("phase", "strain_x", "strain_y")


def mote2_structures() -> list[Structure]:
    """All structures of the shipped set; group: phase, `info["strain_state"]`: phase and strain."""
    with resources.as_file(FOLDER / "mote2_pbe.extxyz") as path:
        frames = ase.io.read(path, ":")
    states = [" ".join(str(atoms.info[name]) for name in STATE) for atoms in frames]
    return [
        Structure.from_atoms(atoms, atoms.info["phase"], {"strain_state": state})
        for atoms, state in zip(frames, states, strict=True)
    ]


def create_mote2_database(path: str | Path) -> Path:
    """Make the database of the shipped set, unless it exists; safe with several processes.

    Returns:
        its absolute path.
    """
    path = user_path(path)
    if path.exists():
        return path
    log.info("first use of the MoTe2 set: making %s", path)
    provenance = (FOLDER / "README.md").read_text(encoding="utf-8")
    # it takes a second: several processes may all make it, the contents are the same
    with contextlib.suppress(FileExistsError):
        metadata = {"source_sha256": _source_hash()}
        write_database(path, mote2_structures(), provenance=provenance, metadata=metadata)
    return path


@cache
def _source_hash() -> str:
    return hashlib.sha256((FOLDER / "mote2_pbe.extxyz").read_bytes()).hexdigest()


class MoTe2DataModule(SoftAdaptDataModule):
    """`SoftAdaptDataModule` of the shipped MoTe2 set, whose database is made on first use.

    Args:
        datapath: where the database is, or will be.
        kwargs: of `SoftAdaptDataModule`.
    """

    @in_one_line
    def prepare_data(self) -> None:
        create_mote2_database(self.datapath)

    def setup(self, stage: str | None = None) -> None:
        """As the parent class; also without Lightning's `prepare_data` before it."""
        if self.dataset is not None:
            return
        self.prepare_data()
        super().setup(stage)
        if self.dataset.metadata.get("source_sha256") != _source_hash():
            log.warning(
                "%s was made from another version of the MoTe2 set than is installed now;"
                " remove it to get the new one",
                self.datapath,
            )
