"""LLaVA-NeXT: a thumbnail and a grid of tiles."""

from vllm.model_executor.models.llava import LlavaDummyInputsBuilder
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_hired.engine.models.partitions import HiredPartitionsModelMixin
from vllm_hired.engine.partitions import (
    HiredPartitionsInfoMixin,
    HiredPartitionsProcessorMixin,
)


class HiredLlavaNextProcessingInfo(HiredPartitionsInfoMixin, LlavaNextProcessingInfo):
    pass


class HiredLlavaNextMultiModalProcessor(
    HiredPartitionsProcessorMixin, LlavaNextMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredLlavaNextMultiModalProcessor,
    info=HiredLlavaNextProcessingInfo,
    dummy_inputs=LlavaDummyInputsBuilder,
)
class HiredLlavaNextForConditionalGeneration(
    HiredPartitionsModelMixin, LlavaNextForConditionalGeneration
):
    # vLLM caches what it learns of a class by this file's hash, not its base's.
    supports_multimodal = True
    supports_pp = True
    supports_lora = True
    supports_tower_connector_lora = True
