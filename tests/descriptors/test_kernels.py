"""What is special to the compiled kernels; what all backends share is in test_backends.py."""

import multiprocessing
import os
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import brute_force as bf
import numpy as np
import pytest
import torch
from engine_calls import KernelCalls, ReferenceCalls
from n2p2_reference import load
from numba import njit

from schnetpack_softadapt.descriptors import compiled as calls
from schnetpack_softadapt.descriptors import compiled_engine
from schnetpack_softadapt.descriptors.acsf.cutoffs import CUTOFFS
from schnetpack_softadapt.descriptors.acsf.kernels import engine, loops
from schnetpack_softadapt.descriptors.acsf.kernels.neighbors import PAD
from schnetpack_softadapt.descriptors.acsf.kernels.plan import compile_layout
from schnetpack_softadapt.descriptors.acsf.kernels.triples import CHUNK, new_triples
from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction

BOTH = [0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1]  # Voigt order


def crystal(layout, displacement=0.1):
    positions, cell, numbers = bf.perturbed_crystal(displacement)
    pairs = bf.pairs_of(positions, cell, True, layout.cutoff)
    return [torch.tensor(x) for x in (*pairs, numbers)]


def ball(n_neighbors, radius, seed=0, numbers=(1, 8)):
    """One atom with many neighbours, as a pair list from it only."""
    rng = np.random.default_rng(seed)
    v = rng.normal(size=(n_neighbors, 3))
    v *= rng.uniform(0.2, 1.0, (n_neighbors, 1)) * radius / np.linalg.norm(v, axis=1)[:, None]
    z = np.array(numbers)[np.arange(n_neighbors + 1) % len(numbers)]
    idx_i, idx_j = np.zeros(n_neighbors, int), np.arange(1, n_neighbors + 1)
    return [torch.tensor(x) for x in (v, idx_i, idx_j, z)]


def random_like(x, seed=0):
    # a generator of its own: that of torch would be shared by the threads of a test
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(x.shape, dtype=torch.float64, generator=generator)


# --- elementary functions


@njit
def _exponentials(x, out):
    for t in range(len(x)):
        out[t] = loops.exponential(x[t])


@njit
def _cutoffs(code, s, cutoff, f, slope):
    loops.cutoff_factors(code, s, cutoff, f, slope, len(s))


def test_exponential():
    x = np.concatenate([np.linspace(-708, 700, 20001), np.linspace(-1, 1, 20001)])
    out = np.empty_like(x)
    _exponentials(x, out)
    exact = np.exp(x.astype(np.longdouble))
    assert np.max(np.abs(out / exact - 1)) < 1e-15
    edge = np.array([-1e4, -np.inf, np.nan])
    _exponentials(edge, edge)
    assert np.all(edge[:2] < 1e-300)
    assert np.all(edge[:2] >= 0)
    assert np.isnan(edge[2])


def _exact_cutoff(name, x):
    y = 1 - x
    pi = np.longdouble("3.14159265358979323846264338327950288")
    return {
        "cosine": lambda: np.cos(pi / 2 * x) ** 2,
        "tanh3": lambda: np.tanh(y) ** 3,
        "exp": lambda: np.exp(1 - 1 / (1 - x * x)),
        "poly1": lambda: y**2 * (1 + 2 * x),
        "poly2": lambda: y**3 * (1 + 3 * x + 6 * x**2),
        "poly3": lambda: y**4 * (1 + 4 * x + 10 * x**2 + 20 * x**3),
        "poly4": lambda: y**5 * (1 + 5 * x + 15 * x**2 + 35 * x**3 + 70 * x**4),
    }[name]()


@pytest.mark.parametrize("name", CUTOFFS)
def test_cutoff_functions(name):
    cutoff = 5.3
    x = np.linspace(0.02, 0.99999, 20001)
    f, slope = np.empty_like(x), np.empty_like(x)
    s = (x * cutoff) ** 2
    _cutoffs(loops.CUTOFF_CODES[name], s, cutoff, f, slope)
    # of the squared distance as it is in double precision
    exact = _exact_cutoff(name, np.sqrt(s.astype(np.longdouble)) / np.longdouble(cutoff))
    error = np.abs(f - exact)
    assert np.max(error) < 1e-15
    large = exact > 1e-6
    # 1 - u loses digits towards the cutoff, as it does in any way of writing it
    assert np.max(error[large] / exact[large]) < 1e-12
    r = torch.tensor(np.sqrt(s), requires_grad=True)
    (df_dr,) = torch.autograd.grad(CUTOFFS[name](r, cutoff).sum(), r)
    difference = f * slope * 2 * np.sqrt(s) - df_dr.numpy()
    assert np.max(np.abs(difference)) < 1e-14


