import pytest
from emt_structures import labelled_structures


@pytest.fixture
def structures():
    """Six periodic structures of 2 to 4 atoms with energy, forces and stress."""
    return labelled_structures(6)
