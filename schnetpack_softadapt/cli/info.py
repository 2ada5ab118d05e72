"""What a model, a database or a run is, on one screen."""

from collections.abc import Iterable
from pathlib import Path

__all__ = ["info"]

#: a folder with any of these is a run
OF_A_RUN = ("config.yaml", "history.csv", "metrics.json")


def info(path: str | Path) -> str:
    """Describe what stands at a path.

    Args:
        path: a model or potential as `load_members` takes it, a database or a run.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: it is none of these, or damaged.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"there is nothing at {path}")
    if path.suffix == ".db":
        lines = _database(path)
    elif any((path / name).exists() for name in OF_A_RUN):
        lines = _run(path)
    else:
        lines = _model(path)
    return "\n".join(f"{name:<12} {text}" if name else text for name, text in lines)


def _database(path: Path) -> Iterable[tuple[str, str]]:
    from schnetpack_softadapt.data.database import open_database
    from schnetpack_softadapt.data.dataset import read_database
    from schnetpack_softadapt.data.importing.summary import summary
    from schnetpack_softadapt.data.splitting import load_split, split_path
    from schnetpack_softadapt.quantities import SUBSETS

    structures = read_database(path)
    yield "database", str(path)
    yield "", summary(structures)
    with open_database(path) as database:
        metadata = database.metadata
    units = metadata.get("_property_unit_dict", {})
    yield "labels", ", ".join(f"{name} {unit}".strip() for name, unit in units.items())
    if split_path(path).is_file():
        split = load_split(split_path(path), len(structures))
        sizes = [f"{title} {len(getattr(split, name))}" for name, title in SUBSETS.items()]
        yield "split", ", ".join(sizes)
    if metadata.get("provenance"):
        yield "provenance", metadata["provenance"]


def _run(path: Path) -> Iterable[tuple[str, str]]:
    from schnetpack_softadapt.reports.report import read_runs, terminal_summary

    (run,) = read_runs([path])
    yield "run", str(path)
    if run.config:
        yield "data", str(run.setting("data.datapath"))
        names = {
            "representation": "model.representation._target_",
            "optimizer": "task.optimizer_cls",
            "weights": "task.weighting._target_",
        }
        found = [(name, str(run.setting(key)).split(".")[-1]) for name, key in names.items()]
        recipe = [f"{name} {value}" for name, value in found if value != "None"]
        recipe.append(f"at most {run.setting('trainer.max_epochs')} epochs")
        yield "recipe", ", ".join([*recipe, f"seed {run.seed}"])
    yield "epochs", f"{run.n_epochs or 0}, best {run.best_epoch}"
    yield "", terminal_summary([run])
    if (path / "best_model").is_file():
        yield from _model(path / "best_model")


def _model(path: Path) -> Iterable[tuple[str, str]]:
    from ase.data import chemical_symbols

    from schnetpack_softadapt.deploy.loading import load_members

    model, *others = load_members(path)
    representation = getattr(model, "representation", None)
    metadata = getattr(model, "metadata", None) or {}
    yield "model", f"{path}: {type(model).__name__} with {type(representation).__name__}"
    if others:
        yield "committee", f"of {1 + len(others)} models, of which this is the first"
    yield "outputs", ", ".join(sorted(getattr(model, "model_outputs", [])))
    descriptor = getattr(representation, "descriptor", None)  # SchNetPack's own have none
    elements = metadata.get("elements")
    if elements is None and descriptor is not None:
        elements = [chemical_symbols[z] for z in descriptor.elements]
    if elements:
        yield "elements", ", ".join(elements)
    units = metadata.get("units", {})
    if getattr(representation, "cutoff", None) is not None:
        yield "cutoff", f"{float(representation.cutoff):g} {units.get('length', '')}".rstrip()
    if descriptor is not None:
        yield "functions", descriptor.summary().replace("\n", "\n" + 13 * " ")
    yield "parameters", f"{sum(p.numel() for p in model.parameters() if p.requires_grad)} trained"
    shown = [f"{name} {unit}" for name, unit in units.items() if unit]
    yield "units", ", ".join(shown) or "not stated"
    if metadata.get("provenance"):
        yield "provenance", metadata["provenance"]
