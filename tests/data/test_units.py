import numpy as np
import pytest
from ase import units

from schnetpack_softadapt.data.formats.units import (
    ENERGY_UNITS,
    LENGTH_UNITS,
    STRESS_UNITS,
    stress_matrix,
    stress_order,
    unit_factor,
)

# a different number in each component: any two exchanged would show
TENSOR = np.array([[1.0, 6.0, 5.0], [6.0, 2.0, 4.0], [5.0, 4.0, 3.0]])
SIX = {
    "voigt": [1, 2, 3, 4, 5, 6],  # xx yy zz yz xz xy
    "vasp": [1, 2, 3, 6, 4, 5],  # xx yy zz xy yz zx
    "lammps": [1, 2, 3, 6, 5, 4],  # xx yy zz xy xz yz
    "zz xx yy ZX yx zy": [3, 1, 2, 5, 6, 4],
}


@pytest.mark.parametrize("order", SIX)
def test_each_order_puts_every_number_in_its_place(order):
    assert np.array_equal(stress_matrix(SIX[order], stress_order(order)), TENSOR)


def test_nine_numbers_need_no_order():
    assert np.array_equal(stress_matrix(TENSOR.ravel(), stress_order("vasp")), TENSOR)


def test_the_factor_carries_unit_and_sign():
    factor = -unit_factor("kbar", STRESS_UNITS, "stress")
    # 1 kbar = 0.1 GPa
    assert np.allclose(stress_matrix(TENSOR, factor=factor), -0.1 * units.GPa * TENSOR, rtol=1e-12)


@pytest.mark.parametrize("text", ["xx yy zz", "xx yy zz xy xy yz", "abinit", "xx yy zz xy xz yw"])
def test_an_unknown_order_is_refused(text):
    with pytest.raises(ValueError, match="unknown stress order"):
        stress_order(text)


def test_a_stress_that_is_not_symmetric_is_refused():
    with pytest.raises(ValueError, match="not symmetric"):
        stress_matrix(TENSOR + np.triu(np.ones((3, 3)), 1))


def test_a_stress_of_five_numbers_is_refused():
    with pytest.raises(ValueError, match="not six or nine"):
        stress_matrix(np.ones(5))


def test_units_against_independent_values():
    # CODATA 2018, to the digits in which ASE's constants (2014) agree
    assert unit_factor("Ha", ENERGY_UNITS, "energy") == pytest.approx(27.2113862, rel=1e-7)
    assert unit_factor("kcal/mol", ENERGY_UNITS, "energy") == pytest.approx(0.0433641, rel=1e-6)
    assert unit_factor("bohr", LENGTH_UNITS, "length") == pytest.approx(0.529177210, rel=1e-8)
    assert 1 / unit_factor("GPa", STRESS_UNITS, "stress") == pytest.approx(160.21766, rel=1e-7)
    assert unit_factor("eV/Ang**3", STRESS_UNITS, "stress") == 1
    ha_bohr3 = unit_factor("Ha/bohr^3", STRESS_UNITS, "stress")
    assert ha_bohr3 / unit_factor("GPa", STRESS_UNITS, "stress") == pytest.approx(29421.0, rel=1e-5)


def test_an_unknown_unit_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"unknown stress unit 'psi'.*kbar"):
        unit_factor("psi", STRESS_UNITS, "stress")