def test_cutoffs_have_the_same_names_everywhere():
    assert set(loops.CUTOFF_CODES) == set(CUTOFFS)


@pytest.mark.parametrize("name", CUTOFFS)
def test_just_inside_the_cutoff(name):
    """Nothing overflows, and what is left equals the plain formulas."""
    layout = Layout(
        {
            1: [
                SymmetryFunction("G2", (1,), 4.0, 0.1, cutoff_fn=name),
                SymmetryFunction("G4", (1, 1), 4.0, 0.1, zeta=1, cutoff_fn=name),
            ]
        }
    )
    backend, reference = KernelCalls(layout), ReferenceCalls(layout)
    for k in range(3, 60, 3):
        r = 4.0 * (1.0 - 2.0**-k)
        v = torch.tensor([[r, 0, 0], [1.0, 1.0, 0], [0, r, 0]], dtype=torch.float64)
        inputs = v, torch.zeros(3, dtype=int), torch.arange(1, 4), torch.ones(4, dtype=int)
        grad_g = torch.ones(4, 2, dtype=torch.float64)
        for method, *argument in (("values",), ("vjp", grad_g), ("jvp", v)):
            found, expected = (getattr(b, method)(*inputs, *argument) for b in (backend, reference))
            # of values up to two and slopes of about one
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-14, msg=method)


# --- exponentials from powers of one


def angular_layout(etas, zetas=(1, 2, 16), kind="G4", r_s=0.0):
    functions = [
        SymmetryFunction(kind, (1, 8), 4.0, eta, r_s, zeta, lam)
        for eta in etas
        for zeta in zetas
        for lam in (-1, 1)
    ]
    return Layout({1: functions, 8: functions})


@pytest.mark.parametrize(
    ("etas", "n_bases"),
    [
        ((0.01, 0.05, 0.12), 1),
        ((0.03, 0.07, 0.2), 1),  # powers of exp(-0.01 r^2), which no function has
        ((0.03, 0.0701, 0.2), 3),
        ((0.0, 0.1), 2),
        ((0.001, 0.1), 2),
    ],
)
def test_exponentials_are_shared_where_widths_are_multiples(etas, n_bases):
    layout = angular_layout(etas)
    plan = compile_layout(layout)
    assert len(plan.bases) == 2 * n_bases  # two central elements
    inputs = ball(20, 4.2)
    g = KernelCalls(layout).values(*inputs)
    expected = ReferenceCalls(layout).values(*inputs)
    torch.testing.assert_close(g, expected, rtol=1e-12, atol=0)


# --- neighbours and pairs in chunks


@pytest.mark.parametrize(
    ("n_neighbors", "layout"),
    [
        *((n, bf.mixed_layout()) for n in (2, 9, 31, 33, 64)),
        # six functions of each width: the loops take four at a time
        (12, angular_layout((0.05, 0.1), (1, 2, 16))),
        (12, angular_layout((0.05, 0.07), (1, 1.5, 4), kind="G5", r_s=0.5)),
        # more pairs in a row than a chunk
        (700, angular_layout((0.1,), (2,))),
    ],
)
def test_any_number_of_neighbors(n_neighbors, layout):
    inputs = ball(n_neighbors, 4.3, seed=n_neighbors)
    numbers = inputs[3]
    backend, reference = KernelCalls(layout), ReferenceCalls(layout)
    g, expected = backend.values(*inputs), reference.values(*inputs)
    torch.testing.assert_close(g, expected, rtol=1e-12, atol=1e-14)
    found, expected = (bf.pair_jacobian(b, inputs) for b in (backend, reference))
    bf.assert_columns_close(found, expected, numbers[inputs[1]], 1e-12)
    grad_g, tangent = random_like(g), random_like(inputs[0])
    product = (expected * grad_g[0]).sum(2)
    error = torch.abs(backend.vjp(*inputs, grad_g) - product)
    assert torch.all(error <= 1e-12 * torch.sum(torch.abs(expected * grad_g[0])))
    terms = torch.abs(expected * tangent[:, :, None]).sum((0, 1))
    error = torch.abs(backend.jvp(*inputs, tangent) - reference.jvp(*inputs, tangent))
    assert torch.all(error <= 1e-13 * terms)


