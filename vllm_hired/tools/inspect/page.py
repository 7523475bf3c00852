"""The page that selects again in the browser, from scores that it carries."""

import base64
import io
import json
from fractions import Fraction
from importlib.resources import files
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from vllm_hired.config import HiredConfig
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.base import ScoreSelector
from vllm_hired.tools.inspect.tower import Inspection

SCRIPTS = ("selection.js", "maps.js", "controls.js")
"""In the order in which one needs the other."""


def render_page(inspection: Inspection, hired: HiredConfig) -> str:
    """One HTML file that needs no network; `hired` is where its controls start."""
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


def page_data(inspection: Inspection, hired: HiredConfig) -> dict[str, Any]:
    """What the page's script reads. Budget and alpha are whole percents there."""
    layout, observation = inspection.layout, inspection.observation
    names = (
        "rows", "cols", "tile_rows", "tile_cols", "top", "left", "height", "width"
    )  # fmt: skip
    return {
        "format": 1,
        "name": inspection.name,
        "model": inspection.model,
        "width": inspection.width,
        "height": inspection.height,
        "thumbnail": as_jpeg(inspection.partitions[0]),
        "canvas": as_jpeg(canvas(inspection)) if layout.num_tiles else None,
        "layout": {name: getattr(layout, name) for name in names},
        "partitions": layout.partition_names,
        "layers": {"init": hired.init_layer, "final": hired.final_layer},
        "heat": {
            "init": as_base64(observation.init_attention),
            "final": as_base64(observation.final_attention),
        },
        "token_cap": hired.token_cap,
        "selectors": [
            selector_data(name, selector, inspection)
            for name, selector in ((name, make_selector(name)) for name in SELECTORS)
            if isinstance(selector, ScoreSelector)
        ],
        "start": {
            "selector": hired.selector,
            "budget": max(1, round(100 * hired.budget)),
            "alpha": round(100 * hired.alpha),
        },
    }


def selector_data(
    name: str, selector: ScoreSelector, inspection: Inspection
) -> dict[str, Any]:
    """What a method gives to the common part of all: weights, scores, its share of the
    thumbnail where `hired_alpha` is not it."""
    weights = selector.tile_weights(inspection.observation, inspection.layout)
    share = selector.thumbnail_share(inspection.layout, Fraction(1))
    return {
        "name": name,
        "about": (type(selector).__doc__ or "").partition("\n")[0],
        # As text: they may need more than a JavaScript number's 53 bits.
        "weights": [str(weight) for weight in weights.tolist()],
        "scores": as_base64(
            selector.token_scores(inspection.observation, inspection.layout)
        ),
        "share": None if selector.uses_alpha else share.as_integer_ratio(),
    }


def as_base64(values: Tensor) -> str:
    """float32, little-endian, NaN as 0, as selection reads them."""
    values = values.float().nan_to_num(nan=0.0).contiguous()
    return base64.b64encode(values.numpy().astype("<f4").tobytes()).decode()


def canvas(inspection: Inspection) -> Tensor:
    """`[3, R * H, C * W]`: the tiles in their grid."""
    layout, (_, *size) = inspection.layout, inspection.partitions.shape
    grid = inspection.partitions[1:].view(layout.tile_rows, layout.tile_cols, *size)
    return torch.cat([torch.cat([*row], dim=-1) for row in grid], dim=-2)


def as_jpeg(pixels: Tensor) -> str:
    """`[3, H, W]` in [0, 1] as a data URL."""
    array = (pixels * 255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "JPEG", quality=88)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()
