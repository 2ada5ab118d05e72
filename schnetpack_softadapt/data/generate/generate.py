"""Training data from prototypes: make the structures of a recipe, label them, write them."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from schnetpack_softadapt.data.executors import Spec
from schnetpack_softadapt.data.generate.journal import (
    LabelResult,
    Task,
    digest,
    journal_of,
    label_tasks,
    write_labelled,
)
from schnetpack_softadapt.data.generate.recipe import Recipe, build, samples
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
    )


def generate(
    recipe: Recipe,
    out: str | Path,
    executor: Spec = "local:1",
    timeout: float | None = None,
    retries: int = 0,
    overwrite: bool = False,
    progress: bool = False,
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
        progress: show a progress bar.
        say: gets the messages for the user.

    Raises:
        ValueError: no calculator, a wrong name, another process at work on the same file, or
            nothing could be labelled.
        FileExistsError: `out` exists, and was not made by an earlier run.
    """
    out = Path(out)
    journal = journal_of(out, recipe.calculator, overwrite)
    say(plan(recipe))
    result = LabelResult()
    with locked(journal):
        tasks = _tasks(recipe, result)
        options = {"executor": executor, "timeout": timeout, "retries": retries}
        label_tasks(
            tasks, recipe.calculator, journal, result, **options, progress=progress, say=say
        )
        provenance = f"generated from {', '.join(p.name for p in recipe.prototypes)};"
        provenance += f" {plan(recipe)}; labels by {recipe.calculator} {recipe.calculator_args}"
        write_labelled(out, result, provenance, say)
    return result


def _tasks(recipe: Recipe, result: LabelResult) -> list[Task]:
    """What is worth labelling; fills `skipped` of the result."""
    arguments = {p.name: {**recipe.calculator_args, **p.calculator_args} for p in recipe.prototypes}
    tasks = []
    for sample in samples(recipe):
        atoms = build(sample, recipe)
        contact = closest_contact(atoms, recipe.min_distance, SHORTEST_OF_COVALENT)
        if contact is not None:
            result.skipped[sample.key] = (
                "atoms {} and {} are {:.3f} Ang apart (less than {:.3f}; --min-distance)"
            ).format(*contact)
            continue
        own = arguments[sample.prototype]
        tasks.append(Task(sample.key, atoms, own, digest(atoms, [recipe.calculator, own])))
    return tasks
