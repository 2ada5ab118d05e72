"""Adaptive loss weighting, Behler-Parrinello potentials and stress for SchNetPack.

Kept free of imports: Hydra imports this package in every Hydra program to find the configs.
"""

__version__ = "0.1.0"