def test_pairs_in_any_order():
    layout = bf.mixed_layout()
    r_ij, idx_i, idx_j, numbers = crystal(layout)
    backend = KernelCalls(layout)
    g = backend.values(r_ij, idx_i, idx_j, numbers)
    order = torch.randperm(len(idx_i), generator=torch.manual_seed(0))
    inputs = r_ij[order], idx_i[order], idx_j[order], numbers
    torch.testing.assert_close(backend.values(*inputs), g, rtol=1e-13, atol=1e-15)
    grad_g = random_like(g)
    vjp = backend.vjp(r_ij, idx_i, idx_j, numbers, grad_g)
    torch.testing.assert_close(backend.vjp(*inputs, grad_g), vjp[order], rtol=1e-11, atol=1e-12)


def test_nan_reaches_the_values_of_its_atom_only():
    layout = Layout({1: [SymmetryFunction("G4", (1, 1), 4.0, 0.1, zeta=2)]})
    v = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]], dtype=torch.float64)
    bad = v.clone()
    bad[1, 2] = float("nan")
    idx_i, idx_j = torch.tensor([0, 0, 0, 1, 1, 1]), torch.tensor([1, 2, 3, 0, 2, 3])
    numbers = torch.ones(4, dtype=int)
    g = KernelCalls(layout).values(torch.cat([bad, v]), idx_i, idx_j, numbers)
    assert torch.isnan(g[0, 0])
    assert torch.isfinite(g[1:]).all()


def test_what_an_earlier_call_left_in_memory_does_not_matter():
    # work arrays are not zeroed; those of the call before are full of NaN
    narrow, wide = angular_layout((0.1,)), angular_layout((0.1,), (1, 2.5), kind="G5")
    poisoned = crystal(narrow)
    poisoned[0] = poisoned[0] * float("nan")
    inputs = crystal(wide)
    for layout in (wide, narrow):
        backend = KernelCalls(layout)
        grad_g = random_like(backend.values(*inputs))
        for call in (
            lambda b: [b.values(*inputs)],
            lambda b: [b.vjp(*inputs, grad_g)],  # noqa: B023
            lambda b: [b.jvp(*inputs, inputs[0])],
            lambda b: b.jacobian(*inputs),
        ):
            expected = call(backend)
            for _ in range(5):
                KernelCalls(narrow).values(*poisoned)
                assert all(map(np.array_equal, call(backend), expected))
            assert all(np.isfinite(np.asarray(x)).all() for x in expected)


@pytest.mark.parametrize("wrong", [(0, -1), (1, 99)])
def test_index_of_no_atom(wrong):
    layout = bf.mixed_layout()
    inputs = crystal(layout)
    inputs[1 + wrong[0]][5] = wrong[1]
    with pytest.raises(ValueError, match="idx_i and idx_j must be from 0 to 2"):
        KernelCalls(layout).values(*inputs)


def test_tensors_of_the_wrong_shape_or_device():
    layout = bf.mixed_layout()
    r_ij, idx_i, idx_j, numbers = crystal(layout)
    backend = KernelCalls(layout)
    with pytest.raises(ValueError, match="one row of three for each"):
        backend.values(r_ij[:-1], idx_i, idx_j, numbers)
    with pytest.raises(ValueError, match="run on the CPU, not on meta"):
        backend.values(r_ij.to("meta"), idx_i, idx_j, numbers)


# --- Jacobian


def unpacked(found, n_atoms):
    """Blocks of a `Jacobian` as dG_i/dR_j (N, N, 3, D)."""
    out = np.zeros((n_atoms, n_atoms, *found.dg_dr.shape[1:]))
    idx_i = np.repeat(np.arange(n_atoms), np.diff(found.block_first))
    out[idx_i, found.block_atom] = found.dg_dr
    return out


def test_jacobian_against_values_and_vjp():
    layout = bf.mixed_layout()
    backend = KernelCalls(layout)
    structure = load("HO")  # two atoms of each element: images alone would cancel
    pairs = bf.pairs_of(structure.positions, structure.cell, True, layout.cutoff)
    r_ij, idx_i, idx_j, numbers = inputs = [torch.tensor(x) for x in (*pairs, structure.numbers)]
    n_atoms = len(numbers)
    found = backend.jacobian(*(x.numpy() for x in inputs))
    np.testing.assert_allclose(
        found.values, backend.values(*inputs).numpy(), rtol=1e-13, atol=1e-15
    )
    # a small cell: every atom, also the central one, is within reach
    assert found.block_atom.tolist() == [*range(n_atoms)] * n_atoms
    jacobian = bf.pair_jacobian(backend, inputs).numpy()
    expected = bf.by_positions(jacobian, idx_i, idx_j, n_atoms)
    bf.assert_columns_close(unpacked(found, n_atoms), expected, numbers, 1e-12)
    strain = bf.by_strain(jacobian, r_ij, idx_i, n_atoms)
    # each function is invariant under rotation, so its strain derivative is symmetric
    bf.assert_columns_close(strain, strain.transpose(0, 2, 1, 3), numbers, 1e-12)
    bf.assert_columns_close(found.dg_dstrain, strain[:, BOTH[0], BOTH[1]], numbers, 1e-12)


