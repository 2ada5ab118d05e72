"""Tests are of the installed package, which alone has the configs.

`python -m pytest` puts the folder it is called in first on the path: from a checkout, the source.
"""

import importlib.util
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]

try:
    installed = importlib.util.find_spec("schnetpack_softadapt.configs")
except ModuleNotFoundError:
    installed = None
if installed is None:
    sys.exit('schnetpack_softadapt is not installed; first `pip install ".[dev]"` in the checkout')
