"""SchNetPack's own MD program on models of this plugin."""

import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from schnetpack_softadapt.model import ACSF, DescriptorPotential, ElementalAtomwise, ForcesAndStress


@pytest.mark.parametrize("stress", [False, True])
def test_spkmd_with_and_without_a_cell(tmp_path, stress):
    elements = ["Cu"] if stress else ["C", "H", "O"]
    torch.manual_seed(0)
    representation = ACSF(4.0, elements, grid={"n_radial": 4, "n_angular_widths": 1, "zetas": [1]})
    model = DescriptorPotential(
        representation,
        output_modules=[
            ElementalAtomwise(representation.descriptor.n_functions, elements, n_hidden=[4]),
            ForcesAndStress(calc_stress=stress),
        ],
    )
    torch.save(model.double(), tmp_path / "best_model")
    atoms = bulk("Cu", cubic=True) if stress else molecule("CH3OH")
    atoms.write(tmp_path / "start.xyz", format="extxyz")
    arguments = ["model_file=best_model", "structure_file=start.xyz", "cutoff=4"]
    arguments += ["dynamics.n_steps=5", "dynamics.progress=false"]
    if stress:
        arguments += ["calculator.stress_key=stress"]
    # a process of its own: importing both of SchNetPack's programs fails, they register the same
    code = "from schnetpack.md.cli import simulate; simulate()"
    command = [sys.executable, "-c", code, "--config-name=acsf_md", *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with h5py.File(tmp_path / "md" / "simulation.hdf5") as file:
        energy = np.asarray(file["properties"])
    assert len(energy) == 5
    assert np.all(np.isfinite(energy))
    assert np.ptp(energy) > 0
