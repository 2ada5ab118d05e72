"""The store on disk: contents, damage, kills, processes at once, memory."""

import json
import logging
import multiprocessing
import os
import resource
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from ase.build import bulk
from small_store import CUTOFF, layout, structures

from schnetpack_softadapt.descriptors.acsf.kernels.engine import KernelEngine
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
from schnetpack_softadapt.descriptors.acsf.reference import ReferenceEngine
from schnetpack_softadapt.descriptors.protocol import Descriptor, Engine, Jacobian
from schnetpack_softadapt.descriptors.store import build as store_build
from schnetpack_softadapt.descriptors.store import files as store_files
from schnetpack_softadapt.descriptors.store import store as store_module
from schnetpack_softadapt.descriptors.store.build import (
    DTYPES,
    Columns,
    Counted,
    batch_arrays,
    choose_dtype,
)
from schnetpack_softadapt.descriptors.store.store import DescriptorStore, StoreError, in_batch
from schnetpack_softadapt.neighbors.pair_list import neighbor_pairs

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def data():
    return structures()


class Polynomials(Descriptor):
    """Many atoms cost little: column k is the sum of (k + 1) |r_ij|^2, of H, O and Au."""

    kind = "polynomials of the tests"
    elements = (1, 8)

    def __init__(self, n_columns=4, cutoff=CUTOFF, delay=0.0):
        self.n_functions = dict.fromkeys(self.elements, n_columns)
        self.cutoff, self.delay = cutoff, delay
        self.n_calls = 0

    def to_dict(self):
        return {"kind": self.kind, "n_columns": self.n_columns, "cutoff": self.cutoff}

    @classmethod
    def from_dict(cls, data):
        return cls(data["n_columns"], data["cutoff"])

    def engine(self, device="cpu", name="auto"):
        return PolynomialEngine(self)


class PolynomialEngine(Engine):
    def __init__(self, descriptor):
        self.descriptor = descriptor

    def values(self, pairs):
        raise NotImplementedError

    def vjp(self, pairs, grad_g):
        raise NotImplementedError

    def jacobian(self, pairs, dtype=np.float64, threads=None):
        assert threads == 1
        self.descriptor.n_calls += 1
        time.sleep(self.descriptor.delay)
        scale = np.arange(1.0, self.descriptor.n_columns + 1)
        n = len(pairs.numbers)
        r, i, j = pairs.r_ij.numpy(), pairs.idx_i.numpy(), pairs.idx_j.numpy()
        key, inverse = np.unique(i * n + j, return_inverse=True)
        vectors = np.zeros((len(key), 3))
        np.add.at(vectors, inverse, 2.0 * r)
        strain = np.zeros((n, 6))
        for v, (a, b) in enumerate(((0, 0), (1, 1), (2, 2), (1, 2), (0, 2), (0, 1))):
            np.add.at(strain[:, v], i, 2.0 * r[:, a] * r[:, b])
        first = np.searchsorted(key, np.arange(n + 1) * n)
        values = np.bincount(i, (r**2).sum(1), n)[:, None] * scale
        dg_dr, strain = vectors[:, :, None] * scale, strain[:, :, None] * scale
        return Jacobian(
            values.astype(dtype), strain.astype(dtype), first, key % n, dg_dr.astype(dtype)
        )


