"""Observations made by hand."""

import torch
from torch import Tensor

from vllm_hired.layouts import Layout
from vllm_hired.towers.observation import Observation


def attended(init: Tensor, final: Tensor) -> Observation:
    """Attention of two layers, `[P, N]` each, and nothing else."""
    return Observation(final.device, {"init_attention": init, "final_attention": final})


def observed(
    layout: Layout,
    seed: int,
    attention: Tensor | None = None,
    feature_size: int = 8,
    key_size: int = 4,
    poison: float | None = None,
) -> Observation:
    """Everything that can be observed, at random; on the device of `attention`.

    Args:
        layout: of the image.
        seed: of the random numbers.
        attention: `[P, N]`, stands in for the random attention of both layers.
        feature_size: `D`.
        key_size: `d`.
        poison: what every third cell's numbers are instead.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = (layout.num_partitions, layout.cells_per_partition)
    init, final = torch.rand((2, *cells), generator=generator)
    features = torch.randn((*cells, feature_size), generator=generator)
    keys = torch.randn((*cells, key_size), generator=generator)
    if poison is not None:
        for quantity in (init, final, features, keys):
            quantity[:, ::3] = poison
    if attention is not None:
        init = final = attention
    return Observation(
        final.device,
        {
            "init_attention": init,
            "final_attention": final,
            "features": features.to(final.device),
            "keys": keys.to(final.device),
        },
    )
