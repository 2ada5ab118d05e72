"""Second-order optimizers and the residual vectors that they step with."""

from schnetpack_softadapt.training.optimizers.kalman import KalmanFilter
from schnetpack_softadapt.training.optimizers.least_squares import LeastSquares
from schnetpack_softadapt.training.optimizers.second_order import SecondOrder
from schnetpack_softadapt.training.optimizers.spring import Spring

__all__ = ["KalmanFilter", "LeastSquares", "SecondOrder", "Spring"]
