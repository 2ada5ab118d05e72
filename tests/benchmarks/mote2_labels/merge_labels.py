"""Select and correct what `label_with_gpaw.py` wrote: python merge_labels.py mote2_pbe.extxyz"""

import sys
from pathlib import Path

from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write

# (2/3) E_cut dE/dE_cut at 293 eV, eV per MoTe2: mean over five structures (-1.045 to -1.106)
PULAY = -1.080
MAX_SIGMA = 0.12  # Ang; larger displacements were labelled, but are not part of the set
SIGMA_STEPS = (0.02, 0.02, 0.01, 0.01)  # of the parts, Ang


def merged() -> list:
    """One entry per phase, strain, perturbation and family of random numbers, sorted."""
    structures, seen = [], set()
    for part, sigma_step in enumerate(SIGMA_STEPS):
        file = Path(f"part{part}.extxyz")
        if not file.exists():
            continue
        for labelled in read(file, ":"):
            p = labelled.info["perturbation"]
            sigma = round(sigma_step * p, 3)
            if sigma > MAX_SIGMA + 1e-4:
                continue
            strains = [float(labelled.info[key]) + 0.0 for key in ("strain_x", "strain_y")]
            phase = "1Tp" if labelled.info["phase"].startswith("1T") else "2H"
            # unperturbed structures are the same in all parts
            key = (phase, *strains, sigma, part // 2 if p else None)
            if key in seen:
                continue
            seen.add(key)
            stress = labelled.get_stress().copy()
            stress[:3] += PULAY * len(labelled) / 3 / labelled.get_volume()
            atoms = labelled.copy()
            atoms.info = {
                "phase": phase,
                "strain_x": strains[0],
                "strain_y": strains[1],
                "sigma": sigma,
            }
            atoms.calc = SinglePointCalculator(
                atoms,
                energy=labelled.get_potential_energy(),
                forces=labelled.get_forces(),
                stress=stress,
            )
            structures.append(atoms)
    names = ("phase", "strain_x", "strain_y", "sigma")
    return sorted(structures, key=lambda atoms: tuple(atoms.info[name] for name in names))


if __name__ == "__main__":
    write(sys.argv[1], merged())
