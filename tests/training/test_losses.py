"""Loss components against numbers computed by hand."""

import numpy as np
import pytest
import torch
import toy_runs
from ase import Atoms, units
from ase.calculators.emt import EMT
from schnetpack import properties

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.data.statistics import training_targets
from schnetpack_softadapt.training.losses import EnergyLoss, ForcesLoss, StressLoss
from schnetpack_softadapt.training.standardize import Standardization


@pytest.fixture
def batch():
    """Two structures, of one Cu and of two atoms Cu, Au."""
    generator = torch.Generator().manual_seed(0)
    cell = torch.diag_embed(torch.tensor([[2.0, 3.0, -4.0], [2.0, 2.0, 2.0]]))  # one left-handed
    return {
        properties.n_atoms: torch.tensor([1, 2]),
        properties.idx_m: torch.tensor([0, 1, 1]),
        properties.idx: torch.tensor([4, 7]),
        properties.Z: torch.tensor([29, 29, 79]),
        properties.cell: cell,
        "energy": torch.tensor([1.0, 2.0]),
        "forces": torch.randn(3, 3, generator=generator),
        "stress": torch.randn(2, 3, 3, generator=generator),
    }


@pytest.fixture
def pred(batch):
    """Errors: energy 1 and 4, forces 1, 2, 3 on each atom's components, stress 1 everywhere."""
    return {
        "energy": batch["energy"] + torch.tensor([1.0, 4.0]),
        "forces": batch["forces"] + torch.tensor([[1.0], [2.0], [3.0]]),
        "stress": batch["stress"] + torch.ones(2, 3, 3),
    }


def loss(component, pred, batch, standardization=None):
    residual, weight = component.residuals(pred, batch, standardization)
    total, count = component.sum(residual, weight)
    return float(component.finish(total / count).detach())


# float32 labels: differences of numbers of order 1 are good to 1e-6
FLOAT32 = {"rel": 2e-6}


def test_raw_losses(batch, pred):
    assert loss(EnergyLoss(), pred, batch) == pytest.approx((1 + 4) / 2, **FLOAT32)  # per atom 1, 2
    assert loss(ForcesLoss(), pred, batch) == pytest.approx((1 + 4 + 9) / 3, **FLOAT32)
    assert loss(StressLoss(), pred, batch) == pytest.approx(1.0, **FLOAT32)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mse", 14 / 3),
        ("mae", 2.0),
        ("rmse", (14 / 3) ** 0.5),
        ("huber", (0.5 + 1.5 * (2 - 0.75) + 1.5 * (3 - 0.75)) / 3),  # delta (|x| - delta / 2)
    ],
)
def test_functions(batch, pred, name, expected):
    component = ForcesLoss(loss=name, delta=1.5)
    assert loss(component, pred, batch) == pytest.approx(expected, **FLOAT32)


def test_huber_is_half_the_square_inside(batch, pred):
    assert loss(ForcesLoss(loss="huber", delta=1e3), pred, batch) == pytest.approx(7 / 3, **FLOAT32)


def test_units_of_raw_losses(batch, pred):
    assert loss(EnergyLoss(unit="meV"), pred, batch) == pytest.approx(2.5e6, **FLOAT32)
    gpa = 1.0 / units.GPa
    assert loss(StressLoss(unit="GPa"), pred, batch) == pytest.approx(gpa**2, **FLOAT32)
    assert loss(StressLoss(unit="MPa", loss="mae"), pred, batch) == pytest.approx(
        1e3 * gpa, **FLOAT32
    )
    kcal = units.mol / units.kcal
    assert loss(ForcesLoss(unit="kcal/mol/Ang", loss="mae"), pred, batch) == pytest.approx(
        2 * kcal, **FLOAT32
    )
    with pytest.raises(ValueError, match="parsec"):
        EnergyLoss(unit="parsec")


