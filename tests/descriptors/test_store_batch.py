"""Derivatives from the store against those of the formulas, and against each other."""

import copy

import numpy as np
import pytest
import torch
from engine_calls import ReferenceCalls
from small_store import batch_of, layout, structures

from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors import autograd
from schnetpack_softadapt.descriptors.store import batch as store_batch
from schnetpack_softadapt.descriptors.store.batch import (
    DeviceMap,
    HostMap,
    batch_descriptors,
    position_terms,
)
from schnetpack_softadapt.descriptors.store.store import DescriptorStore
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

INDICES = [4, 0, 2, 3, 1, 5]  # not in the order of the store


@pytest.fixture(scope="module")
def data():
    return structures()


@pytest.fixture(scope="module")
def stores(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    return {
        dtype: DescriptorStore.open_or_build(
            folder, data, layout(), dtype, n_jobs=1, progress=False
        )
        for dtype in ("float16", "float32", "float64")
    }


def strained(positions, offsets, strain, idx_m, idx_i):
    """What SchNetPack's `Strain` does to positions and offsets."""
    strain = strain.transpose(1, 2)
    positions = positions + torch.bmm(positions[:, None], strain[idx_m])[:, 0]
    offsets = offsets + torch.bmm(offsets[:, None], strain[idx_m[idx_i]])[:, 0]
    return positions, offsets


def descriptors_of_pairs(positions, strain, idx_m, data):
    """Descriptors by the formulas, differentiable to any order."""
    idx_i, idx_j, offsets, n = [], [], [], 0
    for k in INDICES:
        s = data[k]
        i, j, _, offset = neighbor_pairs(s.positions, s.cell, s.pbc, layout().cutoff)
        idx_i.append(torch.from_numpy(i + n))
        idx_j.append(torch.from_numpy(j + n))
        offsets.append(torch.from_numpy(offset))
        n += len(s.numbers)
    idx_i, idx_j, offsets = torch.cat(idx_i), torch.cat(idx_j), torch.cat(offsets)
    numbers = torch.from_numpy(np.concatenate([data[k].numbers for k in INDICES]))
    moved, offsets = strained(positions, offsets.to(positions.dtype), strain, idx_m, idx_i)
    r_ij = moved[idx_j] - moved[idx_i] + offsets
    return moved, ReferenceCalls(layout()).values(r_ij, idx_i, idx_j, numbers)


def descriptors_of_store(positions, strain, idx_m, batch):
    empty = torch.zeros(0, 3, dtype=positions.dtype)
    none = torch.zeros(0, dtype=torch.int64)
    moved, _ = strained(positions, empty, strain, idx_m, none)
    return moved, batch_descriptors(moved, strain, idx_m, batch)


def train(descriptors, positions, strain):
    """Energy, gradients by positions and strain, and the gradient of a loss by the weights."""
    generator = torch.Generator().manual_seed(0)
    random = {"generator": generator, "dtype": torch.float64}
    weights = torch.randn(descriptors[1].shape[1], 5, **random).to(positions.dtype)
    weights.requires_grad_()
    moved, g = descriptors
    energy = torch.tanh(g @ weights).sum()
    grad_r, grad_strain = torch.autograd.grad(energy, [moved, strain], create_graph=True)
    target_r = torch.randn(grad_r.shape, **random).to(positions.dtype)
    target_s = torch.randn(grad_strain.shape, **random).to(positions.dtype)
    loss = energy**2 + ((grad_r - target_r) ** 2).sum() + ((grad_strain - target_s) ** 2).sum()
    loss.backward()
    return energy, grad_r, grad_strain, weights.grad


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float64", 1e-13), ("float32", 3e-7), ("float16", 5e-5)]
)
def test_energy_forces_stress_and_training_equal_those_of_the_formulas(
    stores, data, dtype, tolerance
):
    """Relative to the largest value: other order of the sums, and the store is rounded, in half
    precision to 1/65534 of the largest derivative of an atom and column."""
    positions, strain, idx_m, batch = batch_of(stores[dtype], INDICES, data)
    ours = train(descriptors_of_store(positions, strain, idx_m, batch), positions, strain)
    positions, strain, idx_m, _ = batch_of(stores[dtype], INDICES, data)
    exact = train(descriptors_of_pairs(positions, strain, idx_m, data), positions, strain)
    for a, b in zip(ours, exact, strict=True):
        a, b = a.detach(), b.detach()
        assert b.abs().max() > 0.1
        torch.testing.assert_close(a, b, atol=tolerance * float(b.abs().max()), rtol=0)
    # function by function
    error, size = (ours[3] - exact[3]).abs().amax(1), exact[3].abs().amax(1)
    assert (error <= tolerance * size).all()
    symmetric = ours[2].detach()
    scale = float(symmetric.abs().max())
    assert (symmetric - symmetric.transpose(1, 2)).abs().max() < tolerance * scale


