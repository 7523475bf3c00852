"""InternVL's tower in both formats, by the class of HF's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import InternVLVisionConfig, InternVLVisionModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from typing_extensions import override

from vllm_hired.layouts import image_layout
from vllm_hired.layouts.base import merge_side, partition_side, patches_per_side
from vllm_hired.layouts.internvl import tile_limits
from vllm_hired.tools.inspect.partitions import PartitionsTower
from vllm_hired.tools.inspect.tower import SeenImage, by_channel
from vllm_hired.towers.merged import block_rows, measured_cells
from vllm_hired.towers.observation import Observation, Quantity
from vllm_hired.towers.support import num_tower_layers


class InternVLTower(PartitionsTower):
    """Of checkpoints in HF's format."""

    weight_names = re.compile(r"(?:model\.)?vision_tower\.(.+)")
    # Stands for patches that are hidden in pretraining.
    unread = ("embeddings.mask_token",)
    forward_options: ClassVar[Mapping[str, bool]] = {}

    @override
    def load_image_processor(self, model: str) -> Any:
        """Cuts within `tile_limits(hf_config)`; whatever its file says, it cuts, as it
        does in HF's processor of whole prompts."""
        processor = super().load_image_processor(model)
        limits = tile_limits(self.hf_config)
        processor.crop_to_patches = True
        processor.min_patches, processor.max_patches = limits.least, limits.most
        return processor

    @override
    def attentions(self) -> Sequence[nn.Module]:
        return [layer.attention for layer in self.module.encoder.layer]

    @override
    def features(self, output: Any) -> Tensor:
        """A cell's patches side by side, as the projector gets them."""
        return block_rows(output.last_hidden_state[:, 1:], *self.cells)

    @override
    def observation(
        self, seen: SeenImage, features: Tensor, measured: Mapping[Quantity, Tensor]
    ) -> Observation:
        by_cell = measured_cells(measured, *self.cells)
        return super().observation(seen, features, by_cell)

    @property
    def cells(self) -> tuple[int, int, int]:
        """Rows and columns of cells in a partition, and the side of one in patches."""
        merge = merge_side(self.hf_config)
        side = patches_per_side(self.hf_config) // merge
        return side, side, merge


class InternVLChatTower(InternVLTower):
    """Of checkpoints with remote code, none of which runs."""

    weight_names = re.compile(r"vision_model\.(.+)")

    @override
    def load_image_processor(self, model: str) -> Any:
        return InternVLChatImageProcessor(self.hf_config)

    @override
    def make(self) -> nn.Module:
        vision = self.hf_config.vision_config
        own = {name: getattr(vision, name) for name in SAME_SETTINGS}
        config = InternVLVisionConfig(
            **own,
            attention_bias=vision.qkv_bias,
            use_qk_norm=vision.qk_normalization,
            num_hidden_layers=num_tower_layers(self.hf_config),
        )
        tower: nn.Module = InternVLVisionModel(config)
        return tower

    @override
    def converted(self, name: str, tensor: Tensor) -> Mapping[str, Tensor]:
        """Under the names of HF's format, which has query, key and value apart."""
        for published, own in CHAT_NAMES:
            name = name.replace(published, own)
        if ".qkv." not in name:
            return {name: tensor}
        return {
            name.replace(".qkv.", f".{part}_proj."): rows
            for part, rows in zip("qkv", tensor.chunk(3), strict=True)
        }


SAME_SETTINGS = (
    *("hidden_size", "intermediate_size", "num_attention_heads", "hidden_act"),
    *("norm_type", "layer_norm_eps", "image_size", "patch_size", "num_channels"),
)
"""Settings of the tower that have one name in both formats."""

CHAT_NAMES = (
    (".class_embedding", ".cls_token"),
    (".position_embedding", ".position_embeddings"),
    (".patch_embedding.", ".patch_embeddings.projection."),
    (".layers.", ".layer."),
    (".attn.proj.", ".attention.projection_layer."),
    (".attn.", ".attention."),
    (".norm1.", ".layernorm_before."),
    (".norm2.", ".layernorm_after."),
    (".ls", ".lambda_"),
)
"""Parts of the tensors' names in checkpoints with remote code -> in HF's format."""


class InternVLChatImageProcessor:
    """What vLLM does with the images of checkpoints with remote code, which bring no
    image processor of their own."""

    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD

    def __init__(self, hf_config: Any) -> None:
        self.hf_config = hf_config

    def __call__(
        self, images: Sequence[Image.Image], return_tensors: str
    ) -> dict[str, Tensor]:
        """`pixel_values`, `[P, 3, S, S]` float32: tiles, then the thumbnail.

        Args:
            images: one, in RGB.
            return_tensors: "pt", as HF's processors take it.
        """
        (image,) = images
        layout = image_layout(self.hf_config, image.height, image.width)
        side = partition_side(self.hf_config)
        partitions = []
        if layout.num_tiles:
            tile_rows, tile_cols = layout.tile_rows, layout.tile_cols
            canvas = resized(image, tile_rows * side, tile_cols * side)
            tiles = canvas.view(3, tile_rows, side, tile_cols, side)
            partitions.append(tiles.permute(1, 3, 0, 2, 4).flatten(0, 1))
        if layout.num_thumbnail_cells:
            partitions.append(resized(image, side, side)[None])
        mean, std = by_channel(self.image_mean), by_channel(self.image_std)
        return {"pixel_values": (torch.cat(partitions) - mean) / std}


def resized(image: Image.Image, height: int, width: int) -> Tensor:
    """`[3, height, width]` float32 in [0, 1]."""
    pixels = np.array(image.resize((width, height), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
