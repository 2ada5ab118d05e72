"""Second-order optimizers and the residual vectors that they step with."""

from schnetpack_softadapt.training.optimizers.kalman import KalmanFilter

__all__ = ["KalmanFilter"]
