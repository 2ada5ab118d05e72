"""What LAMMPS loads in `lammps.py`: the potential, which tells the CPU time of its kernels."""

import os
import time

from schnetpack_softadapt.deploy.exchange import lammps_mliap


def load(path: str) -> lammps_mliap.LammpsPotential:
    """As that of `lammps_mliap`; each evaluation writes when it began and ended to kernels.PID."""
    loaded = lammps_mliap.load(path)
    potential = loaded.potential

    class Timed(type(potential)):
        def __call__(self, *args):
            start = time.process_time()
            result = super().__call__(*args)
            with open(f"kernels.{os.getpid()}", "a") as file:
                file.write(f"{start:.6f} {time.process_time():.6f}\n")
            return result

    potential.__class__ = Timed
    return loaded