def test_jacobian_agrees_with_another_code():
    potential = load("HO")
    pairs = bf.pairs_of(potential.positions, potential.cell, True, potential.layout.cutoff)
    found = KernelCalls(potential.layout).jacobian(*pairs, potential.numbers)
    dg_dr, dg_dstrain = potential.jacobian()
    blocks = unpacked(found, len(potential.numbers))
    bf.assert_columns_close(blocks, dg_dr, potential.numbers, 1e-13)
    strain = dg_dstrain[:, BOTH[0], BOTH[1]]
    bf.assert_columns_close(found.dg_dstrain, strain, potential.numbers, 1e-13)


def test_jacobian_of_a_cluster_has_a_block_for_each_pair():
    layout = bf.mixed_layout()
    positions, numbers = bf.random_cluster(8)
    positions[-1] += 30.0
    n = len(positions)
    idx_i, idx_j = np.nonzero(~np.eye(n, dtype=bool))
    found = KernelCalls(layout).jacobian(
        positions[idx_j] - positions[idx_i], idx_i, idx_j, numbers, dtype=np.float32
    )
    assert {x.dtype for x in (found.values, found.dg_dstrain, found.dg_dr)} == {np.dtype("float32")}
    np.testing.assert_array_equal(found.block_atom.reshape(n, n), np.tile(np.arange(n), (n, 1)))
    assert np.all(found.dg_dr[found.block_first[-2] :] == 0)  # of the atom beyond the cutoff
    # moving everything changes nothing; float32 sums of a few terms
    total = np.add.reduceat(found.dg_dr, found.block_first[:-1])
    terms = np.add.reduceat(abs(found.dg_dr), found.block_first[:-1])
    assert np.all(abs(total) <= 1e-6 * terms)


# --- types, threads, compilation


def test_float32_is_float64_rounded():
    layout = bf.mixed_layout()
    backend = KernelCalls(layout)
    r_ij, *rest = crystal(layout)
    single = r_ij.float()
    assert torch.equal(
        backend.values(single, *rest), backend.values(single.double(), *rest).float()
    )


def test_threads_give_identical_results(monkeypatch):
    layout = bf.mixed_layout()
    backend = KernelCalls(layout)
    inputs = crystal(layout)
    n_copies = 40
    shift = 3 * torch.arange(n_copies).repeat_interleave(len(inputs[1]))
    inputs = [
        inputs[0].repeat(n_copies, 1),
        inputs[1].repeat(n_copies) + shift,
        inputs[2].repeat(n_copies) + shift,
        inputs[3].repeat(n_copies),
    ]

    def results():
        g = backend.values(*inputs)
        jacobian = backend.jacobian(*inputs)
        return [
            g,
            backend.vjp(*inputs, random_like(g)),
            backend.jvp(*inputs, random_like(inputs[0])),
            *map(torch.from_numpy, jacobian),
        ]

    expected = results()
    monkeypatch.setattr(compiled_engine, "n_threads", lambda: 3)
    monkeypatch.setattr(engine, "_TRIPLES_PER_TASK", 1000)
    assert calls._pool is None or calls._pool[1] != 3
    assert all(map(torch.equal, results(), expected))
    assert calls._pool[1] == 3  # it did run in threads
    # and two callers at a time
    with ThreadPoolExecutor(2) as pool:
        for found in pool.map(lambda _: results(), range(2)):
            assert all(map(torch.equal, found, expected))


def test_number_of_threads(monkeypatch):
    monkeypatch.setattr(calls.config, "NUMBA_NUM_THREADS", 64)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 5)
    assert calls.n_threads() == 5
    monkeypatch.setattr(calls.config, "NUMBA_NUM_THREADS", 2)
    assert calls.n_threads() == 2


def _values_in_threads(queue):
    compiled_engine.n_threads = lambda: 2
    engine._TRIPLES_PER_TASK = 10
    layout = bf.mixed_layout()
    queue.put(KernelCalls(layout).values(*crystal(layout)).numpy())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_threads_after_a_fork(monkeypatch):
    # data loader workers are forks; the threads of the parent do not exist in them
    monkeypatch.setattr(compiled_engine, "n_threads", lambda: 2)
    monkeypatch.setattr(engine, "_TRIPLES_PER_TASK", 10)
    layout = bf.mixed_layout()
    expected = KernelCalls(layout).values(*crystal(layout)).numpy()
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_values_in_threads, args=(queue,))
    process.start()
    try:
        assert np.array_equal(queue.get(timeout=60), expected)
    finally:
        process.kill()
        process.join()


