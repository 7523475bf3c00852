"""What the selection methods kept before the package was rearranged, case by case.

`python -m tests.recorded` writes `tests/recorded.json` anew, which is right only where
`ALGORITHM_VERSION` is raised as well.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from tests.observations import attended
from vllm_hired.budget import kept_count
from vllm_hired.config import HiredConfig
from vllm_hired.layouts import image_layout
from vllm_hired.selectors import make_selector

FILE = Path(__file__).with_name("recorded.json")
SELECTORS = ("hired", "even", "thumbnail", "uniform", "random")
SIZES = (
    *((672, 672), (336, 336), (1008, 400), (300, 1400), (600, 401), (171, 152)),
    *((2560, 1669), (17, 40), (488, 183), (700, 500), (1, 1), (333, 296)),
)
"""(width, height) in pixels."""

PINPOINTS = ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
SHAPES = {"llava_next": (336, 14), "small": (56, 7), "llava": (336, 14)}
"""Tile and patch side in pixels; "llava" has no tiles."""


@dataclass(frozen=True)
class Case:
    shape: str
    width: int
    height: int
    budget: str
    token_cap: int | None
    alpha: str
    selector: str

    def hf_config(self) -> Any:
        """As much of a model's HF config as counting needs."""
        tile, patch = SHAPES[self.shape]
        settings: dict[str, Any] = {
            "hired_budget": float(self.budget),
            "hired_token_cap": self.token_cap,
            "hired_alpha": float(self.alpha),
            "hired_selector": self.selector,
        }
        if self.shape != "llava":
            settings["image_grid_pinpoints"] = [
                [rows * tile, cols * tile] for rows, cols in PINPOINTS
            ]
        return SimpleNamespace(
            model_type="llava" if self.shape == "llava" else "llava_next",
            vision_config=SimpleNamespace(
                model_type="clip_vision_model",
                image_size=tile,
                patch_size=patch,
                num_hidden_layers=24,
            ),
            vision_feature_layer=-2,
            vision_feature_select_strategy="default",
            **settings,
        )


def cases() -> Iterator[Case]:
    for shape in SHAPES:
        for width, height in SIZES[:3] if shape == "llava" else SIZES:
            for selector in SELECTORS:
                for budget, cap, alpha in (
                    *(("0.2", None, "0.5"), ("0.05", None, "0.5")),
                    *(("0.4", None, "0.3"), ("0.75", None, "0.9"), ("1", 150, "0.5")),
                ):
                    yield Case(shape, width, height, budget, cap, alpha, selector)


def scores(partitions: int, patches: int, seed: int) -> Tensor:
    """`[partitions, patches]` float32, peaked as attention is, with ties; the same
    bits on every machine."""
    places = torch.arange(partitions * patches) + 1
    # Knuth's linear congruential generator for 64 bits; the arithmetic wraps.
    state = places * 6364136223846793005 + (seed + 1) * 1442695040888963407
    state = (state ^ (state >> 29)) * 6364136223846793005
    levels = (state >> 40 & 0xFFF).double() / 0xFFF
    return (levels**8).float().view(partitions, patches)


def digest(values: list[int]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def answer(case: Case) -> dict[str, Any]:
    """By the package as it is now."""
    hf_config = case.hf_config()
    hired = HiredConfig.from_hf_config(hf_config)
    layout = image_layout(hf_config, case.height, case.width)
    count = kept_count(layout, hired.budget, hired.token_cap).tokens
    key = hired.cache_key(Fraction(case.budget))
    result: dict[str, Any] = {"count": count, "cache_key": key}
    shape = (layout.num_partitions, layout.cells_per_partition)
    init, final = scores(*shape, seed=0), scores(*shape, seed=1)
    if count <= layout.num_selectable:
        selector = make_selector(case.selector)
        kept = selector.select(attended(init, final), layout, count, hired.alpha)
        result["kept"] = digest(kept.cells.tolist())
    return result


def main() -> None:
    rows = [{"case": vars(case), **answer(case)} for case in cases()]
    lines = ",\n".join(json.dumps(row) for row in rows)
    FILE.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
