"""Models that start from smaller ones: ladders of functions, refinement with new data."""

from collections.abc import Sequence

import numpy as np
import torch
from ase.data import chemical_symbols
from torch import Tensor, nn

from schnetpack_softadapt.descriptors.protocol import Descriptor
from schnetpack_softadapt.model.composition import Composition, take_apart

__all__ = ["check_start", "start_from"]

# values of the same function agree to rounding, those of others nowhere near
_SAME = 1e-9


def check_start(descriptor: Descriptor, source: nn.Module) -> list[dict[int, list[int]]]:
    """Columns of a descriptor that are those of a smaller model's, before the data are read.

    Functions are recognised by their values in random environments of the elements of the smaller
    model, so that order, names and the setting by which they were chosen do not matter.

    Returns:
        By element of the smaller model, the column of each of its columns.

    Raises:
        ValueError: an element or a function of the smaller model is missing.
        UnsupportedModelError: the smaller model is no `Composition`.
    """
    smaller = take_apart(source, short_range=True).descriptor
    if missing := [chemical_symbols[z] for z in smaller.elements if z not in descriptor.elements]:
        raise ValueError(f"the model that is started from has {', '.join(missing)}, this one not")
    pairs, numbers = _environments(smaller.elements, smaller.cutoff)
    theirs, mine = (d.engine("cpu") for d in (smaller, descriptor))
    theirs, mine = (e.values(e.prepare(*pairs, numbers)).double().numpy() for e in (theirs, mine))
    columns = {}
    for z in smaller.elements:
        rows, n = numbers.numpy() == z, smaller.n_functions[z]
        a, b = theirs[rows, :n], mine[rows, : descriptor.n_functions[z]]
        size = np.abs(a).max(0)
        columns[z] = []
        for k in range(n):
            error = np.abs(b - a[:, k : k + 1]).max(0)
            best = int(error.argmin())
            if error[best] > _SAME * size[k]:
                raise ValueError(
                    f"the model that is started from has the function {smaller.describe(z, k)} of"
                    f" {chemical_symbols[z]}, cutoff {smaller.cutoff:g} Ang, this one not: give"
                    " model.representation the settings of that model, or more functions"
                )
            columns[z].append(best)
    return columns


def _environments(elements: Sequence[int], cutoff: float):
    """Pairs (r_ij, idx_i, idx_j) of atoms at random in a sphere, and their numbers (n,)."""
    rng = np.random.default_rng(0)
    n = 20 * len(elements)
    numbers = np.tile(np.array(elements), 20)
    r = rng.normal(0.0, 0.4 * cutoff, (n, 3))
    i, j = np.nonzero(~np.eye(n, dtype=bool))
    inside = np.linalg.norm(r[j] - r[i], axis=1) < cutoff
    i, j = i[inside], j[inside]
    pairs = torch.from_numpy(r[j] - r[i]), torch.from_numpy(i), torch.from_numpy(j)
    return pairs, torch.from_numpy(numbers)


