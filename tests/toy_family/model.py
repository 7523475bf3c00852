"""LLaVA-pair: how vLLM serves it with a budget."""

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from tests.toy_family.upstream import (
    LlavaPairForConditionalGeneration,
    LlavaPairMultiModalProcessor,
    LlavaPairProcessingInfo,
)
from vllm_hired.engine.models.base import HiredModelMixin
from vllm_hired.engine.processing import HiredMultiModalProcessorMixin
from vllm_hired.engine.processing_info import HiredProcessingInfoMixin


class HiredLlavaPairProcessingInfo(HiredProcessingInfoMixin, LlavaPairProcessingInfo):
    pass


class HiredLlavaPairMultiModalProcessor(
    HiredMultiModalProcessorMixin, LlavaPairMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredLlavaPairMultiModalProcessor,
    info=HiredLlavaPairProcessingInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class HiredLlavaPairForConditionalGeneration(
    HiredModelMixin, LlavaPairForConditionalGeneration
):
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
