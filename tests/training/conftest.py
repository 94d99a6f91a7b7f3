import pytest

from tests.training import problem as problem_module


@pytest.fixture
def problem():
    """The small training problem that the room's tests share, also with the processes that they start."""
    return problem_module
