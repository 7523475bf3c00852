"""What the installed vLLM makes of this package, without starting an engine."""

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points

from vllm import ModelRegistry, envs
from vllm.config import VllmConfig
from vllm.multimodal.processing import BaseMultiModalProcessor, BaseProcessingInfo
from vllm.plugins import DEFAULT_PLUGINS_GROUP
from vllm.triton_utils import HAS_TRITON

from vllm_hired import register
from vllm_hired.engine.contract import contract_problem
from vllm_hired.engine.models import MODELS
from vllm_hired.engine.processing_info import HiredInputProcessingContext

PLUGIN = "hired"
"""Name of our entry point in vLLM's group of general plugins."""


def plugin_problem() -> str | None:
    """Why vLLM would serve stock models, or None. Registers the plugin."""
    names = {entry.name for entry in entry_points(group=DEFAULT_PLUGINS_GROUP)}
    if PLUGIN not in names:
        return (
            f"vLLM finds no entry point {PLUGIN!r} in {DEFAULT_PLUGINS_GROUP}: install "
            "vllm-hired into this environment"
        )
    if envs.VLLM_PLUGINS is not None and PLUGIN not in envs.VLLM_PLUGINS:
        return (
            f"VLLM_PLUGINS={','.join(envs.VLLM_PLUGINS)!r} leaves {PLUGIN!r} out: add "
            "it, or unset VLLM_PLUGINS"
        )
    try:
        register()
    except Exception as error:
        # vLLM logs it and serves the stock model.
        return f"register() raises {type(error).__name__}: {error}"
    missing = set(MODELS) - set(ModelRegistry.models)
    if missing:
        return f"vLLM did not register {', '.join(sorted(missing))}"
    return None


def model_runner() -> str:
    """Which of its model runners vLLM would use, and who decides it."""
    name = "V2" if VllmConfig().use_v2_model_runner else "V1"
    forced = envs.VLLM_USE_V2_MODEL_RUNNER
    reason = (
        f"vLLM's choice {'with' if HAS_TRITON else 'without'} Triton"
        if forced is None
        else f"VLLM_USE_V2_MODEL_RUNNER={int(forced)}"
    )
    return f"Model Runner {name} ({reason})"


def contract_problems() -> list[str]:
    """What the installed vLLM lacks of all that any served model relies on."""
    problems = (
        contract_problem(HiredInputProcessingContext, *_classes(path))
        for path in sorted({*MODELS.values()})
    )
    return [*dict.fromkeys(problem for problem in problems if problem)]


def _classes(path: str) -> Iterator[type]:
    """The model at `module:Class`, and its module's processors and processing infos
    that drop tokens."""
    module_name, _, model = path.partition(":")
    module = import_module(module_name)
    yield getattr(module, model)
    for value in vars(module).values():
        if (
            isinstance(value, type)
            and issubclass(value, BaseMultiModalProcessor | BaseProcessingInfo)
            and value.__module__ == module_name
            and not getattr(value, "is_stock_alone", False)
        ):
            yield value