class WithOtherJacobian(Polynomials):
    """Polynomials whose Jacobian is changed by a function."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def engine(self, device="cpu", name="auto"):
        engine = super().engine()
        jacobian = engine.jacobian
        engine.jacobian = lambda *args, **kwargs: self.change(jacobian(*args, **kwargs))
        return engine


def gas(n_structures=40, n_atoms=30, seed=0, size=7.0):
    rng = np.random.default_rng(seed)
    return [
        SimpleNamespace(
            numbers=np.ones(n_atoms, int),
            positions=rng.uniform(0, size, (n_atoms, 3)),
            cell=np.eye(3) * size,
            pbc=np.ones(3, bool),
        )
        for _ in range(n_structures)
    ]


def build(folder, structures=None, descriptor=None, **kwargs):
    kwargs = {"n_jobs": 1, "progress": False, **kwargs}
    structures = gas() if structures is None else structures
    return DescriptorStore.open_or_build(folder, structures, descriptor or Polynomials(), **kwargs)


def arrays(store):
    names = ("G", "dg_dstrain", "block_first", "block_atom", "block_columns", "dg_dr", "columns")
    return {name: np.array(getattr(store, name)) for name in (*names, "structure_first")}


def assert_same(a, b):
    for (name, x), y in zip(arrays(a).items(), arrays(b).values(), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=name)


# --- contents


class Formulas(Engine):
    """The formulas with the defaults of the protocol."""

    def __init__(self, descriptor):
        self.descriptor = descriptor
        self.exact = ReferenceEngine(descriptor)

    def values(self, pairs):
        return self.exact.values(self.exact.prepare(*pairs))

    def vjp(self, pairs, grad_g):
        return self.exact.vjp(self.exact.prepare(*pairs), grad_g)


@pytest.mark.parametrize("engine", [ReferenceEngine, KernelEngine, Formulas])
def test_contents_equal_those_of_autograd(data, tmp_path, monkeypatch, engine):
    monkeypatch.setattr(Layout, "engine", lambda self, *args: engine(self))
    store = build(tmp_path, data, layout(), dtype="float64")
    assert len(store) == len(data)
    n_columns = layout().n_columns
    for k, s in enumerate(data):
        rows = np.arange(store.n_rows)[store.rows(k)]
        i, j, r, _ = neighbor_pairs(s.positions, s.cell, s.pbc, CUTOFF)
        i, j, numbers = (torch.from_numpy(np.asarray(x)) for x in (i, j, s.numbers))

        def values(moved, strain, i=i, j=j, r=r, numbers=numbers):
            r_ij = torch.from_numpy(r) + moved[j] - moved[i]
            r_ij = r_ij + r_ij @ (0.5 * (strain + strain.T))
            exact = ReferenceEngine(layout())
            return exact.values(exact.prepare(r_ij, i, j, numbers))

        zero = torch.zeros(len(numbers), 3, dtype=torch.float64), torch.zeros(3, 3).double()
        np.testing.assert_allclose(store.G[rows], values(*zero).numpy(), atol=1e-12)
        dg_dr, dg_dstrain = torch.autograd.functional.jacobian(values, zero)
        voigt = dg_dstrain[:, :, [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]].numpy()
        np.testing.assert_allclose(store.dg_dstrain[rows], voigt.transpose(0, 2, 1), atol=1e-12)
        for row, expected in zip(rows, dg_dr.numpy(), strict=True):  # (D, n, 3)
            found = np.zeros_like(expected)
            blocks = range(store.block_first[row], store.block_first[row + 1])
            assert (np.diff(store.block_atom[blocks.start : blocks.stop]) > 0).all()
            for b in blocks:
                columns = store.columns[store.block_columns[b]]
                atom = store.block_atom[b]
                assert atom != row - rows[0]
                # what fills up a list of columns adds zeros
                np.add.at(found[:, atom], columns, store.dg_dr[b].T)
            found[:, row - rows[0]] = -found.sum(axis=1)
            np.testing.assert_allclose(found, expected, atol=1e-12)
    assert store.dg_dr.shape[2] < n_columns


def test_elements_with_cutoffs_of_their_own(data, tmp_path, monkeypatch):
    """The pair list reaches as far as O needs, the functions of H end before."""
    s = SymmetryFunction
    mixed = Layout(
        {
            "H": [s("G2", (1,), 3.0, 0.3), s("G4", (1, 8), 3.0, 0.1)],
            "O": [s("G2", (1,), CUTOFF, 0.3), s("G5", (1, 1), 3.5, 0.1)],
        }
    )
    stores = []
    for engine in (KernelEngine, ReferenceEngine):
        monkeypatch.setattr(Layout, "engine", lambda self, *args, engine=engine: engine(self))
        stores.append(build(tmp_path / engine.__name__, data, mixed, dtype="float64"))
    for (name, a), b in zip(arrays(stores[0]).items(), arrays(stores[1]).values(), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    ("lattice", "a", "repeat", "shell"),
    # rounding: the shell is nearer than the cutoff by one formula of the distance, not by another
    [("fcc", 4.05, 2, 1.0), ("fcc", 4.05, 3, 0.5**0.5), ("bcc", 3.15, 2, 0.75**0.5)],
)
def test_a_shell_at_the_cutoff(tmp_path, lattice, a, repeat, shell):
    crystal = bulk("Al", lattice, a=a).repeat(repeat)
    crystal.numbers[:] = 1
    cutoff = a * shell
    functions = Layout({"H": [SymmetryFunction("G2", (1,), cutoff, eta) for eta in (0.1, 1.0)]})
    store = build(tmp_path, [crystal], functions, dtype="float64")
    i, j, _, _ = neighbor_pairs(crystal.positions, crystal.cell.array, crystal.pbc, cutoff)
    expected = sorted({(int(a), int(b)) for a, b in zip(i, j, strict=True) if a != b})
    rows = np.repeat(np.arange(len(crystal)), np.diff(store.block_first))
    assert list(zip(rows.tolist(), store.block_atom.tolist(), strict=True)) == expected
    # all atoms of the lattice are alike, wherever rounding puts the shell
    np.testing.assert_allclose(store.G, store.G[:1].repeat(len(crystal), 0), atol=1e-12)


def test_columns_by_elements():
    columns = Columns(layout())
    # H: G2 and G4 with H, or with O; the weighted one sees both
    assert set(columns.lists[columns.list_of[1, 1]]) == {0, 2, 3, 5}
    assert set(columns.lists[columns.list_of[1, 8]]) == {1, 3, 4, 5}
    assert columns.lists.shape[1] == 4
    columns = Columns(Polynomials(3))
    np.testing.assert_array_equal(columns.lists, [[0, 1, 2]])


def test_descriptor_that_denies_a_dependence(tmp_path):
    """Columns that are dropped as zeros are zeros, or the build stops."""

    class Denying(Polynomials):
        def columns(self, z_i, z_j):
            return [0, 1] if z_j == 1 else [2, 3]

    with pytest.raises(RuntimeError, match="columns` denies"):
        build(tmp_path, gas(3), Denying())


def test_blocks_in_any_order_and_of_atoms_with_themselves(tmp_path):
    def shuffled(jacobian):
        values, strain, first, atom, dg_dr = jacobian
        rng, order = np.random.default_rng(0), np.arange(len(atom))
        for a, b in pairwise(first):
            rng.shuffle(order[a:b])
        return Jacobian(values, strain, first, atom[order], dg_dr[order])

    data = gas(5, size=3.5)  # atoms see their own images
    other = WithOtherJacobian(shuffled)
    assert_same(build(tmp_path / "a", data, other), build(tmp_path / "b", data))


@pytest.mark.parametrize("rows", [7, 30, 64, 10_000])
def test_portions_do_not_matter(tmp_path, monkeypatch, rows):
    """Also when a structure is longer than a portion."""
    expected = build(tmp_path / "expected")
    monkeypatch.setattr(store_build, "PORTION_NUMBERS", rows * 4)
    monkeypatch.setattr(store_build, "LEAST_ROWS", 1)
    assert_same(build(tmp_path / "other", n_jobs=3), expected)


def test_structures_without_atoms_or_neighbors(tmp_path):
    data = gas(3)
    data[0].positions = data[0].positions[:0]
    data[0].numbers = data[0].numbers[:0]
    store = build(tmp_path, [data[0], data[1], data[0]])
    assert store.structure_first.tolist() == [0, 0, 30, 30]
    for s in data:
        s.positions, s.numbers, s.pbc = s.positions[:1], s.numbers[:1], np.zeros(3, bool)
    store = build(tmp_path, data[1:])
    assert store.n_blocks == 0
    assert store.dg_dr.shape == (0, 3, 4)
    assert repr(store)


def test_float32_is_the_rounded_float64(tmp_path):
    single, double = (build(tmp_path, dtype=t) for t in ("float32", "float64"))
    assert single.path != double.path
    for name in ("G", "dg_dstrain", "dg_dr"):
        assert getattr(single, name).dtype == np.float32
        np.testing.assert_array_equal(getattr(single, name), getattr(double, name).astype("f4"))


def test_arrays_are_maps_of_files_that_cannot_be_written(tmp_path):
    store = build(tmp_path)
    base = store.dg_dr
    while not isinstance(base, np.memmap):
        base = base.base
    assert not store.dg_dr.flags.writeable
    assert store.tensors()["_store_dg_dr"].data_ptr() == store.dg_dr.ctypes.data


# --- opening again


def changed(what):
    data = gas()
    if what == "position":
        data[17].positions[3, 1] += 1e-12
    elif what == "cell":
        data[5].cell = data[5].cell * (1 + 1e-15)
    elif what == "pbc":
        data[5].pbc = np.array([True, True, False])
    elif what == "order":
        data[0], data[1] = data[1], data[0]
    elif what == "split":  # the same atoms, one structure less
        data[0].numbers = np.concatenate([data[0].numbers, data[1].numbers])
        data[0].positions = np.concatenate([data[0].positions, data.pop(1).positions])
    return data


@pytest.mark.parametrize("what", ["position", "cell", "pbc", "order", "split"])
def test_other_structures_make_another_store(tmp_path, what):
    assert build(tmp_path).path != build(tmp_path, changed(what)).path


def test_second_time_opens(tmp_path):
    first = build(tmp_path)
    descriptor = Polynomials()
    second = build(tmp_path, descriptor=descriptor)
    assert descriptor.n_calls == 0
    assert_same(first, second)
    assert build(tmp_path, descriptor=Polynomials(5)).path != first.path


def test_foreign_store_is_not_used(tmp_path, caplog):
    """A folder copied to the name of another store."""
    first = build(tmp_path)
    other = build(tmp_path / "other", gas(seed=1))
    os.rename(other.path, tmp_path / "moved")
    os.rename(first.path, other.path)
    again = build(tmp_path / "other", gas(seed=1))
    assert "computed again: it was made from other structures" in caplog.text
    fresh = build(tmp_path / "fresh", gas(seed=1))
    assert_same(again, fresh)


def damage(path, how):
    file, _, action = how.partition(":")
    file = path / file
    content = bytearray(file.read_bytes())
    if action == "truncate":
        content = content[: len(content) // 2]
    elif action == "longer":
        content += b"\0" * 8
    elif action == "flip":
        content[-100] ^= 4
    elif action == "middle":
        content[len(content) // 2] ^= 1
    elif action == "header":
        content[30] ^= 1
    elif action == "remove":
        return file.unlink()
    elif action == "format":
        content = json.dumps({**json.loads(content), "format": 0}).encode()
    return file.write_bytes(content)


DAMAGES = [
    *(f"{n}.npy:{a}" for n in ("G", "dg_dr", "block_atom") for a in ("truncate", "flip", "middle")),
    "dg_dstrain.npy:flip",
    "dg_dstrain.npy:header",
    "block_columns.npy:flip",
    "dg_dr.npy:longer",
    "dg_dr.npy:remove",
    "block_first.npy:flip",
    "columns.npy:flip",
    "structure_first.npy:remove",
    "manifest.json:truncate",
    "manifest.json:flip",
    "manifest.json:remove",
    "manifest.json:format",
]


@pytest.mark.parametrize("how", DAMAGES)
def test_damaged_store_is_computed_again(tmp_path, caplog, how):
    first = build(tmp_path)
    expected = arrays(first)
    path = first.path
    del first
    damage(path, how)
    with pytest.raises(StoreError):
        DescriptorStore(path, full_check=True)
    again = build(tmp_path)
    assert "computed again" in caplog.text
    for name, values in arrays(again).items():
        np.testing.assert_array_equal(values, expected[name])


def test_large_store_is_sampled(tmp_path, monkeypatch):
    for module in (store_files, store_module):
        monkeypatch.setattr(module, "PART_BYTES", 1 << 20)
    monkeypatch.setattr(store_module, "CHECKED_BYTES", 3 << 20)
    store = build(tmp_path, gas(300), descriptor=Polynomials(8))
    n_parts = {name: -(-size // (1 << 20)) for name, size in sizes(store.path).items()}
    ends = {(name, part) for name, n in n_parts.items() for part in (0, n - 1)}
    assert len(ends) > len(n_parts)
    assert sum(n_parts.values()) > 20
    checked = []
    original = store_module.checksum

    def watching(path, part):
        checked.append((path.stem, part))
        return original(path, part)

    monkeypatch.setattr(store_module, "checksum", watching)
    DescriptorStore(store.path)
    assert len(checked) == len(set(checked)) == len(ends) + 3
    assert ends < set(checked)
    for _ in range(5):
        DescriptorStore(store.path)
    assert len(set(checked)) > len(ends) + 3
    with open(store.path / "block_first.npy", "r+b") as file:  # always looked at
        file.seek(130)
        file.write(b"\1")
    with pytest.raises(StoreError, match="checksum"):
        DescriptorStore(store.path)


def sizes(folder):
    return {path.stem: path.stat().st_size for path in folder.glob("*.npy")}


# --- errors


def test_errors_name_the_structure(tmp_path):
    data = gas(8)
    data[5].numbers[3] = 79
    with pytest.raises(ValueError, match="structure 5: the model does not know Au"):
        build(tmp_path, data)
    data = gas(3)
    data[1].cell = np.diag([7.0, 7.0, 0.0])
    with pytest.raises(ValueError, match=r"structure 1.*lattice vector 2"):
        build(tmp_path, data)
    data = gas(2)
    data[1].positions[0] = np.nan
    with pytest.raises(ValueError, match=r"structure 1.*not finite"):
        build(tmp_path, data)

    broken = WithOtherJacobian(lambda jacobian: jacobian._replace(values=jacobian.values * np.inf))
    with pytest.raises(ValueError, match="structures 0 to 1 are not finite"):
        build(tmp_path, gas(2), broken)
    with pytest.raises(ValueError, match="store_dtype='float8'; choose auto, float32"):
        build(tmp_path, dtype="float8")
    assert stores(tmp_path) == set()


def test_full_disk_is_seen_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=1000))
    descriptor = Polynomials()
    with pytest.raises(OSError, match=r"needs 0\.00 GB.*data\.store=false"):
        build(tmp_path, descriptor=descriptor)
    assert descriptor.n_calls == 0
    assert stores(tmp_path) == set()


GB = 10**9


@pytest.mark.parametrize(
    ("budget", "free", "expected"),
    [
        (None, 50 * GB, ("float32", "has 50.00 GB left")),
        (5 * GB, 50 * GB, ("float32", "data.store_budget allows 5.00 GB")),
        (5 * GB - 1, 50 * GB, ("float16", "data.store_budget allows 5.00 GB")),
        # a tenth of the disk stays free
        (None, 5.1 * GB, ("float16", "has 5.10 GB left")),
        (20 * GB, 3.4 * GB, ("float16", "has 3.40 GB left")),
        (3 * GB - 1, 50 * GB, r"allows 3.00 GB; data.store_budget=3.01GB would do"),
        (0, 50 * GB, r"allows 0.00 GB; data.store_budget=3.01GB would do"),
        (None, 3.3 * GB, r"has 3.30 GB left; choose another folder with data.store_dir"),
        (20 * GB, 1 * GB, r"has 1.00 GB left; choose another folder with data.store_dir"),
    ],
)
def test_budget_and_disk_decide(tmp_path, budget, free, expected):
    sizes = {"float32": 5 * GB, "float16": 3 * GB}
    if isinstance(expected, str):
        with pytest.raises(OSError, match=expected):
            choose_dtype(sizes, budget, free, tmp_path)
        return
    dtype, reason = choose_dtype(sizes, budget, free, tmp_path)
    assert (dtype, True) == (expected[0], reason.endswith(expected[1]))
    assert reason.startswith("of 5.00 GB (float32) or 3.00 GB (float16), and ")
    # every epoch reads all of it: rather what fits into memory, but only if one of them does
    for memory, better in ((5, expected[0]), (4, "float16"), (1, expected[0])):
        assert choose_dtype(sizes, budget, free, tmp_path, memory * GB)[0] == better
    # one type asked for: all of the disk
    assert choose_dtype({"float16": 3 * GB}, None, 3 * GB, tmp_path)[0] == "float16"


def test_the_size_is_known_before(tmp_path, data):
    """To the byte, but for headers and the three small arrays."""
    for dtype in DTYPES:
        store = build(tmp_path / dtype, data, layout(), dtype=dtype)
        counted = Counted(data, store.structure_first, layout(), n_jobs=1, progress=False)
        found = sum(sizes(store.path)[name] - 128 for name in (*WRITTEN, "scale"))
        assert counted.nbytes(dtype) == found
        assert store.dtype == dtype


def test_a_store_that_is_there_is_taken_whatever_the_budget(tmp_path):
    half = build(tmp_path, dtype="float16")
    assert build(tmp_path, dtype="auto", budget=0).path == half.path
    with pytest.raises(OSError, match=r"data\.store_budget allows 0\.00 GB"):
        build(tmp_path, gas(seed=1), dtype="auto", budget=0)
    size = half.nbytes
    assert build(tmp_path / "fresh", dtype="auto", budget=size).dtype == "float16"
    full = build(tmp_path, dtype="float32")
    assert build(tmp_path, dtype="auto", budget=0).path == full.path  # the better one


def test_integers_keep_five_digits_whatever_the_scale(tmp_path):
    """Columns of very different size; each number within half a unit of the largest of its kind."""
    data = gas(3)
    factor = np.array([1e-30, 1e-3, 1.0, 1e25])

    def scaled(jacobian):
        dg_dr = jacobian.dg_dr.astype(np.float64) * factor
        return jacobian._replace(dg_dr=dg_dr.astype(np.float32))

    full, half = (
        build(tmp_path, data, WithOtherJacobian(scaled), dtype=d) for d in ("float32", "float16")
    )
    assert half.dg_dr.dtype == np.int16
    row = np.repeat(np.arange(half.n_rows), np.diff(half.block_first))
    unit = half.scale[row][:, None, :].astype(np.float64)
    assert (unit > 0).all()
    error = np.abs(half.dg_dr * unit - full.dg_dr)
    assert (error <= 0.501 * unit).all()
    largest = np.zeros_like(half.scale)
    np.maximum.at(largest, row, np.abs(full.dg_dr).max(1))
    np.testing.assert_allclose(half.scale * 32767.0, largest, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("threads", [1, 3])
def test_recomputed_batches_equal_those_of_a_store(tmp_path, data, monkeypatch, dtype, threads):
    monkeypatch.setattr(store_build, "LEAST_ROWS", 2)  # structures in pieces
    monkeypatch.setattr(store_build, "PORTION_NUMBERS", 20)
    store = build(tmp_path, data, layout(), dtype=dtype)
    order = [4, 0, 2, 2, 3]
    chosen = [data[k] for k in order]
    found = batch_arrays(chosen, layout().engine("cpu"), Columns(layout()), dtype, threads)
    rows = np.concatenate([np.arange(store.n_rows)[store.rows(k)] for k in order])
    np.testing.assert_array_equal(found.pop("G"), store.G[rows])
    expected = store.gather(rows)
    for key, values in in_batch(found).items():
        assert torch.equal(values, expected[key]), key
        assert values.dtype == expected[key].dtype


def test_a_damaged_store_makes_room_for_the_new_one(tmp_path, monkeypatch):
    store = build(tmp_path)
    path, size = store.path, sum(f.stat().st_size for f in store.path.iterdir())
    with open(path / "G.npy", "r+b") as file:
        file.seek(200)
        file.write(b"\x07" * 4)

    def usage(_):
        used = sum(f.stat().st_size for f in tmp_path.rglob("*") if f.is_file())
        return SimpleNamespace(free=int(1.2 * size) - used)

    monkeypatch.setattr("shutil.disk_usage", usage)
    assert build(tmp_path).path == path


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_disk_that_fills_up_meanwhile(tmp_path, n_jobs):
    """The error of the system comes through a write, and nothing is left."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            build(tmp_path, gas(40), n_jobs=n_jobs)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert stores(tmp_path) == set()


