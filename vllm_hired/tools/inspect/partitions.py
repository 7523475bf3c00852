"""Towers that encode an image as partitions of one size: CLIP and SigLIP in LLaVA."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar

from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel
from typing_extensions import override

from vllm_hired.layouts import image_layout
from vllm_hired.tools.inspect.tower import InspectedTower, SeenImage, by_channel
from vllm_hired.towers import tower_of
from vllm_hired.towers.observation import QUANTITIES, Observation, Quantity
from vllm_hired.towers.reading import observations
from vllm_hired.towers.support import num_tower_layers


class PartitionsTower(InspectedTower):
    """CLIP's and SigLIP's.

    Attributes:
        forward_options: of the tower's forward, beside the pixels.
    """

    weight_names = re.compile(
        # Some versions of transformers save the tower one level higher.
        r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)"
    )
    # Applied to the last layer's output, which nobody reads here.
    unread: ClassVar[tuple[str, ...]] = ("post_layernorm", "head.")
    forward_options: ClassVar[Mapping[str, bool]] = {"output_hidden_states": True}

    @override
    def make(self) -> nn.Module:
        config = deepcopy(self.hf_config.vision_config)
        config.num_hidden_layers = num_tower_layers(self.hf_config)
        tower: nn.Module = inner_tower(AutoModel.from_config(config))
        return tower

    @override
    def attentions(self) -> Sequence[nn.Module]:
        return [layer.self_attn for layer in self.module.encoder.layers]

    @override
    def see(self, image: Image.Image) -> SeenImage:
        processor = self.image_processor
        pixels = processor([image], return_tensors="pt")["pixel_values"]
        partitions = pixels.view(-1, *pixels.shape[-3:]).float()
        mean, std = by_channel(processor.image_mean), by_channel(processor.image_std)
        return SeenImage(
            layout=image_layout(self.hf_config, image.height, image.width),
            pictures=partitions * std + mean,
            inputs={"pixel_values": partitions, **self.forward_options},
        )

    @override
    def features(self, output: Any) -> Tensor:
        hidden: Tensor = output.hidden_states[-1]
        return hidden[:, 1:] if tower_of(self.hf_config).has_cls else hidden

    @override
    def observation(
        self, seen: SeenImage, features: Tensor, measured: Mapping[Quantity, Tensor]
    ) -> Observation:
        (observation,) = observations(
            features,
            measured,
            self.hf_config.vision_config.num_attention_heads,
            QUANTITIES,
            [seen.layout.num_partitions],
        )
        return observation


def inner_tower(tower: Any) -> Any:
    """Some versions of transformers nest the tower one level deeper."""
    return getattr(tower, "vision_model", tower)