def test_standardised_by_hand(batch, pred):
    s = Standardization()
    s.energy_variance[29], s.energy_variance[79] = 0.25, 0.75
    s.force_scale[29], s.force_scale[79] = 2.0, 0.5
    s.stress_scale.fill_(4.0)
    # 1 / 0.5 and 4 / 1 ; 1/2, 2/2, 3/0.5 ; V/(sqrt(N) tau) = 24/4 and 8/(4 sqrt 2), V > 0
    assert loss(EnergyLoss(), pred, batch, s) == pytest.approx((4 + 16) / 2, **FLOAT32)
    assert loss(ForcesLoss(), pred, batch, s) == pytest.approx((0.25 + 1 + 36) / 3, **FLOAT32)
    assert loss(StressLoss(), pred, batch, s) == pytest.approx((36 + 2) / 2, **FLOAT32)
    assert (StressLoss().scale(batch, s) > 0).all()  # the sign of residuals stays


def test_stress_counts_six_components(batch, pred):
    pred["stress"] = batch["stress"].clone()
    pred["stress"][:, 0, 1] += 2.0  # an error in one off-diagonal entry: 1 in the symmetric part
    assert loss(StressLoss(), pred, batch) == pytest.approx(1 / 6, **FLOAT32)


def test_stress_of_stock_forces_is_not_contiguous(batch, pred):
    expected = loss(StressLoss(), pred, batch)
    strided = pred["stress"].transpose(1, 2).contiguous().transpose(1, 2)
    assert not strided.is_contiguous()  # as schnetpack.atomistic.Forces returns it
    assert loss(StressLoss(), {**pred, "stress": strided}, batch) == expected


def test_masked_stress_has_neither_value_nor_gradient(batch, pred):
    batch[keys.stress_mask] = torch.tensor([0.0, 1.0])
    pred["stress"][0] = torch.nan  # what a structure without a cell gives
    pred["stress"].requires_grad_()
    component = StressLoss()
    assert loss(component, pred, batch) == pytest.approx(1.0, **FLOAT32)
    total, _ = component.sum(*component.residuals(pred, batch))
    total.backward()
    assert torch.equal(pred["stress"].grad[0], torch.zeros(3, 3))
    # one structure counts: the mean over six components of squares of one
    slope = 2 / 6 * float(component.sum(*component.residuals(pred, batch))[1])
    expected = torch.full((3, 3), slope / 2).fill_diagonal_(slope)  # xy and yx share one
    torch.testing.assert_close(pred["stress"].grad[1], expected, rtol=2e-6, atol=0)


def test_weights_of_structures_and_atoms(batch, pred):
    batch[keys.structure_weight] = torch.tensor([3.0, 1.0])
    assert loss(EnergyLoss(), pred, batch) == pytest.approx((3 * 1 + 4) / 4, **FLOAT32)
    forces = (3 * 1 + 4 + 9) / 5
    assert loss(ForcesLoss(), pred, batch) == pytest.approx(forces, **FLOAT32)
    batch[keys.forces_weight] = torch.tensor([[1.0], [0.0], [2.0]])
    forces = (3 * 1 + 2 * 9) / 5
    assert loss(ForcesLoss(), pred, batch) == pytest.approx(forces, **FLOAT32)


def test_huber_bends_in_units_of_the_spread_that_a_weight_means(batch, pred):
    """Weight 4 is a spread of 1/2: linear from delta / 2 on. A weight of zero does not count."""
    batch[keys.structure_weight] = torch.tensor([4.0, 1.0])

    def mean(component):
        total, count = component.terms(pred, batch)
        return float(total / count)

    def huber(x, delta):
        return delta * (x - delta / 2)

    # errors per atom 1 and 2; of forces 1 in the first structure, 2 and 3 in the second
    energy = (4 * huber(1, 0.25) + huber(2, 0.5)) / 5
    assert mean(EnergyLoss(loss="huber", delta=0.5)) == pytest.approx(energy, **FLOAT32)
    forces = (4 * huber(1, 0.5) + huber(2, 1) + huber(3, 1)) / 6
    assert mean(ForcesLoss(loss="huber")) == pytest.approx(forces, **FLOAT32)
    batch[keys.structure_weight] = torch.tensor([0.0, 1.0])
    assert mean(EnergyLoss(loss="huber")) == pytest.approx(huber(2, 1), **FLOAT32)


