"""Programs here are small and run once or twice: they are compiled quickly."""

import pytest

from tests import backends


@pytest.fixture(autouse=True)
def quick_compilation():
    with backends.quick_compilation():
        yield
