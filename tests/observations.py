"""Observations made by hand."""

import torch
from torch import Tensor

from vllm_hired.layouts import Layout
from vllm_hired.towers.observation import Observation


def attended(init: Tensor, final: Tensor) -> Observation:
    """Attention of two layers, `[P, N]` each, and nothing else."""
    return Observation(final.device, {"init_attention": init, "final_attention": final})


def observed(
    layout: Layout, seed: int, width: int = 8, poison: float | None = None
) -> Observation:
    """Everything that can be observed of an image of `layout`, at random.

    Args:
        layout: of the image.
        seed: of the random numbers.
        width: `D` of the features and of the keys.
        poison: what every third cell's numbers are instead.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = (layout.num_partitions, layout.cells_per_partition)
    init, final = torch.rand((2, *cells), generator=generator)
    features, keys = torch.randn((2, *cells, width), generator=generator)
    if poison is not None:
        for quantity in (init, final, features, keys):
            quantity[:, ::3] = poison
    return Observation(
        final.device,
        {
            "init_attention": init,
            "final_attention": final,
            "features": features,
            "keys": keys,
        },
    )
