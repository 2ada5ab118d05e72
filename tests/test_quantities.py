"""The table of energy, forces and stress: units and Voigt order."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from ase import units
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from schnetpack_softadapt import quantities
from schnetpack_softadapt.quantities import QUANTITIES, VOIGT, full_to_voigt, voigt_to_full
from schnetpack_softadapt.training.units import unit_factor

RNG = np.random.default_rng(0)


def test_voigt_tables_say_the_same():
    """xx yy zz yz xz xy, from the letters alone."""
    rows, columns = zip(*(("xyz".index(a), "xyz".index(b)) for a, b in VOIGT), strict=True)
    assert (rows, columns) == (quantities.VOIGT_ROWS, quantities.VOIGT_COLUMNS)
    full = [3 * a + b for a, b in zip(rows, columns, strict=True)]
    assert list(quantities.VOIGT_IN_FULL) == full
    names = [VOIGT[k] for k in quantities.VOIGT_OF_FULL]
    assert names == ["xx", "xy", "xz", "xy", "yy", "yz", "xz", "yz", "zz"]


@pytest.mark.parametrize("to", [np.asarray, torch.from_numpy])
def test_conversion_is_ases(to):
    """Exact: both copy and average two equal numbers."""
    six = RNG.normal(size=(4, 6))
    full = np.array([voigt_6_to_full_3x3_stress(row) for row in six])
    assert np.array_equal(np.asarray(voigt_to_full(to(six))), full)
    assert np.array_equal(np.asarray(full_to_voigt(to(full))), six)


def test_only_the_symmetric_part_counts():
    full = RNG.normal(size=(3, 3))
    symmetric = 0.5 * (full + full.T)
    expected = full_3x3_to_voigt_6_stress(symmetric)
    assert full_to_voigt(full) == pytest.approx(expected, rel=1e-15)


def test_factors_are_those_of_schnetpacks_units():
    """Our factors are written down, SchNetPack's parser finds them from the names."""
    for q in QUANTITIES:
        for unit, factor in ((q.shown_unit, q.shown_factor), (q.axis_unit, q.axis_factor)):
            source = q.unit
            if unit.endswith("/atom"):
                unit = unit.removesuffix("/atom")  # a number of atoms is no unit there
            target = unit.replace("Å", "Ang")
            assert unit_factor(source, target) == pytest.approx(factor, rel=1e-12)
    assert pytest.approx(160217.66, rel=1e-7) == quantities.STRESS.shown_factor == 1e3 / units.GPa


def test_no_framework_is_imported():
    code = (
        "import sys, schnetpack_softadapt.quantities\n"
        "print({'torch', 'schnetpack', 'pytorch_lightning'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
