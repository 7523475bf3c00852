"""One file an architecture, named as vLLM names it, and one row here."""

_SERVED = {
    "LlavaNextForConditionalGeneration": "vllm_hired.engine.models.llava_next",
    "LlavaForConditionalGeneration": "vllm_hired.engine.models.llava",
    "Qwen2VLForConditionalGeneration": "vllm_hired.engine.models.qwen_vl",
    "Qwen2_5_VLForConditionalGeneration": "vllm_hired.engine.models.qwen_vl",
    "Qwen3VLForConditionalGeneration": "vllm_hired.engine.models.qwen_vl",
    "Qwen3VLMoeForConditionalGeneration": "vllm_hired.engine.models.qwen_vl",
    "InternVLChatModel": "vllm_hired.engine.models.internvl",
    "InternVLForConditionalGeneration": "vllm_hired.engine.models.internvl",
}
"""Upstream's architecture -> the module of our class, called `Hired...` after it."""

# Under both names: asked for by ours, a model fails to load where the plugin is
# missing, instead of being served as stock.
MODELS = {
    name: f"{module}:Hired{upstream}"
    for upstream, module in _SERVED.items()
    for name in (upstream, f"Hired{upstream}")
}
"""Architecture in a checkpoint's config -> `module:Class`, imported when served."""
