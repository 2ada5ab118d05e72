"""SchNetPack's own MD program on models of this plugin."""

import subprocess
import sys
import textwrap

import h5py
import numpy as np
import torch
from ase.build import bulk, molecule

from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress

PROGRAM = """
    import os
    import sys
    from schnetpack.md.cli import simulate

    settings = ["model_file=best_model", "structure_file=start.xyz", "cutoff=4"]
    settings += ["dynamics.n_steps=5", "dynamics.progress=false"]
    for name, more in (("cell", ["calculator.stress_key=stress"]), ("molecule", [])):
        os.chdir(name)
        sys.argv = ["spkmd", "--config-name=acsf_md", *settings, *more]
        simulate()
        os.chdir("..")
"""


def test_spkmd_with_and_without_a_cell(tmp_path):
    for name, atoms in (("cell", bulk("Cu", cubic=True)), ("molecule", molecule("CH3OH"))):
        stress, elements = atoms.pbc.all(), sorted(set(atoms.symbols))
        torch.manual_seed(0)
        grid = {"n_radial": 4, "n_angular_widths": 1, "zetas": [1]}
        representation = ACSF(4.0, elements, grid=grid)
        model = DescriptorPotential(
            representation,
            output_modules=[
                ElementalAtomwise(representation.descriptor.n_functions, elements, n_hidden=[4]),
                ForcesAndStress(calc_stress=stress),
            ],
        )
        (tmp_path / name).mkdir()
        torch.save(model.double(), tmp_path / name / "best_model")
        atoms.write(tmp_path / name / "start.xyz", format="extxyz")
    # a process of its own: importing both of SchNetPack's programs fails, they register the same
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROGRAM)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    for name in ("cell", "molecule"):
        with h5py.File(tmp_path / name / "md" / "simulation.hdf5") as file:
            energy = np.asarray(file["properties"])
        assert len(energy) == 5
        assert np.all(np.isfinite(energy))
        assert np.ptp(energy) > 0
