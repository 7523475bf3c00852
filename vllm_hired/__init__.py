"""HiRED visual-token dropping for vLLM. Importing this package imports no torch."""

__version__ = "0.1.0"


def register() -> None:
    """Entry point `vllm.general_plugins: hired`; runs in every vLLM process.

    May run more than once.
    """
    from vllm import ModelRegistry

    from vllm_hired.engine.arguments import wrap_create_model_config
    from vllm_hired.engine.models import MODELS

    for architecture, model in MODELS.items():
        ModelRegistry.register_model(architecture, model)
    wrap_create_model_config()