@pytest.mark.parametrize(("large", "level"), [(1e9, "INFO"), (1e3, "WARNING")])
def test_size_and_place_are_said_before_the_work(tmp_path, caplog, monkeypatch, large, level):
    monkeypatch.setattr(store_module, "LARGE_BYTES", large)
    caplog.set_level(logging.INFO)
    said = []

    def watch(jacobian):
        said[:] = [r for r in caplog.records if "data.store=false" in r.getMessage()]
        return jacobian

    store = build(tmp_path, descriptor=WithOtherJacobian(watch))
    (record,) = said
    assert record.levelname == level
    size = sum(getattr(store, name).nbytes for name in WRITTEN)
    assert record.getMessage().startswith(
        f"descriptor store: {size / 1e9:.2f} GB in {store.path}, float32 of {size / 1e9:.2f} GB"
    )
    caplog.clear()
    build(tmp_path)
    assert caplog.text == ""


WRITTEN = ("G", "dg_dstrain", "block_atom", "block_columns", "dg_dr")


# --- older stores


def stores(folder):
    return {path.name for path in folder.iterdir()}


def test_a_new_store_replaces_older_ones_of_its_database(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    older = build(tmp_path, database="a.db").path
    new = build(tmp_path, gas(seed=2), database=os.path.abspath("a.db"))
    assert stores(tmp_path) == {new.path.name}
    assert f"removed an older descriptor store, 0.00 GB: {older}" in caplog.text
    assert_same(new, build(tmp_path / "fresh", gas(seed=2)))


def test_what_is_not_certainly_an_older_store_of_the_database_stays(tmp_path):
    other = build(tmp_path, gas(seed=1), database="b.db").path
    unknown = build(tmp_path, gas(seed=2)).path
    in_use = build(tmp_path, gas(seed=3), database="a.db")
    new = build(tmp_path, gas(seed=4), database="a.db").path
    (new / "notes.txt").write_text("mine")
    damaged = tmp_path / "descriptors-damaged"
    damaged.mkdir()
    (damaged / "manifest.json").write_text("{")
    newer = build(tmp_path, gas(seed=5), database="a.db").path
    kept = {path.name for path in (other, unknown, in_use.path, damaged, newer)}
    assert stores(tmp_path) == {*kept, new.name}
    assert stores(new) == {"notes.txt"}
    for path in (other, unknown, in_use.path, newer):
        DescriptorStore(path, full_check=True)
    released = in_use.path.name
    del in_use
    newest = build(tmp_path, gas(seed=6), database="a.db").path.name
    assert stores(tmp_path) == {*kept - {released, newer.name}, new.name, newest}


# --- interruptions and company

FORK = multiprocessing.get_context("fork")  # starting anew would import torch each time


class Company:
    """A process that builds a store."""

    def __init__(self, folder, delay=0.0, **kwargs):
        self.log = folder.parent / f"{folder.name}-{time.monotonic_ns()}.log"
        self.process = FORK.Process(target=self._run, args=(folder, delay, kwargs))
        self.process.start()

    def _run(self, folder, delay, kwargs):
        logging.basicConfig(filename=self.log, level=logging.INFO, force=True)
        descriptor = Polynomials(delay=delay)
        build(folder, descriptor=descriptor, **kwargs)
        logging.info("calls %d", descriptor.n_calls)

    def kill(self):
        self.process.kill()  # SIGKILL
        self.process.join()

    def n_calls(self):
        """Wait for the end; how many portions this process computed."""
        self.process.join(60)
        assert self.process.exitcode == 0, self.log.read_text()
        return int(self.log.read_text().split("calls")[1])


@pytest.fixture
def small_portions(monkeypatch):
    """One structure each, 40 in all, as in the processes."""
    monkeypatch.setattr(store_build, "LEAST_ROWS", 1)
    monkeypatch.setattr(store_build, "PORTION_NUMBERS", 120)


def wait_for(ready):
    for _ in range(600):
        if ready():
            return
        time.sleep(0.05)
    raise AssertionError("the build did not begin")


def is_writing(folder):
    return lambda: (folder / "building" / "dg_dr.npy").exists()


def test_after_a_kill_the_build_starts_again(tmp_path, small_portions):
    process = Company(tmp_path, delay=0.1)
    wait_for(is_writing(tmp_path))
    process.kill()
    assert (tmp_path / "building").exists()
    descriptor = Polynomials()
    store = build(tmp_path, descriptor=descriptor)
    assert descriptor.n_calls == 40
    assert stores(tmp_path) == {store.path.name}
    assert_same(store, build(tmp_path / "fresh"))


def test_one_process_builds_and_the_others_wait(tmp_path, small_portions):
    first = Company(tmp_path, delay=0.03)
    wait_for(is_writing(tmp_path))
    others = [Company(tmp_path) for _ in range(2)]
    assert first.n_calls() == 40
    for process in others:
        assert process.n_calls() == 0
        assert "waiting for it" in process.log.read_text()
    store = DescriptorStore(build(tmp_path).path, full_check=True)
    assert stores(tmp_path) == {store.path.name}


def test_waiting_process_takes_over_from_a_killed_one(tmp_path, small_portions):
    first = Company(tmp_path, delay=0.1)
    wait_for(is_writing(tmp_path))
    second = Company(tmp_path)
    wait_for(lambda: second.log.exists() and "waiting for it" in second.log.read_text())
    first.kill()
    assert second.n_calls() == 40
    assert_same(build(tmp_path), build(tmp_path / "fresh"))


MEMORY = """
import resource, sys
sys.path.insert(0, {here!r})
import numpy as np, torch
import test_store as t
from schnetpack_softadapt import properties as keys
from schnetpack_softadapt.descriptors.store import build as store_build
from schnetpack_softadapt.descriptors.store.batch import HostMap
def used():
    with open("/proc/self/status") as file:
        return 1024 * int(next(line for line in file if line.startswith("VmData")).split()[1])
def products(store, data):
    for k in range(len(store)):
        rows = np.arange(store.n_rows)[store.rows(k)]
        batch = {{keys.descriptors: torch.from_numpy(store.G[rows]), keys.store_rows:
                 torch.from_numpy(rows), **store.tensors()}}
        n = len(rows)
        product = HostMap(torch.zeros(n, 3), 1, torch.zeros(n, dtype=int), batch)
        product.vjp(torch.ones(n, 40)); product.jvp(torch.ones(n, 3), torch.ones(1, 3, 3))
data = t.gas(160, 30)
store_build.LEAST_ROWS, store_build.PORTION_NUMBERS = 1, 30 * 40
descriptor = t.Polynomials(40)
products(t.build({folder!r}, data[:3], descriptor), data)  # compiles
allowed = 16_000_000
resource.setrlimit(resource.RLIMIT_DATA, (used() + allowed,) * 2)
store = t.build({folder!r}, data, descriptor)
products(store, data)
try:
    np.ones(store.nbytes // 3, np.uint8)
except MemoryError:
    print("a third of it does not fit into memory")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is one of Linux")
def test_larger_than_memory(tmp_path):
    """RLIMIT_DATA bounds what a process may allocate, but not maps of files, which `ulimit -v`
    would count although they need no memory."""
    code = MEMORY.format(here=str(HERE), folder=str(tmp_path))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        # large arrays are returned when freed, so that the limit is what is left
        env={**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "65536"},
    )
    assert done.returncode == 0, done.stderr
    assert "does not fit" in done.stdout
