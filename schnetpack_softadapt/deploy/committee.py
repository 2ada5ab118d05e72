"""Mean and spread of several models: how far they agree where none of them was trained.

The spread is the standard deviation over the models, sqrt(mean_k (x_k - mean)^2), of every number:
a measure of the model's uncertainty, not its error (all may be wrong in the same way).
"""

from collections.abc import Sequence

import numpy as np

__all__ = ["SPREAD_SUFFIX", "mean_and_spread"]

#: appended to the name of a property for its spread, as in `results["forces_std"]`
SPREAD_SUFFIX = "_std"


def mean_and_spread(
    predictions: Sequence[dict[str, float | np.ndarray]],
) -> dict[str, float | np.ndarray]:
    """Mean of each property over the models, and its standard deviation as `<name>_std`.

    Args:
        predictions: results of each model; only properties that all of them have are kept.

    Raises:
        ValueError: no predictions.
    """
    if not predictions:
        raise ValueError("a committee needs at least one model")
    names = [name for name in predictions[0] if all(name in p for p in predictions)]
    results: dict[str, float | np.ndarray] = {}
    for name in names:
        values = np.stack([np.asarray(p[name]) for p in predictions])
        mean, spread = values.mean(axis=0), values.std(axis=0)
        results[name] = mean if values.ndim > 1 else float(mean)
        results[name + SPREAD_SUFFIX] = spread if values.ndim > 1 else float(spread)
    return results