def test_float32_batches(stores, data):
    """All in float32 as SchNetPack trains: a few roundings of sums of a few hundred terms."""
    positions, strain, idx_m, batch = batch_of(stores["float32"], INDICES, data, torch.float32)
    ours = train(descriptors_of_store(positions, strain, idx_m, batch), positions, strain)
    positions, strain, idx_m, _ = batch_of(stores["float32"], INDICES, data)
    exact = train(descriptors_of_pairs(positions, strain, idx_m, data), positions, strain)
    for a, b in zip(ours, exact, strict=True):
        a, b = a.detach(), b.detach()
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, atol=2e-6 * float(b.abs().max()), rtol=0)
    error, size = (ours[3] - exact[3]).abs().amax(1), exact[3].abs().amax(1)
    assert (error <= 2e-6 * size).all()


def jacobian(store, data, dtype=torch.float64, cls=HostMap, **changes):
    positions, strain, idx_m, batch = batch_of(store, INDICES, data, dtype)
    batch.update(changes)
    return cls(positions.detach(), len(strain), idx_m, batch)


def random_like(store, seed=0):
    rng = np.random.default_rng(seed)
    n, b = store.n_rows, store.n_structures
    u = torch.from_numpy(rng.normal(size=(n, store.G.shape[1])))
    return (
        u,
        torch.from_numpy(rng.normal(size=(n, 3))),
        torch.from_numpy(rng.normal(size=(b, 3, 3))),
    )


@pytest.mark.parametrize("cls", [HostMap, DeviceMap])
def test_products_function_by_function(stores, data, cls):
    """Both products of each column alone against autograd over the formulas."""
    store = stores["float64"]
    product = jacobian(store, data, cls=cls)
    u, d, s = random_like(store)
    positions, strain, idx_m, _ = batch_of(store, INDICES, data)
    _, g = descriptors_of_pairs(positions, strain, idx_m, data)
    numbers = np.concatenate([data[k].numbers for k in INDICES])
    elements = torch.from_numpy(numbers)
    jvp = product.jvp(d, None), product.jvp(None, s)
    for z in (1, 8):
        for column in range(layout().n_functions[z]):
            one = torch.zeros_like(u)
            one[elements == z, column] = u[elements == z, column]
            expected = torch.autograd.grad(g, [positions, strain], one, retain_graph=True)
            found = product.vjp(one)
            # the part that goes through the strained positions is not the store's
            flow = found[0][:, :, None] * positions.detach()[:, None, :]
            total = found[1].index_add(0, idx_m, flow)
            for a, b in zip((found[0], total), expected, strict=True):
                assert b.abs().max() > 1e-3
                # sums of a few hundred terms in another order
                assert (a - b).abs().max() < 1e-13 * b.abs().max()
            # the same numbers the other way
            for change, tangent, vjp in zip(jvp, (d, s), found, strict=True):
                left, right = (vjp * tangent), (one * change)
                scale = left.abs().sum() + right.abs().sum()
                assert (left.sum() - right.sum()).abs() < 1e-13 * scale


