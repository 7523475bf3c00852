"""HiRED visual-token dropping for vLLM. Importing this package imports no torch."""

__version__ = "0.1.0"

_SERVED = {
    "LlavaNextForConditionalGeneration": "vllm_hired.models.llava_next",
    "LlavaForConditionalGeneration": "vllm_hired.models.llava",
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


def register() -> None:
    """Entry point `vllm.general_plugins: hired`; runs in every vLLM process.

    May run more than once.
    """
    from vllm import ModelRegistry

    from vllm_hired.engine_args import read_hired_overrides

    for architecture, model in MODELS.items():
        ModelRegistry.register_model(architecture, model)
    read_hired_overrides()
