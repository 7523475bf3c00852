"""Reads chosen layers of vLLM's running vision tower."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPAttention, CLIPVisionModel
from vllm.model_executor.models.siglip import SiglipAttention, SiglipVisionModel

from vllm_hired.towers.observation import Quantity
from vllm_hired.towers.reading import Reading


@contextmanager
def capture(
    tower: CLIPVisionModel | SiglipVisionModel, readings: Mapping[Quantity, Reading]
) -> Iterator[dict[Quantity, Tensor]]:
    """Measures query and key in one forward of the tower, inside the `with` block.

    Reads them where they enter `self_attn.attn`, after LoRA, dequantisation and any QK
    norm, whatever the attention backend. The hooks leave with the block, also when a
    forward fails, so nothing that was read outlives its image.

    Args:
        tower: vLLM's CLIP or SigLIP tower.
        readings: what to measure, by name.

    Yields:
        Name -> what the reading's measure gives, float32, summed over the heads of all
        tensor-parallel ranks; empty until the forward.
    """
    measured: dict[Quantity, Tensor] = {}

    def watch(
        name: Quantity, reading: Reading, self_attn: CLIPAttention | SiglipAttention
    ) -> RemovableHandle:
        def record(attn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            query, key, *_ = inputs
            local = reading.measure(
                query, key, self_attn.num_heads_per_partition, self_attn.scale
            )
            if self_attn.tp_size > 1:
                # A rank sees its own heads; ranks that disagreed on one index would
                # corrupt the output silently.
                local = tensor_model_parallel_all_reduce(local.contiguous())
            measured[name] = local

        return self_attn.attn.register_forward_pre_hook(record)

    with ExitStack() as hooks:
        for name, reading in readings.items():
            self_attn = tower.vision_model.encoder.layers[reading.layer].self_attn
            hooks.enter_context(watch(name, reading, self_attn))
        yield measured
