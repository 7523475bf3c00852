"""[CLS] attention of chosen layers of vLLM's running CLIP tower."""

from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from vllm.distributed import tensor_model_parallel_all_reduce
from vllm.model_executor.models.clip import CLIPAttention, CLIPVisionModel

from vllm_hired.towers.attention import cls_attention


@contextmanager
def capture_cls_attention(
    tower: CLIPVisionModel, layers: Collection[int]
) -> Iterator[dict[int, Tensor]]:
    """Scores of one forward of the tower, inside the `with` block.

    Reads query and key where they enter `self_attn.attn`, after LoRA, dequantisation
    and any QK norm, whatever the attention backend. The hooks leave with the block,
    also when a forward fails, so no score outlives its image.

    Args:
        tower: vLLM's CLIP tower.
        layers: indices of the layers to read.

    Yields:
        Layer -> `[B, N]` float32, summed over the heads of all tensor-parallel ranks;
        empty until the forward.
    """
    scores: dict[int, Tensor] = {}

    def watch(layer: int, self_attn: CLIPAttention) -> RemovableHandle:
        def record(attn: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            query, key, *_ = inputs
            local = cls_attention(
                query, key, self_attn.num_heads_per_partition, self_attn.scale
            )
            if self_attn.tp_size > 1:
                # A rank sees its own heads; ranks that disagreed on one index would
                # corrupt the output silently.
                local = tensor_model_parallel_all_reduce(local.contiguous())
            scores[layer] = local

        return self_attn.attn.register_forward_pre_hook(record)

    with ExitStack() as hooks:
        for layer in layers:
            self_attn = tower.vision_model.encoder.layers[layer].self_attn
            hooks.enter_context(watch(layer, self_attn))
        yield scores
