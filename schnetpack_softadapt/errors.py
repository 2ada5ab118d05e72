"""Errors that a user can mend are one line; faults of ours keep their traceback."""

import functools
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

__all__ = ["error_text", "in_one_line", "is_users", "shortened"]

PACKAGE = Path(__file__).parent


def is_users(error: Exception) -> bool:
    """Whether it was raised on purpose, by a `raise` of this package or by the file system.

    A ValueError that numpy raises in our code is a fault of ours.
    """
    where = traceback.extract_tb(error.__traceback__)[-1]
    ours = Path(where.filename).is_relative_to(PACKAGE)
    on_purpose = ours and (where.line or "").startswith("raise ")
    return isinstance(error, OSError) or (isinstance(error, ValueError) and on_purpose)


def error_text(error: Exception) -> str:
    """What a user reads of it."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error)


def shortened(items: Sequence[str], most: int) -> list[str]:
    """The first items, for a message, and how many more there are."""
    return [*items[:most], *[f"and {len(items) - most} more"] * (len(items) > most)]


def in_one_line(hook: Callable) -> Callable:
    """Decorator of what Lightning calls: `spktrain` prints a user's error as its text alone.

    Hydra prints a traceback for all exceptions but its own compact ones, so the error becomes one
    of them. It keeps its type, for those who catch it; HYDRA_FULL_ERROR=1 shows the traceback.
    """

    @functools.wraps(hook)
    def wrapped(*args, **kwargs):
        try:
            return hook(*args, **kwargs)
        except (OSError, ValueError) as error:
            # here, since importing this package must be quick
            from hydra.errors import CompactHydraException

            kind = type(error)
            if isinstance(error, CompactHydraException) or not is_users(error):
                raise
            compact = type(kind.__name__, (CompactHydraException, kind), {})
            raise compact(error_text(error)) from error

    return wrapped
