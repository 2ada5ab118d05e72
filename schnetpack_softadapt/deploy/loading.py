"""Models from what a user has at hand: an object, a file, a run directory, an exported folder."""

import copy
from pathlib import Path

import torch
from pytorch_lightning import LightningModule
from schnetpack.utils import load_model
from torch import nn

from schnetpack_softadapt.data.paths import user_path
from schnetpack_softadapt.deploy.exchange.models import to_model
from schnetpack_softadapt.deploy.exchange.n2p2 import read_potential
from schnetpack_softadapt.deploy.exchange.pace import read_pace
from schnetpack_softadapt.deploy.exchange.snap import read_snap
from schnetpack_softadapt.deploy.exchange.text import FILE_NAME, read_text
from schnetpack_softadapt.files import replacing
from schnetpack_softadapt.model.composition import take_apart

__all__ = ["load_members", "load_potential", "load_start", "refinement", "save_potential"]


def load_potential(
    model: str | Path | nn.Module,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> nn.Module:
    """A copy of the model in evaluation mode that may be changed freely.

    Args:
        model: a model or task object, which stays untouched; or the path of a saved model
            (`best_model`), of a run directory that holds one, or of an exported potential
            (`potential.json`, a `.snapcoeff`, `.yace` or `.ace` file, else n2p2's files). A saved
            model is a pickle, which can run any code when it is loaded: load only what you trust.
            An exported potential is text that executes nothing.

    Raises:
        FileNotFoundError: there is nothing at the path, or nothing that is a model.
        ValueError: the file is not a saved model, or it is a committee.
    """
    models = load_members(model, device, dtype)
    if len(models) > 1:
        raise ValueError(
            f"{model} is a committee of {len(models)} models; one model is needed here"
        )
    return models[0]


def load_start(path: str) -> nn.Module:
    """The model at a path that the user gave, for `model.start_from` of a configuration.

    `DescriptorPotential.like` makes one of its form from it.
    """
    return load_potential(user_path(path))


def refinement(path: str | Path) -> list[str]:
    """Overrides of a configuration for a model of the form of the one at a path.

    Raises:
        UnsupportedModelError: it is no model of descriptors, such as SchNetPack's.
    """
    parts = take_apart(load_potential(path), short_range=True)
    kind = "softadapt" if parts.networks.n_hidden else "linear"
    return [f"experiment=refine_{kind}", f"globals.cutoff={parts.descriptor.cutoff!r}"]


def load_members(
    model: str | Path | nn.Module,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float64,
) -> list[nn.Module]:
    """The models of an exported committee; otherwise the one of `load_potential`."""
    if isinstance(model, LightningModule) and hasattr(model, "model"):
        model = model.model
    if isinstance(model, nn.Module):
        loaded = [copy.deepcopy(model)]
    else:
        loaded = _load(Path(model))
    return [one.to(device).to(dtype).eval() for one in loaded]


def _load(path: Path) -> list[nn.Module]:
    if path.name == FILE_NAME or (path / FILE_NAME).exists():
        return [to_model(member) for member in read_text(path)]
    return [_load_one(path)]


def _load_one(path: Path) -> nn.Module:
    if path.suffix == ".snapcoeff":
        return read_snap(path)
    if path.suffix in (".yace", ".ace"):
        return read_pace(path)
    if path.is_dir():
        if len(snap := [*path.glob("*.snapcoeff")]) == 1:
            return read_snap(snap[0])
        if len(pace := [*path.glob("*.yace")]) == 1:
            return read_pace(pace[0])
        if (path / "input.nn").exists():
            return read_potential(path)
        if not (path / "best_model").exists():
            raise FileNotFoundError(
                f"{path} holds neither a model (best_model) nor a potential ({FILE_NAME}, input.nn)"
            )
        path = path / "best_model"
    if not path.exists():
        raise FileNotFoundError(f"there is no model at {path}")
    try:
        loaded = load_model(str(path), device="cpu")
    except FileNotFoundError:
        raise
    except (AttributeError, ModuleNotFoundError) as error:
        if "schnetpack_softadapt" not in str(error):
            raise ValueError(f"{path} cannot be loaded as a model: {error}") from error
        raise ValueError(
            f"{path} was made by another version of this package, whose classes had other places:"
            " train again, or export it with that version as an n2p2 folder and read that"
        ) from error
    except Exception as error:  # a broken pickle can raise anything
        raise ValueError(f"{path} cannot be loaded as a model: {error}") from error
    if not isinstance(loaded, nn.Module):
        raise ValueError(f"{path} holds a {type(loaded).__name__}, not a model")
    return loaded


def save_potential(model: nn.Module, path: str | Path) -> Path:
    """Save a model as training does (a pickle), so that it is never seen half written."""
    with replacing(path) as temporary:
        torch.save(model, temporary)
    return Path(path)
