"""Labels of one structure from any ASE calculator or command; what the processes import."""

import contextlib
import inspect
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import ase.io
import numpy as np
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes

from schnetpack_softadapt.data.executors import import_object

__all__ = ["COMMAND", "ExternalCommand", "import_calculator", "label"]

Labels = dict[str, list | float | str | None]


class ExternalCommand(Calculator):
    """A command that reads `in.extxyz` and writes `out.extxyz`, in a directory of its own.

    `out.extxyz` holds the same atoms in the same order, with energy (eV), forces (eV/Ang) and, if
    the program has it, stress (eV/Ang^3, positive = tension), as `ase.io.write` writes them.

    Args:
        command: for the shell.
        directory: where the directories are made; the system's for temporary files if None. That
            of a calculation that failed stays, and the error names it.
    """

    implemented_properties = ["energy", "free_energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self, command: str, directory: str | None = None):
        super().__init__()
        self.shell_command, self.place = command, directory

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes) -> None:
        """Run the command; raises RuntimeError if it fails or writes no labels."""
        super().calculate(atoms, properties, system_changes)
        if self.place is not None:
            os.makedirs(self.place, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="label-", dir=self.place)).absolute()
        bare = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
        ase.io.write(folder / "in.extxyz", bare)
        with open(folder / "log", "wb") as log:
            code = subprocess.run(
                self.shell_command, shell=True, cwd=folder, stdout=log, stderr=log
            ).returncode
        if code != 0 or not (folder / "out.extxyz").exists():
            raise RuntimeError(f"exit status {code}, see {folder}/log")
        found = ase.io.read(folder / "out.extxyz")
        if len(found) != len(atoms) or (found.numbers != atoms.numbers).any():
            raise RuntimeError(f"other atoms in {folder}/out.extxyz")
        results = {} if found.calc is None else found.calc.results
        if not {"energy", "forces"} <= set(results):
            raise RuntimeError(f"no energy and forces in {folder}/out.extxyz")
        self.results = dict(results)
        shutil.rmtree(folder)


def import_calculator(path: str, arguments: Mapping | None = None) -> Callable:
    """The class or function at "module:name"; see `executors.import_object`.

    Raises:
        ValueError: there is none, it does not take these arguments, or it has no forces.
    """
    make = import_object(path, "calculator")
    if arguments is not None:
        try:
            inspect.signature(make).bind(**arguments)
        except TypeError as error:
            raise ValueError(f"calculator {path}: {error} (--calculator-args)") from None
        except ValueError:
            pass  # written in C, without a signature
        for name in ("energy", "forces"):
            if name not in (getattr(make, "implemented_properties", None) or ("energy", "forces")):
                raise ValueError(f"calculator {path} has no {name}")
    return make


#: calculator of an external command; its arguments are those of `ExternalCommand`
COMMAND = f"{__name__}:{ExternalCommand.__name__}"


def label(atoms: Atoms, calculator: str, arguments: dict, worker: str) -> Labels:
    """Energy, forces and (if periodic, and if the calculator has it) stress (3, 3); ASE's units.

    The energy is the free energy where the calculator gives one, which forces derive from. Each
    structure gets a new calculator, so that no result depends on what was computed before.
    """
    atoms.calc = import_calculator(calculator)(**_fill(arguments, worker))
    labels = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces(), "stress": None}
    if atoms.pbc.any():
        # where it is missing, the database says so
        with contextlib.suppress(PropertyNotImplementedError, NotImplementedError):
            labels["stress"] = atoms.get_stress(voigt=False)
    free_energy = getattr(atoms.calc, "results", {}).get("free_energy")
    if free_energy is not None:
        labels["energy"] = free_energy
    for name, value in labels.items():
        if value is not None and not np.isfinite(value).all():
            raise ValueError(f"{name} not finite")
    return {k: v if v is None else np.asarray(v, np.float64).tolist() for k, v in labels.items()}


def _fill(value, worker: str):
    """Arguments of a calculator, with "{worker}" in every text replaced."""
    if isinstance(value, str):
        return value.replace("{worker}", worker)
    if isinstance(value, dict):
        return {key: _fill(item, worker) for key, item in value.items()}
    return [_fill(item, worker) for item in value] if isinstance(value, list) else value
