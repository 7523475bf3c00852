"""Layouts of images whose processed inputs vLLM holds."""

from collections.abc import Mapping
from typing import Any

from vllm_hired.layouts import Layout, image_layout
from vllm_hired.layouts.internvl import tiles_layout
from vllm_hired.layouts.qwen_vl import grid_layout


def input_layouts(hf_config: Any, inputs: Mapping[str, Any]) -> list[Layout]:
    """Layout of each image of HF's processed `inputs`.

    From `image_grid_thw`, (frames, rows, columns) of patches, from `tile_grid`, (rows,
    columns) of tiles, or from `image_sizes`, (height, width), whichever the model has;
    all on the CPU.

    Raises:
        ImageSizeError: partitions that do not fit the grid of tiles.
    """
    grids = inputs.get("image_grid_thw")
    if grids is not None:
        merge = hf_config.vision_config.spatial_merge_size
        return [grid_layout(int(h) // merge, int(w) // merge) for _, h, w in grids]
    tiles = inputs.get("tile_grid")
    if tiles is not None:
        return [
            tiles_layout(hf_config, int(rows), int(cols), int(partitions))
            for (rows, cols), partitions in zip(
                tiles, inputs["image_num_patches"], strict=True
            )
        ]
    side = hf_config.vision_config.image_size
    sizes = inputs.get("image_sizes")
    if sizes is None:
        sizes = [(side, side)] * len(inputs["pixel_values"])
    return [image_layout(hf_config, int(h), int(w)) for h, w in sizes]


def item_layout(hf_config: Any, item: Mapping[str, Any]) -> Layout:
    """Layout of one image, of whose fields vLLM holds each with its `data`."""
    (layout,) = input_layouts(
        hf_config, {key: [field.data] for key, field in item.items()}
    )
    return layout
