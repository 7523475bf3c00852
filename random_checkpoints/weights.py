"""Random weights, and their files in the published layout."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForImageTextToText


def random_model(config: Any, seed: int) -> Any:
    """An HF model of a config, with random weights."""
    with torch.random.fork_rng():
        # Vectors stay as HF draws them, from the global generator.
        torch.manual_seed(seed)
        model = AutoModelForImageTextToText.from_config(config)
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            # Wide enough for peaked attention and for logits that differ clearly.
            scale = 1.0 if "embed" in name else 1.5 * parameter.shape[-1] ** -0.5
            with torch.no_grad():
                parameter.normal_(0.0, scale, generator=generator)
    return model


def with_prefix(name: str, prefixes: Iterable[tuple[str, str]]) -> str:
    """`name` with the first of the prefixes replaced that it has.

    Args:
        name: HF's, in memory.
        prefixes: (in memory, published).
    """
    for in_memory, published in prefixes:
        if name.startswith(in_memory):
            return published + name.removeprefix(in_memory)
    return name


def save_tensors(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes `model.safetensors`; the names are the published ones."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, folder / "model.safetensors", metadata={"format": "pt"})
