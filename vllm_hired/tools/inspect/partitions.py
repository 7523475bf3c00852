"""Towers that encode an image as partitions of one size: CLIP and SigLIP in LLaVA."""

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel
from typing_extensions import override

from vllm_hired.config import num_tower_layers
from vllm_hired.layouts import image_layout
from vllm_hired.tools.inspect.tower import InspectedTower, SeenImage
from vllm_hired.towers import tower_of
from vllm_hired.towers.observation import QUANTITIES, Observation, Quantity
from vllm_hired.towers.reading import observations


class PartitionsTower(InspectedTower):
    weight_names = re.compile(
        # Some versions of transformers save the tower one level higher.
        r"(?:model\.)?vision_tower\.(?:vision_model\.)?(.+)"
    )
    # Applied to the last layer's output, which nobody reads here.
    unread = ("post_layernorm", "head.")

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
    def see(self, image_processor: Any, image: Image.Image) -> SeenImage:
        pixels = image_processor([image], return_tensors="pt")["pixel_values"][0]
        partitions = pixels.view(-1, *pixels.shape[-3:]).float()
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (image_processor.image_mean, image_processor.image_std)
        )
        return SeenImage(
            layout=image_layout(self.hf_config, image.height, image.width),
            pictures=partitions * std + mean,
            inputs={"pixel_values": partitions, "output_hidden_states": True},
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
