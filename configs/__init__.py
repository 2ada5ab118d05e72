"""Hydra configs of schnetpack_softadapt (a package, so that Hydra can find it)."""
