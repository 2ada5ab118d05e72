"""Compiled loops of the bispectrum."""
