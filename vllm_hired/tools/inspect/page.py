"""The page: one HTML file that shows what was chosen here; its script only draws."""

import base64
import io
import json
import zlib
from collections.abc import Sequence
from fractions import Fraction
from importlib.resources import files
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from vllm_hired.budget import kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.layouts import Layout
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.tools.inspect.choices import ALPHAS, BUDGETS, all_choices
from vllm_hired.tools.inspect.inspection import Inspection

SCRIPTS = ("data.js", "maps.js", "controls.js")
"""In the order in which one needs the other."""


def render_page(inspection: Inspection, hired: Sequence[HiredConfig]) -> str:
    """One HTML file that needs no network.

    Args:
        inspection: of the image.
        hired: settings that differ in the budget alone; the page starts at the first.

    Raises:
        HiredConfigError: their selector cannot be used.
    """
    folder = files("vllm_hired.tools.inspect").joinpath("page_files")

    def read(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    # "</" would end the script element that holds the data.
    data = json.dumps(page_data(inspection, hired)).replace("</", "<\\/")
    return (
        read("page.html")
        .replace("__STYLE__", read("page.css"))
        .replace("__SCRIPT__", "\n".join(map(read, SCRIPTS)))
        # Last, so that nothing in it is taken for a place to fill.
        .replace("__HIRED_DATA__", data)
    )


def page_data(inspection: Inspection, hired: Sequence[HiredConfig]) -> dict[str, Any]:
    """What the page's script reads."""
    layout, observation, start = inspection.layout, inspection.observation, hired[0]
    budgets = sorted({*BUDGETS, *(config.budget for config in hired)})
    alphas = sorted({*ALPHAS, start.alpha})
    choices, left_out = all_choices(inspection, start, budgets, alphas)
    valid = index_tables(layout, torch.device("cpu")).valid
    names = "rows", "cols", "tile_rows", "tile_cols", "top", "left", "first_tile"
    is_one_piece = layout.num_partitions == 1
    whole = 0 if is_one_piece else layout.thumbnail_partition
    height, width = inspection.partitions.shape[-2:]
    return {
        "format": 3,
        "name": inspection.name,
        "model": inspection.model,
        "width": inspection.width,
        "height": inspection.height,
        "whole": None if whole is None else as_jpeg(inspection.partitions[whole]),
        "whole_partition": whole,
        "canvas": None if is_one_piece else as_jpeg(canvas(inspection)),
        "layout": {name: getattr(layout, name) for name in names},
        "cell": {"height": height // layout.rows, "width": width // layout.cols},
        "newlines": layout.num_separators,
        "partitions": layout.partition_names,
        "capacities": layout.partition_capacities,
        "valid": packed(valid.flatten()),
        "stock_tokens": layout.num_stock_tokens,
        "attention": inspection.attention,
        "layers": {"init": start.init_layer, "final": start.final_layer},
        "heat": {
            "init": as_base64(observation.init_attention),
            "final": as_base64(observation.final_attention),
        },
        "token_cap": start.token_cap,
        "budgets": [budget_data(layout, budget, start.token_cap) for budget in budgets],
        "alphas": [percent(alpha) for alpha in alphas],
        "methods": [vars(method) | {"kept": packed(method.kept)} for method in choices],
        "left_out": left_out,
        "start": {
            "selector": start.selector,
            "budget": budgets.index(start.budget),
            "alpha": alphas.index(start.alpha),
        },
    }


def budget_data(
    layout: Layout, budget: Fraction, token_cap: int | None
) -> dict[str, Any]:
    """How many tokens a budget keeps, and what to know of them."""
    kept = kept_count(layout, budget, token_cap)
    newlines = layout.num_separators
    notes = []
    if kept.is_undropped:
        included = f", its {newlines} newline tokens included" if newlines else ""
        notes.append(f"Nothing is dropped: vLLM's stock path{included}.")
    else:
        if newlines:
            notes.append(f"Dropping leaves out the {newlines} newline tokens too.")
        if kept.tokens < kept_count(layout, budget, None).tokens:
            notes.append(f"Held down by the token cap of {token_cap:,}.")
        elif kept.tokens == layout.num_selectable:
            notes.append("Every cell that is not padding is kept.")
        elif kept.tokens == layout.least_kept > 1:
            notes.append(
                f"An image of this shape keeps at least {layout.least_kept:,}."
            )
    return {
        "percent": percent(budget),
        "tokens": kept.tokens,
        "note": " ".join(notes),
    }


def percent(fraction: Fraction) -> str:
    return f"{float(100 * fraction):g}"


def packed(flags: Tensor) -> str:
    """`[..., n]` bool as bits, the first one highest, each row from a byte of its own;
    deflated."""
    bits: bytes = np.packbits(flags.numpy(), axis=-1).tobytes()
    return base64.b64encode(zlib.compress(bits, 9)).decode()


def as_base64(values: Tensor) -> str:
    """float32, little-endian, NaN as 0, as selection reads them."""
    values = values.float().nan_to_num(nan=0.0).contiguous()
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def canvas(inspection: Inspection) -> Tensor:
    """`[3, R * H, C * W]`: the tiles in their grid."""
    layout, (_, *size) = inspection.layout, inspection.partitions.shape
    tiles = inspection.partitions[layout.first_tile :][: layout.num_tiles]
    grid = tiles.view(layout.tile_rows, layout.tile_cols, *size)
    return torch.cat([torch.cat([*row], dim=-1) for row in grid], dim=-2)


def as_jpeg(pixels: Tensor) -> str:
    """`[3, H, W]` in [0, 1] as a data URL."""
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
