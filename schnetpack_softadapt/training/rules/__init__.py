"""Rules that set the weights of the loss components, from floats alone.

A rule is told once per epoch the mean of every unweighted loss component l_k over that epoch, and
says with which weights the next epoch is trained: total = sum_k alpha_k l_k. Nothing here knows a
tensor or a framework; the same floats give the same weights on every machine and on every rank. A
new rule is one file with one class, which overrides `Rule._next`.
"""

from schnetpack_softadapt.training.rules.likelihood import Likelihood
from schnetpack_softadapt.training.rules.relobralo import ReLoBRaLo
from schnetpack_softadapt.training.rules.rule import Rule
from schnetpack_softadapt.training.rules.schedules import Fixed, LinearRamp, TwoStage
from schnetpack_softadapt.training.rules.softadapt import SoftAdapt
from schnetpack_softadapt.training.rules.uncertainty import Uncertainty

__all__ = [
    "Fixed",
    "Likelihood",
    "LinearRamp",
    "ReLoBRaLo",
    "Rule",
    "SoftAdapt",
    "TwoStage",
    "Uncertainty",
]
