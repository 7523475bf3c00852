"""vLLM's front end without an engine behind it."""

import base64
from pathlib import Path
from typing import Any

from PIL import Image
from vllm.engine.arg_utils import AsyncEngineArgs, EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.multimodal.media import MediaConnector

from tests import oracle
from tests.reference import layout_of


def served(path: Path) -> Any:
    """The image in a file as a chat request's `image_url` brings it to the server."""
    data = base64.b64encode(path.read_bytes()).decode()
    return MediaConnector().fetch_image(f"data:image/any;base64,{data}")


class FrontEnd:
    """The multimodal processor of an engine that is never started.

    Attributes:
        engine_args: those of the offline `LLM`.
        image_text: what stands for an image in a prompt.
    """

    engine_args: type[EngineArgs] = EngineArgs
    image_text = "<image> and "

    def __init__(self, checkpoint: Path, **options: Any) -> None:
        config = self.engine_args(
            str(checkpoint), max_model_len=1024, **options
        ).create_model_config()
        self.processor: Any = MULTIMODAL_REGISTRY.create_processor(config)
        self.hf_config: Any = config.hf_config
        self.config = config

    def __call__(
        self,
        *images: Any,
        budget: object = None,
        cache: MultiModalProcessorOnlyCache | None = None,
        **kwargs: object,
    ) -> Any:
        if budget is not None:
            kwargs["hired_budget"] = budget
        return self.processor(
            self.image_text * len(images),
            self.processor.info.parse_mm_data({"image": list(images)}),
            hf_processor_mm_kwargs=kwargs,
            cache=cache,
        )

    @property
    def image_token(self) -> int:
        return int(self.hf_config.image_token_index)

    def placeholders(self, inputs: Any) -> list[int]:
        """Image tokens in the prompt, image by image, checked against the ranges."""
        ranges = inputs["mm_placeholders"]["image"]
        ids = inputs["prompt_token_ids"]
        token = self.image_token
        assert sum(r.length for r in ranges) == ids.count(token)
        for r in ranges:
            assert set(ids[r.offset : r.offset + r.length]) == {token}
        return [r.length for r in ranges]

    def expected(self, image: Image.Image, budget: str, cap: int | None = None) -> int:
        layout = layout_of(self.hf_config, image)
        return oracle.count(layout, budget, cap)


class ServingFrontEnd(FrontEnd):
    """That of `vllm serve`."""

    engine_args = AsyncEngineArgs


def num_kept(inputs: Any) -> list[int]:
    return [int(item["num_kept"].data) for item in inputs["mm_kwargs"]["image"]]
