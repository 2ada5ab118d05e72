"""Elements that do not exist, and those that a model does not know: one error for all rooms."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from engine_calls import KernelCalls, ReferenceCalls

from schnetpack_softadapt.descriptors.acsf.grids import default_layout
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.element_index import ElementIndex
from schnetpack_softadapt.descriptors.elements import (
    UnknownElementError,
    atomic_number,
    check_elements,
)
from schnetpack_softadapt.descriptors.scaling import Scaling
from schnetpack_softadapt.descriptors.store.store import fingerprints
from schnetpack_softadapt.model import ElementalAtomwise, ElementShift
from schnetpack_softadapt.training.losses import ForcesLoss

FUNCTION = SymmetryFunction("G2", ("Te",), 4, 1)
LAYOUT = Layout({"Mo": [FUNCTION], "Te": [FUNCTION]})


def test_symbols_and_numbers():
    assert [atomic_number(e) for e in ("Mo", 52, np.int64(1), "Og")] == [42, 52, 1, 118]


@pytest.mark.parametrize("wrong", ["Xx", "mo", "X", "", 0, -1, 119])
@pytest.mark.parametrize(
    "use",
    [
        lambda e: Layout({e: [FUNCTION]}),
        lambda e: Layout.from_dict(
            {"Mo": [{"kind": "G2", "neighbors": [e], "cutoff": 4, "eta": 1}]}
        ),
        lambda e: default_layout([e]),
        lambda e: ElementIndex(["Mo", e]),
        lambda e: ElementalAtomwise({e: 1}, ["Mo"]),
        lambda e: ElementShift(shifts={e: -1.0}),
        lambda e: ForcesLoss(elements=[e]),
    ],
    ids=["layout", "neighbor", "grid", "index", "networks", "shift", "loss"],
)
def test_what_is_no_element(use, wrong):
    with pytest.raises(UnknownElementError, match=f"^{wrong!r} is no chemical element$"):
        use(wrong)


@pytest.mark.parametrize(
    "use",
    [
        lambda z: ReferenceCalls(LAYOUT).values(torch.zeros(0, 3), z[:0], z[:0], z),
        lambda z: KernelCalls(LAYOUT).values(torch.zeros(0, 3), z[:0], z[:0], z),
        lambda z: Scaling(LAYOUT.n_functions)(torch.zeros(len(z), 1), z),
        lambda z: Scaling(LAYOUT.n_functions).fit([(torch.zeros(len(z), 1), z)]),
        lambda z: fingerprints([SimpleNamespace(numbers=z.numpy())], LAYOUT, ("float32",)),
        lambda z: ElementIndex(["Te", "Mo"])(z),
    ],
    ids=["reference", "kernels", "scaling", "fit", "store", "networks"],
)
def test_an_element_that_the_model_does_not_know(use):
    with pytest.raises(
        UnknownElementError, match=r"the model does not know H, Ag; it was made for Mo, Te\."
    ):
        use(torch.tensor([52, 47, 1, 47]))


def test_where_it_is():
    check_elements([42, 42], LAYOUT.elements)
    message = "structure 7: the model does not know atomic number 0, atomic number 119; it"
    with pytest.raises(UnknownElementError, match=message):
        check_elements([0, 42, 119], LAYOUT.elements, "structure 7")
