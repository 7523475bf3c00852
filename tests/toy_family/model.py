"""LLaVA-pair: how vLLM serves it with a budget."""

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.multimodal import MULTIMODAL_REGISTRY

from tests.toy_family.upstream import (
    LlavaPairForConditionalGeneration,
    LlavaPairMultiModalProcessor,
    LlavaPairProcessingInfo,
)
from vllm_hired.engine.models.partitions import HiredPartitionsModelMixin
from vllm_hired.engine.partitions import (
    HiredPartitionsInfoMixin,
    HiredPartitionsProcessorMixin,
)


class HiredLlavaPairProcessingInfo(HiredPartitionsInfoMixin, LlavaPairProcessingInfo):
    pass


class HiredLlavaPairMultiModalProcessor(
    HiredPartitionsProcessorMixin, LlavaPairMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredLlavaPairMultiModalProcessor,
    info=HiredLlavaPairProcessingInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class HiredLlavaPairForConditionalGeneration(
    HiredPartitionsModelMixin, LlavaPairForConditionalGeneration
):
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
