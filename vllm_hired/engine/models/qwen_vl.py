"""Qwen2-VL, Qwen2.5-VL, Qwen3-VL dense and MoE: one partition of any shape, M-RoPE."""

from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl_moe import (
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLMoeProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from vllm_hired.engine.grids import HiredGridInfoMixin, HiredGridProcessorMixin
from vllm_hired.engine.models.grids import HiredGridModelMixin


class HiredQwenVLMixin(HiredGridModelMixin):
    # vLLM caches what it learns of a class by this file's hash, not its base's.
    supports_multimodal = True
    supports_mrope = True
    supports_pp = True
    supports_lora = True
    supports_tower_connector_lora = True
    supports_encoder_tp_data = True
    supports_mm_device_do_normalize = True


class HiredQwen2VLProcessingInfo(HiredGridInfoMixin, Qwen2VLProcessingInfo):
    pass


class HiredQwen2VLMultiModalProcessor(
    HiredGridProcessorMixin, Qwen2VLMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredQwen2VLMultiModalProcessor,
    info=HiredQwen2VLProcessingInfo,
    dummy_inputs=Qwen2VLDummyInputsBuilder,
)
class HiredQwen2VLForConditionalGeneration(
    HiredQwenVLMixin, Qwen2VLForConditionalGeneration
):
    pass


class HiredQwen2_5_VLProcessingInfo(HiredGridInfoMixin, Qwen2_5_VLProcessingInfo):
    pass


class HiredQwen2_5_VLMultiModalProcessor(
    HiredGridProcessorMixin, Qwen2_5_VLMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredQwen2_5_VLMultiModalProcessor,
    info=HiredQwen2_5_VLProcessingInfo,
    dummy_inputs=Qwen2_5_VLDummyInputsBuilder,
)
class HiredQwen2_5_VLForConditionalGeneration(
    HiredQwenVLMixin, Qwen2_5_VLForConditionalGeneration
):
    supports_multimodal_pruning = True


class HiredQwen3VLProcessingInfo(HiredGridInfoMixin, Qwen3VLProcessingInfo):
    pass


class HiredQwen3VLMultiModalProcessor(
    HiredGridProcessorMixin, Qwen3VLMultiModalProcessor
):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredQwen3VLMultiModalProcessor,
    info=HiredQwen3VLProcessingInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class HiredQwen3VLForConditionalGeneration(
    HiredQwenVLMixin, Qwen3VLForConditionalGeneration
):
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs", "vidcom2")


class HiredQwen3VLMoeProcessingInfo(HiredGridInfoMixin, Qwen3VLMoeProcessingInfo):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    HiredQwen3VLMultiModalProcessor,
    info=HiredQwen3VLMoeProcessingInfo,
    dummy_inputs=Qwen3VLDummyInputsBuilder,
)
class HiredQwen3VLMoeForConditionalGeneration(
    HiredQwenVLMixin, Qwen3VLMoeForConditionalGeneration
):
    supports_multimodal_pruning = True
    supported_video_pruning_methods = ("evs", "vidcom2")
    is_3d_moe_weight = True
