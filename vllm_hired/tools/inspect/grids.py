"""Towers that encode an image of any shape in one piece: Qwen-VL's."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoModel
from typing_extensions import override

from vllm_hired.layouts.qwen_vl import grid_layout, pixel_limits
from vllm_hired.tools.inspect.tower import InspectedTower, SeenImage, by_channel
from vllm_hired.towers.merged import merged_observation
from vllm_hired.towers.observation import QUANTITIES, Observation, Quantity


class GridTower(InspectedTower):
    weight_names = re.compile(r"(?:model\.)?visual\.(.+)")

    @override
    def make(self) -> nn.Module:
        with torch.device("meta"):
            # transformers finds no Qwen2-VL tower by its config alone.
            tower_class = type(AutoModel.from_config(self.hf_config).visual)
        tower: nn.Module = tower_class._from_config(self.hf_config.vision_config)
        return tower

    @override
    def attentions(self) -> Sequence[nn.Module]:
        return [block.attn for block in self.module.blocks]

    @override
    def see(self, image: Image.Image) -> SeenImage:
        """Resized to whole cells, within `pixel_limits(hf_config)`."""
        processor, limits = self.image_processor, pixel_limits(self.hf_config)
        size = {"shortest_edge": limits.least, "longest_edge": limits.most}
        inputs = processor([image], size=size, return_tensors="pt")
        patches, grid = inputs["pixel_values"].float(), inputs["image_grid_thw"]
        vision = self.hf_config.vision_config
        merge, side = vision.spatial_merge_size, vision.patch_size
        _, rows, cols = (int(length) for length in grid[0])
        layout = grid_layout(rows // merge, cols // merge)
        # Patches of a cell are neighbours in memory, and so are the frames of a patch,
        # which are the same in an image.
        cells = patches.view(layout.rows, layout.cols, merge, merge, 3, -1, side, side)
        picture = cells[..., 0, :, :].permute(4, 0, 2, 5, 1, 3, 6)
        mean, std = by_channel(processor.image_mean), by_channel(processor.image_std)
        return SeenImage(
            layout=layout,
            pictures=(picture.reshape(3, rows * side, cols * side) * std + mean)[None],
            inputs={"hidden_states": patches, "grid_thw": grid},
        )

    @override
    def features(self, output: Any) -> Tensor:
        """The rows that the LLM would get, those of deeper layers too."""
        deeper = getattr(output, "deepstack_features", None) or []
        return torch.cat((output.pooler_output, *deeper), dim=1)

    @override
    def observation(
        self, seen: SeenImage, features: Tensor, measured: Mapping[Quantity, Tensor]
    ) -> Observation:
        return merged_observation(
            features, measured, seen.layout, self.hf_config.vision_config, QUANTITIES
        )
