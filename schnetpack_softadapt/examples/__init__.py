"""Short programs to start from: `python -m schnetpack_softadapt.examples.train` and so on."""
