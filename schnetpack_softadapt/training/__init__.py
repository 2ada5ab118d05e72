"""Training: what is minimised, with which weights, by which optimizer, and what a run writes.

- `losses`, `model_outputs`, `standardize`: the loss components and their scales.
- `rules`: how the components are weighted; knows neither torch nor SchNetPack.
- `task`, `settings`: a training step and an epoch; what can be wrong before it.
- `means`: sums over batches, epochs and ranks.
- `resume`, `checkpoints`: going on after a kill, on the same path.
- `optimizers`: the Kalman filter, SPRING, and the residuals they step with.
- `callbacks`, `results`, `predictions`: progress bar, history.csv, errors of the best model.

Import paths of rules and losses are part of the format of checkpoints.
"""