def test_split_by_element(batch, pred):
    gold = ForcesLoss(component="forces_Au", elements=["Au"])
    rest = ForcesLoss(component="forces_Cu", elements=[29])
    assert loss(gold, pred, batch) == pytest.approx(9.0, **FLOAT32)
    assert loss(rest, pred, batch) == pytest.approx(2.5, **FLOAT32)
    both = loss(ForcesLoss(elements=["Cu", "Au"]), pred, batch)
    assert both == pytest.approx(14 / 3, **FLOAT32)
    with pytest.raises(ValueError, match="Xx"):
        ForcesLoss(elements=["Xx"])


VOIGT = ("xx", "yy", "zz", "yz", "xz", "xy")


def test_stress_split_in_normal_and_shear(batch, pred):
    """Errors 1 to 6 in Voigt order; the whole is the mean of its pieces by number of labels."""
    for value, (i, j) in enumerate([(0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1)], start=1):
        pred["stress"][:, i, j] = pred["stress"][:, j, i] = value
    batch["stress"] = torch.zeros(2, 3, 3)
    normal, shear = StressLoss(split="normal_shear").pieces()
    assert (normal.component, shear.component) == ("stress_normal", "stress_shear")
    assert loss(normal, pred, batch) == pytest.approx((1 + 4 + 9) / 3, **FLOAT32)
    assert loss(shear, pred, batch) == pytest.approx((16 + 25 + 36) / 3, **FLOAT32)
    each = StressLoss(split="voigt", component="s").pieces()
    assert [c.component for c in each] == [f"s_{name}" for name in VOIGT]
    found = [loss(c, pred, batch) for c in each]
    assert found == pytest.approx([1, 4, 9, 16, 25, 36], **FLOAT32)
    assert {c.whole for c in (normal, shear)} == {"stress"}
    some = StressLoss(split="normal_shear", voigt=["xx", "xy"]).pieces()
    assert [loss(c, pred, batch) for c in some] == pytest.approx([1, 36], **FLOAT32)
    s = Standardization()
    s.stress_scale.fill_(4.0)
    whole = loss(StressLoss(), pred, batch, s)
    halves = loss(normal, pred, batch, s) + loss(shear, pred, batch, s)
    assert halves / 2 == pytest.approx(whole, **FLOAT32)
    assert StressLoss().pieces()[0].whole == "stress"


def test_labels_of_pieces_are_counted(database):
    datamodule = toy_runs.toy_data(database, 14, 2, 2, split_file=None)
    datamodule.setup()
    targets = training_targets(datamodule)
    known = targets.stress_mask.mean()
    assert known == 13 / 14
    for split, n in (("normal_shear", 3), ("voigt", 1)):
        assert [c.labels(targets) for c in StressLoss(split=split).pieces()] == [n * known] * (
            6 // n
        )
    gold, copper = ForcesLoss(split="elements", elements=["Au", "Cu"]).pieces()
    assert (gold.component, copper.component) == ("forces_Au", "forces_Cu")
    n_gold = (targets.numbers == 79).sum()
    assert gold.labels(targets) == pytest.approx(3 * n_gold / 14, rel=1e-12)
    assert gold.labels(targets) + copper.labels(targets) == pytest.approx(
        ForcesLoss().labels(targets), rel=1e-12
    )


