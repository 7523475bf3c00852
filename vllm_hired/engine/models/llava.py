"""LLaVA-1.5, ShareGPT4V: one partition. With a Pixtral tower: the stock path alone."""

from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
    PixtralHFMultiModalProcessor,
    PixtralHFProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import InputProcessingContext

from vllm_hired.engine.models.partitions import HiredPartitionsModelMixin
from vllm_hired.engine.partitions import (
    HiredPartitionsInfoMixin,
    HiredPartitionsProcessorMixin,
)


class HiredLlavaProcessingInfo(HiredPartitionsInfoMixin, LlavaProcessingInfo):
    pass


class HiredLlavaMultiModalProcessor(
    HiredPartitionsProcessorMixin, LlavaMultiModalProcessor
):
    pass


class HiredPixtralHFProcessingInfo(HiredPartitionsInfoMixin, PixtralHFProcessingInfo):
    is_stock_alone = True


class HiredPixtralHFMultiModalProcessor(
    HiredPartitionsProcessorMixin, PixtralHFMultiModalProcessor
):
    """Refuses a request's budget, as the tower has no [CLS]."""

    is_stock_alone = True


def _make_info(ctx: InputProcessingContext) -> HiredPartitionsInfoMixin:
    if ctx.get_hf_config().vision_config.model_type == "pixtral":
        return HiredPixtralHFProcessingInfo(ctx)
    return HiredLlavaProcessingInfo(ctx)


def _make_processor(
    info: HiredPartitionsInfoMixin,
    dummy_inputs: LlavaDummyInputsBuilder,
) -> HiredPartitionsProcessorMixin:
    if isinstance(info, HiredPixtralHFProcessingInfo):
        return HiredPixtralHFMultiModalProcessor(info, dummy_inputs)
    return HiredLlavaMultiModalProcessor(info, dummy_inputs)


@MULTIMODAL_REGISTRY.register_processor(
    _make_processor, info=_make_info, dummy_inputs=LlavaDummyInputsBuilder
)
class HiredLlavaForConditionalGeneration(
    HiredPartitionsModelMixin, LlavaForConditionalGeneration
):
    # vLLM caches what it learns of a class by this file's hash, not its base's.
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
    supports_tower_connector_lora = True