@torch.no_grad()
def start_from(model: nn.Module, source: nn.Module) -> None:
    """Give a model the energies of a smaller one, whatever its scaling and constants are.

    New functions get first weights of zero; new neurons, and densities of a Finnis-Sinclair model,
    keep their random weights and count nothing at first. A linear model becomes the first density.
    Elements that the smaller model does not have keep their random networks. Constant energies are
    those of the smaller model.

    Args:
        model: completed from its data.
        source: the smaller model.

    Raises:
        ValueError: an element, a function, a layer or a neuron of the smaller model is missing, or
            one of them has a baseline that the other has not.
        UnsupportedModelError: a model is no `Composition`.
    """
    mine, theirs = (take_apart(m, short_range=True) for m in (model, source))
    columns = check_start(mine.descriptor, source)
    described = [p.baseline and p.baseline.to_dict() for p in (mine, theirs)]
    if described[0] != described[1]:
        raise ValueError(
            f"the baseline of the model that is started from is {described[1]}, that of this one"
            f" {described[0]}: give both the same"
        )
    networks, old = mine.networks, theirs.networks
    is_linear = not old.n_hidden and not old.quadratic
    as_density = is_linear and networks.has_densities
    widths = [1] if as_density else [*old.n_hidden]
    fits = len(widths) == len(networks.n_hidden) and old.quadratic == networks.quadratic
    fits &= as_density or old.activations == networks.activations
    if not fits or any(a > b for a, b in zip(widths, networks.n_hidden, strict=True)):
        raise ValueError(
            f"the model that is started from has {_shape(old)}, this one {_shape(networks)}: they"
            " must have as many layers of the same kind, and these no fewer neurons"
        )
    old_scale, scale = float(old.scale), float(networks.scale)
    for z, places in columns.items():
        row, old_row = networks.elements.index(z), old.elements.index(z)
        weights = [w[old_row].double() for w in old.weights]
        biases = [b[old_row, 0].double() for b in old.biases]
        weights[0], biases[0] = _rescaled(weights[0], biases[0], theirs, mine, z, places)
        weights[-1] = weights[-1] * (old_scale / scale)
        biases[-1] = biases[-1] * (old_scale / scale)
        if as_density:
            weights.append(torch.ones_like(weights[0][:1]))
            biases.insert(0, torch.zeros_like(biases[0]))
        networks.shifts.shift[z] += (theirs.offsets[z] - mine.offsets[z]).to(networks.shifts.shift)
        for layer, (w, b) in enumerate(zip(weights, biases, strict=True)):
            rows = list(range(len(w)))
            if layer == 0:
                rows = [*places, *_products(places, networks.n_columns)][: len(w)]
            weight, bias = networks.weights[layer][row], networks.biases[layer][row, 0]
            weight[:, : w.shape[1]] = 0.0
            weight[rows, : w.shape[1]] = w.to(weight)
            bias[: len(b)] = b.to(bias)


def _shape(networks) -> str:
    kind = "quadratic" if networks.quadratic else "linear"
    layers = zip(networks.n_hidden, networks.activations, strict=True)
    return ", ".join(f"{n} {name}" for n, name in layers) or kind


def _rescaled(w: Tensor, b: Tensor, theirs: Composition, mine: Composition, z: int, places):
    """First weights and biases that give with our scaling what w (D, m) and b (m,) give there.

    The functions there are a y + c with a function y of ours, and a quadratic form of them is one
    of y.
    """
    old, row = theirs.scaling, theirs.scaling.elements.index(z)
    old_factor, old_shift = (x[row, : len(places)].double() for x in (old.factor, old.shift))
    new, row = mine.scaling, mine.scaling.elements.index(z)
    factor, shift = (x[row, places].double() for x in (new.factor, new.shift))
    # a function that is the same for all of the new data has the factor 0 and counts in the bias
    ratio = torch.where(factor > 0, old_factor / torch.where(factor > 0, factor, 1.0), 0.0)
    constant = old_factor * (shift - old_shift)
    products, w = w[theirs.networks.n_columns :], w[: len(places)]
    b = b + (w * constant[:, None]).sum(0)
    if not len(products):
        return w * ratio[:, None], b
    n = theirs.networks.n_columns
    first, second = torch.triu_indices(n, n)
    matrix = w.new_zeros(n, n)
    matrix[first, second] = matrix[second, first] = products[:, 0]
    matrix = matrix[: len(places), : len(places)]
    w, b = w + (matrix @ constant)[:, None], b + 0.5 * constant @ matrix @ constant
    matrix = ratio[:, None] * matrix * ratio
    first, second = torch.triu_indices(len(places), len(places))
    return torch.cat([w * ratio[:, None], matrix[first, second][:, None]]), b


def _products(places: Sequence[int], n: int) -> list[int]:
    """Rows of the products of some of n columns, in the order of `with_products`."""
    first, second = torch.triu_indices(n, n)
    row = torch.empty(n, n, dtype=torch.long)
    row[first, second] = row[second, first] = n + torch.arange(len(first))
    first, second = torch.triu_indices(len(places), len(places))
    own = torch.tensor(places)
    return row[own[first], own[second]].tolist()
