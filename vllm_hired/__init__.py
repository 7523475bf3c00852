"""HiRED visual-token dropping for vLLM. Importing this package imports no torch."""

__version__ = "0.1.0"

_LLAVA_NEXT = "vllm_hired.models.llava_next:HiredLlavaNextForConditionalGeneration"

MODELS = {
    "LlavaNextForConditionalGeneration": _LLAVA_NEXT,
    # Asked for by name, this one fails to load where the plugin is missing, instead
    # of serving the stock model.
    "HiredLlavaNextForConditionalGeneration": _LLAVA_NEXT,
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
