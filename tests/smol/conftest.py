"""What these tests need beyond the package: `pip install '.[smol]'`."""

from importlib.util import find_spec

import pytest


@pytest.fixture(autouse=True)
def _readers() -> None:
    if find_spec("gguf") is None or find_spec("onnx") is None:
        pytest.skip("pip install '.[smol]' has not been run")
