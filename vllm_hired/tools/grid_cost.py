"""Floating-point operations of Qwen-VL's towers and mergers."""

from typing import Any

from vllm_hired.layouts import Layout


def grid_flops(vision_config: Any, layout: Layout) -> tuple[int, int]:
    """(tower, mergers) on one image, whatever is kept of it.

    An image is encoded as two equal frames, of which a patch has `temporal_patch_size`.
    """
    unit = vision_config.spatial_merge_size**2
    patches = layout.num_cells * unit
    # In Qwen2-VL's config `hidden_size` is the LLM's.
    hidden = getattr(vision_config, "embed_dim", None) or vision_config.hidden_size
    pixels = vision_config.temporal_patch_size * vision_config.patch_size**2
    embedding = 2 * patches * pixels * getattr(vision_config, "in_channels", 3) * hidden
    if hasattr(vision_config, "mlp_ratio"):
        mlp = 2 * hidden * hidden * vision_config.mlp_ratio
    else:
        # Qwen2.5's is gated.
        matrices = 3 if hasattr(vision_config, "window_size") else 2
        mlp = matrices * hidden * vision_config.intermediate_size
    products = vision_config.depth * 2 * patches * (4 * hidden**2 + mlp)
    attention = 4 * hidden * sum(attended_pairs(vision_config, layout))

    merged = hidden * unit
    out = getattr(vision_config, "out_hidden_size", vision_config.hidden_size)
    mergers = 1 + len(getattr(vision_config, "deepstack_visual_indexes", ()))
    merger = 2 * layout.num_cells * (merged**2 + merged * out)
    return embedding + products + attention, mergers * merger


def attended_pairs(vision_config: Any, layout: Layout) -> list[int]:
    """Pairs of query and key in each layer."""
    unit = vision_config.spatial_merge_size**2
    everywhere = (layout.num_cells * unit) ** 2
    whole = getattr(vision_config, "fullatt_block_indexes", None)
    if whole is None:
        return [everywhere] * vision_config.depth
    cell = vision_config.patch_size * vision_config.spatial_merge_size
    side = vision_config.window_size // cell
    rows, cols = _parts(layout.rows, side), _parts(layout.cols, side)
    within = sum((row * col * unit) ** 2 for row in rows for col in cols)
    return [
        everywhere if layer in whole else within for layer in range(vision_config.depth)
    ]


def _parts(length: int, side: int) -> list[int]:
    """`length` in parts of `side`, the last one shorter."""
    return [min(side, length - start) for start in range(0, length, side)]
