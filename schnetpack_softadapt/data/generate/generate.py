"""Training data from prototypes: make the structures of a recipe, label them, write them."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

from ase import Atoms

from schnetpack_softadapt.data.executors import Spec
from schnetpack_softadapt.data.generate.label import LabelResult, ToLabel, label_all, labels_journal
from schnetpack_softadapt.data.generate.recipe import Recipe, build, samples
from schnetpack_softadapt.data.generate.walks import Walk, walk_all
from schnetpack_softadapt.data.importing.checks import closest_contact
from schnetpack_softadapt.files import locked

__all__ = ["generate", "plan"]

SHORTEST_OF_COVALENT = 0.6  # of the sum of covalent radii; bonds of strained crystals keep 0.8


def plan(recipe: Recipe) -> str:
    """How many structures of what kind a recipe makes, for a look before anything runs."""
    counts = Counter(sample.prototype for sample in samples(recipe))
    names = ", ".join(f"{name} {n}" for name, n in counts.items())
    sigmas = dict.fromkeys((min(recipe.sigma), max(recipe.sigma)))
    return (
        f"structures   {counts.total()} ({names})\n"
        f"strains      {len(recipe.strain)}; sigma {' to '.join(f'{s:g}' for s in sigmas)} Ang;"
        f" repeats {recipe.repeats}; supercells {len(recipe.supercell)}; vacancies"
        f" {', '.join(map(str, recipe.vacancies))}; seed {recipe.seed}"
        + "".join(
            f"\n{w.key:<12} {w.settings.steps} steps, up to"
            f" {w.settings.steps // w.settings.every} structures"
            for w in _walks(recipe, Path())
        )
    )


def generate(
    recipe: Recipe,
    out: str | Path,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    overwrite: bool = False,
    say: Callable[[str], None] = print,
) -> LabelResult:
    """Label all structures of a recipe that have no labels yet, and write all that have.

    Results are kept in `<out>.journal`, line by line: run again after an interruption, with more
    strains or after a failure, and only what is missing is computed.

    Args:
        recipe: what to make; its calculator must be given.
        out: extended XYZ, or a database (.db) in SchNetPack's format; written at the end.
        executor, timeout, retries: see `executors.run_all`.
        overwrite: replace an `out` that no earlier run made; results in a journal are kept.
        say: gets the messages for the user.

    Raises:
        ValueError: no calculator, a wrong name, another process at work on the same file, or
            nothing could be labelled.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out = Path(out)
    arguments = [recipe.arguments(p) for p in recipe.prototypes]
    journal = labels_journal(out, recipe.calculator, arguments, overwrite)
    say(plan(recipe))
    about = f"generated from {', '.join(p.name for p in recipe.prototypes)};"
    about += f" {plan(recipe)}; labels by {recipe.calculator} {recipe.calculator_args}"
    how = {"executor": executor, "timeout": timeout, "retries": retries, "say": say}
    with locked(journal):
        walked = _walked(recipe, out.with_name(out.name + ".walks"), executor, say)
        todo, skipped = _worth_labelling(recipe, walked)
        return label_all(todo, recipe.calculator, out, journal, about, skipped, **how)


def _walks(recipe: Recipe, folder: Path) -> list[Walk]:
    """Molecular dynamics and exchanges from each prototype and supercell."""
    driver = recipe.driver or recipe.calculator
    walks = []
    for p, cell in itertools.product(recipe.prototypes, recipe.supercell):
        args = recipe.driver_args if recipe.driver else recipe.arguments(p)
        for settings in (*recipe.md, *recipe.swaps):
            n_before = sum(w.key.startswith(f"{p.name}|{cell}|{settings.kind}") for w in walks)
            for repeat in range(settings.repeats):
                key = f"{p.name}|{cell}|{settings.kind} {n_before + repeat}"
                seed = int.from_bytes(hashlib.sha256(f"{recipe.seed}|{key}".encode()).digest()[:6])
                start = p.atoms.repeat(cell)
                walks.append(Walk(key, p.name, start, settings, driver, args, seed, folder))
    return walks


def _walked(
    recipe: Recipe, folder: Path, executor: Spec, say: Callable[[str], None]
) -> list[tuple[str, str, Atoms]]:
    """Key, prototype and structure of all that walks keep."""
    found = []
    walks = _walks(recipe, folder)
    for task, (kept, end) in zip(walks, walk_all(walks, executor), strict=True):
        if end != "done":
            say(f"{task.key}: {end}; {len(kept)} structures")
        for atoms in kept:
            about = {"group": task.settings.kind, "prototype": task.prototype}
            about |= {"strain_state": task.key, "seed": recipe.seed, "child_seed": task.seed}
            atoms.info |= about
            found.append((f"{task.key}|{atoms.info['step']}", task.prototype, atoms))
    return found


def _worth_labelling(
    recipe: Recipe, walked: Sequence[tuple[str, str, Atoms]]
) -> tuple[list[ToLabel], dict[str, str]]:
    """Structures without atoms that are too close, and why others are left out."""
    arguments = {p.name: recipe.arguments(p) for p in recipe.prototypes}
    found, skipped = [], {}
    built = ((s.key, s.prototype, build(s, recipe)) for s in samples(recipe))
    for key, prototype, atoms in itertools.chain(built, walked):
        contact = closest_contact(atoms, recipe.min_distance, SHORTEST_OF_COVALENT)
        if contact is None:
            found.append(ToLabel(key, atoms, arguments[prototype], key))
        else:
            skipped[key] = (
                "atoms {} and {} are {:.3f} Ang apart (less than {:.3f}; --min-distance)"
            ).format(*contact)
    return found, skipped
