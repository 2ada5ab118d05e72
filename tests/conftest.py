"""Tests are of the installed package, which alone has the configs.

`python -m pytest` puts the folder it is called in first on the path: from a checkout, the source.
"""

import importlib.util
import os
import sys
from pathlib import Path

# workers share the cores; before numpy and torch are loaded
os.environ.setdefault("OMP_NUM_THREADS", "1")

CHECKOUT = Path(__file__).resolve().parents[1]
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != CHECKOUT]

try:
    installed = importlib.util.find_spec("schnetpack_softadapt.configs")
except ModuleNotFoundError:
    installed = None
if installed is None:
    sys.exit('schnetpack_softadapt is not installed; first `pip install ".[dev]"` in the checkout')

#: tests that compile most kernels: one worker begins with the first, another with the second, since
#: both would compile all of them at the same time, a minute each
COMPILING = (("test_ace.py", "test_snap.py"), ("test_kernels.py",))


def pytest_collection_modifyitems(items):
    """Order for several workers: pytest-xdist begins with a quarter of each one's share."""
    chunk = len(items) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 1)) // 4
    first, second = ([i for i in items if i.path.name in names] for names in COMPILING)
    if "PYTEST_XDIST_WORKER" in os.environ and max(len(first), len(second)) < chunk:
        rest = [i for i in items if i not in {*first, *second}]
        between = chunk - len(first)
        items[:] = first + rest[:between] + second + rest[between:]