def test_paths_agree(stores, data, monkeypatch):
    """In place, gathered, plain torch, several threads: sums in other orders, 1e-13."""
    store = stores["float64"]
    u, d, s = random_like(store)
    rows = np.concatenate([np.arange(store.n_rows)[store.rows(k)] for k in INDICES])
    whole = jacobian(store, data)
    expected = *whole.vjp(u), whole.jvp(d, s)
    gathered = store.gather(rows)
    alone = {**gathered, keys.store_rows: None}
    for cls in (HostMap, DeviceMap):
        for batch in ({}, {**gathered, keys.store_rows: torch.arange(len(rows))}, alone):
            product = jacobian(store, data, cls=cls, **batch)
            for a, b in zip((*product.vjp(u), product.jvp(d, s)), expected, strict=True):
                torch.testing.assert_close(a, b, atol=1e-13 * float(b.abs().max()), rtol=0)
    monkeypatch.setattr(store_batch, "_BYTES_PER_THREAD", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert len(whole._ranges()) == 5
    for a, b in zip((*whole.vjp(u), whole.jvp(d, s)), expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-13 * float(b.abs().max()), rtol=0)


@pytest.mark.parametrize("cls", [HostMap, DeviceMap])
def test_half_precision_stays_within_half_a_unit_of_each_number(stores, data, cls):
    """Both products, for the batch in place and gathered, against float64 with the bound itself."""
    half, exact = stores["float16"], stores["float64"]
    assert half.dg_dr.dtype == np.int16
    u, d, s = random_like(half)
    rows = np.concatenate([np.arange(half.n_rows)[half.rows(k)] for k in INDICES])
    gathered = {**half.gather(rows), keys.store_rows: None}
    expected_r, _ = jacobian(exact, data, cls=cls).vjp(u)
    expected_g = jacobian(exact, data, cls=cls).jvp(d, s)
    bound_r, bound_g = torch.zeros(len(rows), 3).double(), torch.zeros_like(u)
    first_atom = np.concatenate([[0], np.cumsum([len(data[k].numbers) for k in INDICES])])
    of_structure = np.repeat(np.arange(len(INDICES)), np.diff(first_atom))
    positions = batch_of(exact, INDICES, data)[0].detach()
    t = d - torch.einsum("nac,nc->na", s[of_structure], positions)  # what blocks are multiplied by
    for i, row in enumerate(rows):
        for b in range(half.block_first[row], half.block_first[row + 1]):
            j = first_atom[of_structure[i]] + int(half.block_atom[b])
            columns = np.unique(half.columns[half.block_columns[b]])
            unit = torch.from_numpy(half.scale[row, columns]).double() / 2
            error = (u[i, columns].abs() * unit).sum()
            bound_r[j] += error
            bound_r[i] += error
            bound_g[i, columns] += unit * (t[j] - t[i]).abs().sum()
    for changes in ({}, gathered):
        product = jacobian(half, data, cls=cls, **changes)
        found_r, _ = product.vjp(u)
        found_g = product.jvp(d, s)
        # and float32 sums of a few hundred terms
        assert ((found_r - expected_r).abs() <= bound_r + 3e-6 * expected_r.abs().max()).all()
        assert ((found_g - expected_g).abs() <= bound_g + 3e-6 * expected_g.abs().max()).all()
        assert (found_r - expected_r).abs().max() > 1e-8


def test_forces_in_half_precision_are_differences_of_the_energy(stores, data):
    """Central differences of an energy of the formulas, along all axes of a few atoms."""
    positions, strain, idx_m, batch = batch_of(stores["float16"], INDICES, data)
    weights = torch.linspace(-1, 1, layout().n_columns).double()
    energy = torch.tanh(descriptors_of_store(positions, strain, idx_m, batch)[1] @ weights).sum()
    (gradient,) = torch.autograd.grad(energy, positions)

    def energy_at(atom, axis, step):
        moved = copy.deepcopy(data)
        k = int(idx_m[atom])
        moved[INDICES[k]].positions[atom - int((idx_m < k).sum()), axis] += step
        positions, strain, _, _ = batch_of(stores["float64"], INDICES, moved)
        with torch.no_grad():
            _, g = descriptors_of_pairs(positions, strain, idx_m, moved)
        return torch.tanh(g @ weights).sum()

    h = 1e-4
    for atom in (0, 5, 9):
        for axis in range(3):
            expected = (energy_at(atom, axis, h) - energy_at(atom, axis, -h)) / (2 * h)
            # 1/65534 of a derivative, some ten terms
            assert (gradient[atom, axis] - expected).abs() < 3e-5 * gradient.abs().max()


@pytest.mark.parametrize("in_place", [True, False])
def test_terms_in_half_precision(stores, data, in_place):
    """What second-order optimizers read, number by number."""
    found = []
    for dtype in ("float16", "float64"):
        store = stores[dtype]
        *_, idx_m, batch = batch_of(store, INDICES, data)
        rows = batch[keys.store_rows].numpy()
        if not in_place:
            batch = {keys.descriptors: batch[keys.descriptors], **store.gather(rows)}
        found.append(position_terms(torch.tensor([7, 0, 12]), idx_m, batch))
    half, exact = found
    assert torch.equal(half.centers, exact.centers)
    assert torch.equal(half.rows, exact.rows)
    unit = torch.from_numpy(stores["float16"].scale[rows])[half.centers][:, None].double()
    own = (half.centers == torch.tensor([7, 0, 12])[half.rows])[:, None, None]
    # the block of an atom with itself sums over the others, 18 at most
    allowed = torch.where(own, 9.0, 0.5) * unit * 1.001 + 1e-6 * exact.derivatives.abs()
    assert ((half.derivatives - exact.derivatives).abs() <= allowed).all()
    assert (half.derivatives != exact.derivatives).any()


def test_gathered_batch_without_rows(stores, data):
    store = stores["float64"]
    rows = np.concatenate([np.arange(store.n_rows)[store.rows(k)] for k in INDICES])
    positions, strain, idx_m, batch = batch_of(store, INDICES, data)
    expected = train(descriptors_of_store(positions, strain, idx_m, batch), positions, strain)
    batch = {keys.descriptors: batch[keys.descriptors], **store.gather(rows)}
    ours = train(descriptors_of_store(positions, strain, idx_m, batch), positions, strain)
    for a, b in zip(ours, expected, strict=True):
        assert torch.equal(a, b)


def test_gradcheck(stores, data):
    """First order of both linear maps; with it, every order of what lies between."""
    store = stores["float64"]
    positions, strain, idx_m, batch = batch_of(store, [2, 1], data)
    product = HostMap(positions.detach(), 2, idx_m, batch)
    n = len(positions)
    u, d, s = random_like(store)
    u, d, s = (x[:k].clone().requires_grad_() for x, k in ((u, n), (d, n), (s, 2)))
    fixed = positions.detach(), strain.detach()

    def gradient(u):
        return autograd._Gradient.apply(u, autograd._Call(product), None, *fixed)

    def tangent(d, s):
        return autograd._Tangent.apply(2, autograd._Call(product), None, d, s, *fixed)

    assert torch.autograd.gradcheck(gradient, u)
    assert torch.autograd.gradgradcheck(gradient, u)
    assert torch.autograd.gradcheck(tangent, (d, s))
    assert torch.autograd.gradgradcheck(tangent, (d, s))


def test_a_batch_on_a_gpu_has_no_index_for_each_number(stores, data):
    """Indices of 64 bits for each would double the memory of a float32 store."""
    product = jacobian(stores["float32"], data, cls=DeviceMap)
    indices = [x for x in vars(product).values() if isinstance(x, torch.Tensor)]
    indices = [x for x in indices if not x.is_floating_point()]
    assert max(x.numel() for x in indices) == len(product.dg_dr)


def test_forces_sum_to_zero(stores, data):
    store = stores["float64"]
    grad_r, _ = jacobian(store, data).vjp(random_like(store)[0])
    *_, idx_m, _ = batch_of(store, INDICES, data)
    total = torch.zeros(len(INDICES), 3, dtype=torch.float64).index_add_(0, idx_m, grad_r)
    # atoms of the molecule feel a few eV/Ang
    assert total.abs().max() < 1e-13 * grad_r.abs().sum()


def test_second_derivatives_by_positions_are_nan(stores, data):
    positions, strain, idx_m, batch = batch_of(stores["float64"], INDICES, data)
    g = batch_descriptors(positions, strain, idx_m, batch)
    for leaf in (positions, strain):
        energy = (g**2).sum()
        (first,) = torch.autograd.grad(energy, leaf, create_graph=True)
        second = torch.autograd.grad((first**2).sum(), [positions, strain], retain_graph=True)
        assert all(x.isnan().all() for x in second)
    # also where the energy is linear in the descriptors
    (first,) = torch.autograd.grad(g.sum(), positions, create_graph=True)
    assert torch.autograd.grad(first.square().sum(), positions)[0].isnan().all()


def test_training_under_detect_anomaly(stores, data):
    """The NaN that nobody reads does not stop it; what somebody asks for does."""

    def loss_of(leaves):
        positions, strain, idx_m, batch = batch_of(stores["float64"], INDICES, data)
        leaves += [positions, strain]
        moved, g = descriptors_of_store(positions, strain, idx_m, batch)
        weights = torch.linspace(-1, 1, g.shape[1], dtype=g.dtype).requires_grad_()
        energy = torch.tanh(g * weights).sum()
        grads = torch.autograd.grad(energy, [moved, strain], create_graph=True)
        return sum((x**2).sum() for x in grads), weights

    loss, weights = loss_of([])
    (expected,) = torch.autograd.grad(loss, weights)
    with torch.autograd.detect_anomaly():
        loss, weights = loss_of(leaves := [])
        assert torch.equal(torch.autograd.grad(loss, weights, retain_graph=True)[0], expected)
        for leaf in leaves:
            with pytest.raises(RuntimeError, match=r"second derivative .* was asked for"):
                torch.autograd.grad(loss, leaf, retain_graph=True)
        loss.backward()
        assert torch.equal(weights.grad, expected)
        assert all(leaf.grad.isnan().all() for leaf in leaves)
        # the leaves are not spoiled for what comes after
        positions, strain = leaves
        positions.grad = None
        *_, idx_m, batch = batch_of(stores["float64"], INDICES, data)
        batch_descriptors(positions, strain, idx_m, batch).sum().backward()
        assert positions.grad.isfinite().all()


def test_nan_stays_within_its_backward_pass(stores, data):
    """A pass over the same graph after one of second order gives first derivatives as before."""
    positions, strain, idx_m, batch = batch_of(stores["float64"], INDICES, data)
    g = batch_descriptors(positions, strain, idx_m, batch)
    weights = torch.linspace(-1, 1, g.shape[1], dtype=g.dtype).requires_grad_()
    energy = torch.tanh(g * weights).sum()
    before = torch.autograd.grad(energy, [positions, strain], create_graph=True)
    (before[0] ** 2).sum().backward(retain_graph=True)
    assert positions.grad.isnan().all()
    assert weights.grad.isfinite().all()
    after = torch.autograd.grad(energy, [positions, strain])
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_training_step_reads_the_store_twice(stores, data, monkeypatch):
    """Once for the forces, once for their derivative; the pass back to the positions is nan."""
    calls = []
    for name in ("vjp", "jvp"):
        method = getattr(HostMap, name)
        monkeypatch.setattr(
            HostMap,
            name,
            lambda self, *args, name=name, method=method: calls.append(name) or method(self, *args),
        )
    positions, strain, idx_m, batch = batch_of(stores["float64"], INDICES, data)
    train(descriptors_of_store(positions, strain, idx_m, batch), positions, strain)
    assert calls == ["vjp", "jvp"]


def test_without_strain_or_without_gradients(stores, data):
    store = stores["float64"]
    positions, _, idx_m, batch = batch_of(store, INDICES, data)
    g = batch_descriptors(positions, None, idx_m, batch)
    (first,) = torch.autograd.grad((g**2).sum(), positions, create_graph=True)
    expected, _ = jacobian(store, data).vjp(2 * g)
    torch.testing.assert_close(first, expected, atol=1e-13 * float(first.abs().max()), rtol=0)
    with torch.no_grad():
        assert not batch_descriptors(positions, None, idx_m, batch).requires_grad
    assert not batch_descriptors(positions.detach(), None, idx_m, batch).requires_grad


def test_nan_in_goes_out(stores, data):
    """The compiled sums may be reordered, but not assume that all is finite."""
    store = stores["float64"]
    u, d, _ = random_like(store)
    product = jacobian(store, data)
    d[:] = torch.nan
    # elements have columns of zeros on the right
    assert product.jvp(d, None)[product.atoms.idx_m == 2, :4].isnan().all()
    u[:] = torch.inf
    assert not product.vjp(u)[0].isfinite().all()


@pytest.mark.parametrize("what", ["rows", "atom", "last", "list"])
def test_batch_that_does_not_fit(stores, data, what):
    store = stores["float64"]
    changes = {
        "rows": {keys.store_rows: torch.arange(store.n_rows) + 1},
        "atom": {keys.store_block_atom: torch.from_numpy(store.block_atom + 100)},
        "last": {keys.store_block_first: torch.from_numpy(store.block_first + 1)},
        "list": {keys.store_block_columns: torch.from_numpy(store.block_columns - 1)},
    }[what]
    product = jacobian(store, data, **changes)
    u, d, s = random_like(store)
    with pytest.raises(ValueError, match="does not fit the store"):
        product.vjp(u)
    with pytest.raises(ValueError, match="does not fit the store"):
        product.jvp(d, s)
