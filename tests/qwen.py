"""Requests of Qwen-VL models, their front end, and how many tokens images keep."""

import math
from fractions import Fraction
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from packaging.version import Version
from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from tests.engine import chat_request, noise_image
from tests.front_end import FrontEnd
from vllm_hired.layouts.qwen_vl import grid_layout

MODEL_TYPES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe")

QWEN3_IS_HFS = Version(version("vllm")) >= Version("0.32")
"""Whether vLLM's own tower of Qwen3-VL gives what HF's gives."""

FRAMES_PER_SECOND = 2.0


def qwen_prompt(
    *media: tuple[int, ...] | str,
    budget: float | None = None,
    seed: int = 0,
    bare_videos: bool = False,
    **processor_kwargs: Any,
) -> dict[str, Any]:
    """A request of images, (width, height), videos, (width, height, frames), and text
    between them.

    Args:
        media: in the order of the prompt.
        budget: of the request.
        seed: of the pictures.
        bare_videos: whether videos come without what is known of them, as Qwen2-VL
            takes them.
        processor_kwargs: further `mm_processor_kwargs`.
    """
    data: dict[str, list[Any]] = {}
    parts = []
    for number, item in enumerate(media):
        if isinstance(item, str):
            parts.append(item)
            continue
        width, height, *frames = item
        kind = "video" if frames else "image"
        parts.append(f"<|vision_start|><|{kind}_pad|><|vision_end|>")
        pictures = [
            noise_image(width, height, seed + 10 * number + frame)
            for frame in range(*frames or [1])
        ]
        video = np.stack([np.asarray(picture) for picture in pictures])
        data.setdefault(kind, []).append(
            pictures[0]
            if not frames
            else video
            if bare_videos
            else (video, video_metadata(len(video)))
        )
    return chat_request("".join(parts), data, budget, processor_kwargs)


def video_metadata(frames: int) -> dict[str, Any]:
    """What vLLM's loader says of a video."""
    return {
        "fps": FRAMES_PER_SECOND,
        "duration": frames / FRAMES_PER_SECOND,
        "total_num_frames": frames,
        "frames_indices": [*range(frames)],
        "video_backend": "opencv",
        "do_sample_frames": False,
    }


def kept_count(rows: int, cols: int, rho: str, cap: int | None = None) -> int:
    """Tokens of an image of so many cells."""
    wanted = math.floor(Fraction(rho) * rows * cols)
    if cap is not None:
        wanted = min(wanted, cap)
    return min(max(wanted, rows, cols), rows * cols)


def qwen_kept_digest(model: Any) -> list[int]:
    """The cells that a worker keeps of one image, at a budget of 0.2."""
    generator = torch.Generator().manual_seed(1)
    vision = model.config.vision_config
    rows, cols = 14, 18
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "pixel_values": torch.rand((4 * rows * cols, values), generator=generator),
        "image_grid_thw": torch.tensor([[1, 2 * rows, 2 * cols]]),
    }
    layouts = [grid_layout(rows, cols)]
    _, (selection,) = model.select(inputs, layouts, [rows * cols // 5])
    indices: list[int] = selection.cells.tolist()
    return indices


class QwenFrontEnd(FrontEnd):
    """The multimodal processor of a Qwen-VL engine that is never started."""

    image_text = "<|vision_start|><|image_pad|><|vision_end|> and "

    @property
    def image_token(self) -> int:
        return int(self.hf_config.image_token_id)

    def grid(self, image: Image.Image, **limits: int) -> tuple[int, int]:
        """Rows and columns of cells, by HF's own rule; `limits` of a request."""
        vision = self.hf_config.vision_config
        side = vision.patch_size * vision.spatial_merge_size
        size = self.processor.info.get_image_processor().size
        height, width = smart_resize(
            image.height,
            image.width,
            side,
            limits.get("min_pixels", size["shortest_edge"]),
            limits.get("max_pixels", size["longest_edge"]),
        )
        return height // side, width // side

    def expected(
        self, image: Image.Image, budget: str, cap: int | None = None, **limits: int
    ) -> int:
        return kept_count(*self.grid(image, **limits), budget, cap)