def test_nothing_is_compiled_twice():
    # `jacobian` comes in both precisions
    kernel_list = engine.KernelEngine.kernels[:4]
    for layout in (bf.mixed_layout(), angular_layout((0.1,)), angular_layout((0.2, 0.3), (1.5,))):
        for dtype in (torch.float32, torch.float64):
            r_ij, *rest = crystal(layout)
            g = KernelCalls(layout).values(r_ij.to(dtype), *rest)
            KernelCalls(layout).vjp(r_ij.to(dtype), *rest, g)
            KernelCalls(layout).jvp(r_ij.to(dtype), *rest, r_ij.to(dtype))
            KernelCalls(layout).jacobian(r_ij, *rest)
            assert [len(k.signatures) for k in kernel_list] == [1] * len(kernel_list)


def test_a_second_process_does_not_compile(tmp_path):
    # a cache of its own: tests that run at the same time may overwrite each other's index
    program = """
        import torch
        from schnetpack_softadapt.descriptors.snap import Bispectrum
        from schnetpack_softadapt.descriptors.snap.kernels.engine import KernelEngine
        from schnetpack_softadapt.descriptors.snap.kernels.products import values
        engine = KernelEngine(Bispectrum({"H": 0.5}, {"H": 1.0}, twojmax=2, rcutfac=4.0))
        v = torch.eye(3, dtype=torch.float64)
        zero = torch.zeros(3, dtype=int)
        engine.values(engine.prepare(v, zero, zero, torch.ones(1, dtype=int)))
        stats = values.stats
        print(sum(stats.cache_hits.values()), sum(stats.cache_misses.values()))
    """
    env = dict(os.environ, NUMBA_CACHE_DIR=str(tmp_path))
    command = [sys.executable, "-c", textwrap.dedent(program)]
    first, second = (
        subprocess.run(command, env=env, capture_output=True, text=True, check=True)
        for _ in range(2)
    )
    assert first.stdout.split() == ["0", "1"]
    assert second.stdout.split() == ["1", "0"]
    assert "compiling" not in second.stderr


def test_the_cache_expires_with_any_of_the_sources(monkeypatch):
    layout = angular_layout((0.1,))
    KernelCalls(layout).values(*crystal(layout))
    file = engine.values._cache._cache_file
    assert file._load_index()
    stat = os.stat

    def newer(path, *args, **kwargs):
        found = stat(path, *args, **kwargs)
        if str(path) != loops.__file__:
            return found
        return os.stat_result((*found[:8], found.st_mtime + 1, *found[9:10]))

    stamp, kernels = file._source_stamp, engine.KernelEngine.kernels[:5]
    sources = sorted(Path(loops.__file__).parent.glob("*.py"))
    try:
        monkeypatch.setattr(calls.os, "stat", newer)
        calls.stamp_sources(kernels, sources)
        assert file._load_index() == {}
    finally:
        monkeypatch.undo()
        calls.stamp_sources(kernels, sources)
    assert file._source_stamp == stamp


def test_without_compilation_auto_is_the_reference():
    """A process of its own, because numba decides when the kernels are imported."""
    program = """
        from schnetpack_softadapt.descriptors.acsf.layout import Layout, SymmetryFunction
        layout = Layout({1: [SymmetryFunction("G2", (1,), 4.0, 0.1)]})
        print(type(layout.engine("cpu", "auto")).__name__)
        layout.engine("cpu", "kernels")
    """
    env = dict(os.environ, NUMBA_DISABLE_JIT="1")
    command = [sys.executable, "-c", textwrap.dedent(program)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "ReferenceEngine"
    assert "cannot be used (NUMBA_DISABLE_JIT is set)" in done.stderr
    assert done.stderr.strip().endswith("ImportError: NUMBA_DISABLE_JIT is set")


def test_the_first_compilation_says_so(monkeypatch, capsys):
    monkeypatch.setattr(calls._Announcer, "silent", False)
    assert calls.call(njit(lambda x: x + 1), 1) == 2
    assert calls.call(njit(lambda x: x + 2), 1) == 3
    assert capsys.readouterr().err.count("compiling the descriptors") == 1


def test_chunk_is_wide_enough_for_a_row():
    # a chunk holds whole rows of pairs: the widest row decides where the chunk is too small
    sizes = np.array([1, 1, 1, 1, 3])
    for most in (3, CHUNK, 3 * CHUNK):
        assert len(new_triples(sizes, most).s) >= most + PAD
