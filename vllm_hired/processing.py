"""vLLM's front end: request -> budget -> `K` placeholders, `num_kept` with the image.

Mixins over upstream's processing info and processor, the same for every architecture;
`vllm_hired.models` puts them together.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from PIL.Image import Image
from transformers import BatchFeature
from vllm.config.multimodal import MultiModalDummyOptions
from vllm.exceptions import VLLMValidationError
from vllm.inputs import MultiModalInput
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems
from vllm.multimodal.parse import ImageProcessorItems, ImageSize, MultiModalDataItems
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    InputProcessingContext,
    ProcessorInputs,
    PromptReplacement,
    PromptUpdate,
    TimingContext,
)

from vllm_hired.budget import kept_count
from vllm_hired.config import PREFIX, HiredConfig, HiredConfigError, read_budget
from vllm_hired.geometry import (
    Geometry,
    ImageSizeError,
    input_geometries,
    largest_image_sizes,
    model_geometry,
)
from vllm_hired.metrics import count_admitted_images, remember_stock_tokens


def _hired_keys(kwargs: Mapping[str, object]) -> list[str]:
    """Our keys among processor kwargs, also inside `images_kwargs` and the like."""
    scopes = [kwargs, *(v for v in kwargs.values() if isinstance(v, Mapping))]
    return [key for scope in scopes for key in scope if key.startswith(PREFIX)]


def _refuse_empty_images(mm_items: MultiModalDataItems) -> None:
    for items in mm_items.values():
        # An item is None where the client names a cached image by its uuid.
        for image in items.get_all() if isinstance(items, ImageProcessorItems) else ():
            shape = (
                image.size if isinstance(image, Image) else getattr(image, "shape", ())
            )
            if 0 in shape:
                raise ImageSizeError(f"an image of shape {tuple(shape)} is empty")


class HiredInputProcessingContext(InputProcessingContext):
    """Keeps our settings from HF's processor, which would be loaded anew for each
    distinct value and then ignore it."""

    def get_merged_mm_kwargs(
        self, kwargs: Mapping[str, object], *args: Any, **options: Any
    ) -> dict[str, Any]:
        kwargs = {k: v for k, v in kwargs.items() if not k.startswith(PREFIX)}
        merged: dict[str, Any] = super().get_merged_mm_kwargs(kwargs, *args, **options)
        return merged


class HiredProcessingInfoMixin(BaseProcessingInfo):
    """Counts follow `hired_max_budget` where vLLM plans memory.

    `get_num_image_tokens` stays upstream's: the count without dropping.
    """

    def __init__(self, ctx: InputProcessingContext) -> None:
        """Raises `HiredConfigError` for settings that cannot be used."""
        super().__init__(HiredInputProcessingContext(ctx.model_config, ctx.tokenizer))
        self.hired = HiredConfig.from_hf_config(self.get_hf_config())
        kwargs = self.ctx.get_mm_config().mm_processor_kwargs or {}
        if keys := _hired_keys(kwargs):
            raise HiredConfigError(
                "mm_processor_kwargs",
                kwargs,
                f"{keys[0]} of an engine is given by --hf-overrides, "
                "for instance --hf-overrides hired_budget=0.2",
            )

    def get_largest_images(self) -> Mapping[ImageSize, Geometry]:
        """Image sizes among which is one with most tokens, whatever the budget."""
        hf_config = self.get_hf_config()
        return {
            ImageSize(width, height): model_geometry(hf_config, height, width)
            for height, width in largest_image_sizes(hf_config)
        }

    def get_num_kept(self, geometry: Geometry, budget: Fraction) -> int:
        """`K` of an image."""
        return kept_count(geometry, budget, self.hired.token_cap)

    def _largest_image(self) -> tuple[int, int, ImageSize]:
        """(`K` at the largest budget, partitions, size); of equals, most partitions."""
        return max(
            (
                self.get_num_kept(geometry, self.hired.max_budget),
                geometry.num_tiles,
                size,
            )
            for size, geometry in self.get_largest_images().items()
        )

    def get_image_size_with_most_features(self) -> ImageSize:
        if not self.hired.is_active(self.hired.max_budget):
            return super().get_image_size_with_most_features()
        return self._largest_image()[-1]

    def get_mm_max_tokens_per_item(
        self, seq_len: int, mm_counts: Mapping[str, int]
    ) -> Mapping[str, int] | None:
        hired = self.hired
        if not hired.is_active(hired.max_budget):
            return super().get_mm_max_tokens_per_item(seq_len, mm_counts)
        tokens = self._largest_image()[0]
        stock = max(g.num_stock_tokens for g in self.get_largest_images().values())
        if hired.max_budget == 1:
            # Under a cap, an image with padding may stay whole where a larger one
            # has lost its newline tokens.
            tokens = min(stock, hired.token_cap or stock)
        if self.ctx.get_mm_config().enable_mm_embeds:
            # Ready-made embeddings pass through whole.
            tokens = max(tokens, stock)
        return {"image": tokens}


class HiredMultiModalProcessorMixin(BaseMultiModalProcessor[HiredProcessingInfoMixin]):
    """Resolves the budget once, in `apply`; all that follows reads the outcome.

    While dropping is active the processor kwargs carry `HiredConfig.cache_key`, so
    that vLLM's hash of an image tells budgets and settings apart; while it is not,
    they carry nothing of ours and every hash equals stock vLLM's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        count_admitted_images()

    def apply(
        self, inputs: ProcessorInputs, timing_ctx: TimingContext
    ) -> MultiModalInput:
        """A `hired_budget` or an image that cannot be used is a `VLLMValidationError`,
        HTTP 400."""
        kwargs = dict(inputs.hf_processor_mm_kwargs)
        requested = kwargs.pop("hired_budget", None)
        if keys := _hired_keys(kwargs):
            raise VLLMValidationError(
                f"{keys[0]} is not a setting of a request: mm_processor_kwargs takes "
                'hired_budget alone, as in {"hired_budget": 0.2}',
                parameter=keys[0],
            )
        try:
            budget = self.info.hired.request_budget(requested)
            _refuse_empty_images(inputs.mm_data_items)
            is_active = self.info.hired.is_active(budget)
            if is_active:
                kwargs |= self.info.hired.cache_key(budget)
            inputs = replace(inputs, hf_processor_mm_kwargs=kwargs)
            result = super().apply(inputs, timing_ctx)
        except HiredConfigError as error:
            raise VLLMValidationError(
                str(error), parameter=error.setting, value=error.value
            ) from error
        except ImageSizeError as error:
            raise VLLMValidationError(str(error), parameter="image") from error
        remember_stock_tokens(
            self._stock_tokens(inputs.mm_data_items, result, is_active)
        )
        return result

    def _stock_tokens(
        self, mm_items: MultiModalDataItems, result: MultiModalInput, is_active: bool
    ) -> Iterator[tuple[str, int]]:
        """(vLLM's hash, visual tokens without dropping) of each image that was sent."""
        for modality, items in mm_items.items():
            hashes = result["mm_hashes"][modality]
            ranges = result["mm_placeholders"][modality]
            for i, (mm_hash, kept) in enumerate(zip(hashes, ranges, strict=True)):
                if not (is_active and isinstance(items, ImageProcessorItems)):
                    yield mm_hash, kept.get_num_embeds()
                elif items.get(i) is not None:  # not named by its uuid alone
                    size = items.get_image_size(i)
                    yield (
                        mm_hash,
                        self.info.get_num_image_tokens(
                            image_width=size.width, image_height=size.height
                        ),
                    )

    def get_dummy_inputs(
        self,
        seq_len: int,
        mm_counts: Mapping[str, int],
        mm_options: MultiModalDummyOptions,
    ) -> ProcessorInputs:
        """Asks for `hired_max_budget`, the most that a request can."""
        inputs = super().get_dummy_inputs(seq_len, mm_counts, mm_options)
        budget = {"hired_budget": float(self.info.hired.max_budget)}
        return replace(inputs, hf_processor_mm_kwargs=budget)

    def _postprocess_hf_mm_data(
        self,
        mm_inputs: Mapping[str, object],
        hf_processor_mm_kwargs: Mapping[str, object],
        processed_data: BatchFeature,
    ) -> BatchFeature:
        """Counts `num_kept`, once for placeholders and worker alike, and trims each
        image to its own tiles: HF pads to the largest tile count in the prompt."""
        data = super()._postprocess_hf_mm_data(
            mm_inputs, hf_processor_mm_kwargs, processed_data
        )
        if "hired_budget" not in hf_processor_mm_kwargs or "pixel_values" not in data:
            return data
        budget = read_budget(hf_processor_mm_kwargs["hired_budget"])
        hf_config = self.info.get_hf_config()
        geometries = input_geometries(hf_config, data)
        side = hf_config.vision_config.image_size
        trimmed = []
        for padded, geometry in zip(data["pixel_values"], geometries, strict=True):
            shape = (geometry.num_partitions, 3, side, side)
            # Without tiles there is no dimension of partitions either.
            pixels = padded[: shape[0]] if padded.ndim == len(shape) else padded
            if pixels.shape != shape[-pixels.ndim :]:
                raise VLLMValidationError(
                    f"an image became {tuple(pixels.shape)}, not the "
                    f"{geometry.num_partitions} tiles of {side}x{side} pixels that "
                    "this model encodes; leave its size, crop_size and "
                    "image_grid_pinpoints out of mm_processor_kwargs",
                    parameter="mm_processor_kwargs",
                )
            trimmed.append(pixels)
        data["pixel_values"] = trimmed
        data["num_kept"] = torch.tensor(
            [self.info.get_num_kept(geometry, budget) for geometry in geometries]
        )
        return data

    def _get_mm_fields_config(
        self,
        hf_inputs: BatchFeature,
        hf_processor_mm_kwargs: Mapping[str, object],
    ) -> Mapping[str, MultiModalFieldConfig]:
        """Adds `num_kept`, which the worker reads on the CPU."""
        fields = super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs)
        num_kept = MultiModalFieldConfig.batched("image", keep_on_cpu=True)
        return {**fields, "num_kept": num_kept}

    def _get_prompt_updates(
        self,
        mm_items: MultiModalDataItems,
        hf_processor_mm_kwargs: Mapping[str, object],
        out_mm_kwargs: MultiModalKwargsItems,
    ) -> Sequence[PromptUpdate]:
        """`num_kept` placeholders for an image that carries it."""
        updates = super()._get_prompt_updates(
            mm_items=mm_items,
            hf_processor_mm_kwargs=hf_processor_mm_kwargs,
            out_mm_kwargs=out_mm_kwargs,
        )

        def with_num_kept(update: PromptReplacement) -> PromptReplacement:
            def replacement(item_idx: int) -> list[int]:
                # Upstream fills out_mm_kwargs only after it has called this method.
                num_kept = out_mm_kwargs["image"][item_idx].get("num_kept")
                if num_kept is None:
                    return update.replacement(item_idx)
                (image_token_id,) = update.target
                return [image_token_id] * int(num_kept.data)

            return replace(update, replacement=replacement)

        return [with_num_kept(update) for update in updates]
