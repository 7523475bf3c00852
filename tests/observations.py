"""Observations made by hand."""

from torch import Tensor

from vllm_hired.towers.observation import Observation


def attended(init: Tensor, final: Tensor) -> Observation:
    """Attention of two layers, `[P, N]` each, and nothing else."""
    return Observation(final.device, {"init_attention": init, "final_attention": final})
