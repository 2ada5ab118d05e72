"""torch-sim sees what the calculator says, of several systems at once."""

import numpy as np
import pytest
import torch
from deploy_models import make_model, mote2

from schnetpack_softadapt.deploy.calculator import SoftAdaptCalculator

torch_sim = pytest.importorskip("torch_sim")


def test_several_systems_and_a_committee():
    from schnetpack_softadapt.deploy.torch_sim import SoftAdaptModel

    models = [make_model(seed=k) for k in range(2)]
    structures = [mote2(0.1), mote2(0.1, seed=4) * (2, 1, 1), mote2(0.05, seed=5)[[0, 1, 2]]]
    model = SoftAdaptModel(models)
    state = torch_sim.initialize_state(structures, device=torch.device("cpu"), dtype=torch.float64)
    found = model(state)
    assert model.compute_stress
    for m, atoms in enumerate(structures):
        atoms.calc = SoftAdaptCalculator(models)
        assert found["energy"][m].item() == pytest.approx(atoms.get_potential_energy(), abs=1e-10)
        forces = found["forces"][state.system_idx == m].numpy()
        np.testing.assert_allclose(forces, atoms.get_forces(), rtol=0, atol=1e-10)
        stress = found["stress"][m].numpy()
        np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), rtol=0, atol=1e-11)
    model_in_kcal = make_model()
    model_in_kcal.metadata = {"units": {"energy": "kcal/mol", "length": "Ang"}}
    with pytest.raises(ValueError, match="works in eV and Ang"):
        SoftAdaptModel(model_in_kcal)