def test_split_by_names_of_groups(batch, pred):
    batch[keys.group] = torch.tensor([0, 1])
    pieces = EnergyLoss(split="groups", groups=["bulk", "elastic"]).pieces()
    for piece in pieces:
        piece.bind(Groups())
    assert [piece.component for piece in pieces] == ["energy_bulk", "energy_elastic"]
    assert [loss(piece, pred, batch) for piece in pieces] == pytest.approx([1, 4], **FLOAT32)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: StressLoss(split="shear"),
            "one of groups, normal_shear, voigt, not 'shear'",
        ),
        (lambda: EnergyLoss(split="elements"), "split is one of groups, not 'elements'"),
        (lambda: ForcesLoss(split="elements").pieces(), "split=elements needs the list `elements`"),
        (lambda: ForcesLoss(split="groups").pieces(), "split=groups needs the list `groups`"),
        (lambda: StressLoss(voigt=["xx", "zx"]), "voigt names different components among xx.*'zx'"),
        (lambda: StressLoss(voigt=["xx", "xx"]), "different"),
    ],
)
def test_splits_that_there_are_not(make, text):
    with pytest.raises(ValueError, match=text):
        make()


class Groups:
    """A dataset with structure groups, by index in the database."""

    def __init__(self):
        self.units = {"energy": "eV"}
        ids = {"group": [0] * 7 + [1]}
        self.metadata = {"group_names": ["bulk", "elastic"], "groups_ids": ids}


@pytest.mark.parametrize("in_batch", [True, False])
def test_split_by_group(batch, pred, in_batch):
    if in_batch:  # our datamodule; SchNetPack's gives the index of the structure only
        batch[keys.group] = torch.tensor([0, 1])
    for name, energy, forces in (("bulk", 1.0, 1.0), ("elastic", 4.0, 6.5)):
        for component, expected in ((EnergyLoss, energy), (ForcesLoss, forces)):
            part = component(component=f"part_{name}", groups=[name])
            part.bind(Groups())
            assert loss(part, pred, batch) == pytest.approx(expected, **FLOAT32)


def test_unknown_groups_are_refused():
    with pytest.raises(ValueError, match=r"surface.*bulk, elastic"):
        EnergyLoss(groups=["surface"]).bind(Groups())
    bare = Groups()
    bare.metadata = {}
    with pytest.raises(ValueError, match="no structure groups"):
        EnergyLoss(groups=["bulk"]).bind(bare)


def test_units_of_the_data_are_converted():
    dataset = Groups()
    dataset.units = {"energy": "kcal/mol"}
    component = EnergyLoss()
    component.bind(dataset)
    assert component.to_ase == pytest.approx(units.kcal / units.mol, rel=1e-10)


def test_float64_energies_keep_their_digits(batch):
    component = EnergyLoss()
    batch["energy"] = torch.tensor([-1e6, -2e6], dtype=torch.float64)
    pred = {"energy": batch["energy"] + torch.tensor([1e-3, 0.0], dtype=torch.float64)}
    error = component.error(pred, batch)
    assert float(error[0]) == pytest.approx(1e-3, rel=1e-6)


def test_rmse_of_a_perfect_fit_has_a_gradient(batch):
    pred = {"forces": batch["forces"].clone().requires_grad_()}
    component = ForcesLoss(loss="rmse")
    total, count = component.sum(*component.residuals(pred, batch))
    component.finish(total / count).backward()
    assert torch.equal(pred["forces"].grad, torch.zeros(3, 3))


def test_other_tasks_are_told(batch, pred):
    with pytest.raises(ValueError, match=r"task._target_=schnetpack_softadapt.SoftAdaptTask"):
        EnergyLoss().calculate_loss(pred, {"energy": batch["energy"]})


def test_bad_arguments():
    with pytest.raises(ValueError, match="mse"):
        EnergyLoss(loss="l3")
    with pytest.raises(ValueError, match="delta"):
        EnergyLoss(delta=0.0)


def test_toy_data_has_the_stress_of_emt(database):
    datamodule = toy_runs.toy_data(database, split_file=None, stock=True)
    datamodule.setup()
    batch = next(iter(datamodule.val_dataloader()))
    first = batch[properties.idx_m] == 0
    atoms = Atoms(
        batch[properties.Z][first],
        batch[properties.R][first],
        cell=batch[properties.cell][0].double(),
        pbc=True,
    )
    atoms.calc = EMT()
    # float32 positions
    np.testing.assert_allclose(batch["stress"][0], atoms.get_stress(voigt=False), rtol=0, atol=1e-6)
