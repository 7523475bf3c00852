"""Requests of InternVL models, their front end, and how many tokens images keep."""

import json
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from random_checkpoints.internvl import IMAGE_TEXT
from tests.engine import chat_request, noise_image
from tests.front_end import FrontEnd
from vllm_hired.layouts.internvl import tiles_layout


def engine_options(model_type: str) -> dict[str, Any]:
    return {"trust_remote_code": True} if model_type == "internvl_chat" else {}


def internvl_prompt(
    model_type: str,
    *media: tuple[int, ...] | str,
    budget: float | None = None,
    seed: int = 0,
    **processor_kwargs: Any,
) -> dict[str, Any]:
    """A request of images, (width, height), videos, (width, height, frames), and text
    between them.

    Args:
        model_type: one of `tests.conftest.INTERNVL_FORMATS`.
        media: in the order of the prompt.
        budget: of the request.
        seed: of the pictures.
        processor_kwargs: further `mm_processor_kwargs`.
    """
    data: dict[str, list[Any]] = {}
    parts = []
    for number, item in enumerate(media):
        if isinstance(item, str):
            parts.append(item)
            continue
        width, height, *frames = item
        pictures = [
            noise_image(width, height, seed + 10 * number + frame)
            for frame in range(*frames or [1])
        ]
        parts.append("<video>" if frames else IMAGE_TEXT[model_type])
        if frames:
            video = np.stack([np.asarray(picture) for picture in pictures])
            data.setdefault("video", []).append(video)
        else:
            data.setdefault("image", []).extend(pictures)
    return chat_request("".join(parts), data, budget, processor_kwargs)


def kept_count(stock: int, rho: str, cap: int | None = None) -> int:
    """Tokens of an image that has `stock` without dropping."""
    kept = max(1, math.floor(Fraction(rho) * stock))
    return kept if cap is None else min(kept, cap)


def internvl_kept_digest(model: Any) -> list[int]:
    """The cells that a worker keeps of one image, at a budget of 0.2."""
    generator = torch.Generator().manual_seed(1)
    layout = tiles_layout(model.config, 2, 3, 7)
    side = model.patch_size * 2 * layout.rows
    pixels = torch.rand((7, 3, side, side), generator=generator)
    _, (selection,) = model.select([pixels], [layout], [layout.num_cells // 5])
    indices: list[int] = selection.cells.tolist()
    return indices


class InternVLFrontEnd(FrontEnd):
    """The multimodal processor of an InternVL engine that is never started."""

    def __init__(self, checkpoint: Path, **options: Any) -> None:
        super().__init__(checkpoint, **options)
        self.image_text = f"{IMAGE_TEXT[self.hf_config.model_type]} and "

    def placeholders(self, inputs: Any) -> list[int]:
        """Image tokens in the prompt, image by image, checked against the ranges and
        the markers around them."""
        ids = inputs["prompt_token_ids"]
        names = ("<img>", "<IMG_CONTEXT>", "</img>")
        tokenizer = self.processor.info.get_tokenizer()
        start, token, end = tokenizer.convert_tokens_to_ids(names)
        counts = []
        for r in inputs["mm_placeholders"]["image"]:
            own = ids[r.offset : r.offset + r.length]
            assert own == [start, *[token] * (r.length - 2), end]
            assert r.get_num_embeds() == r.length - 2
            counts.append(r.length - 2)
        assert sum(counts) == ids.count(token)
        return counts

    def stock(self, image: Image.Image, **kwargs: object) -> int:
        """Without dropping, as upstream has it."""
        (count,) = self.placeholders(self(image, budget=1.0, **kwargs))
        return count

    def expected(
        self,
        image: Image.Image,
        budget: str,
        cap: int | None = None,
        **kwargs: object,
    ) -> int:
        return kept_count(self.stock(image, **kwargs), budget, cap)


def front_end_of(folder: Path, **options: Any) -> InternVLFrontEnd:
    """With what the format needs."""
    config = json.loads((folder / "config.json").read_text())
    return InternVLFrontEnd(folder, **engine_options(config["model_type"]), **options)
