import pytest
from engine_calls import EngineCalls


@pytest.fixture(params=["reference", "kernels"])
def make_backend(request):
    """Builds the engine of a descriptor, with methods that take the pair list itself."""
    return lambda descriptor: EngineCalls(descriptor.engine("cpu", request.param))
