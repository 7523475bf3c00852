"""`--hf-overrides hired_budget=0.2`, and a clear word at start-up."""

import json
from functools import cache, wraps
from typing import Any

from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs

from vllm_hired import MODELS
from vllm_hired.config import HiredConfig, HiredConfigError, given_settings


@cache
def read_hired_overrides() -> None:
    """Wraps `EngineArgs.create_model_config`, once, to read overrides that are not
    JSON and to refuse settings that cannot be used before any process is started."""
    upstream = EngineArgs.create_model_config

    @wraps(upstream)
    def create_model_config(self: EngineArgs) -> ModelConfig:
        if isinstance(self.hf_overrides, str):
            self.hf_overrides = parse_overrides(self.hf_overrides)
        model_config = upstream(self)
        check_settings(model_config)
        return model_config

    EngineArgs.create_model_config = create_model_config


def parse_overrides(text: str) -> dict[str, Any]:
    """`key=value[,key=value]` with values as in JSON, or else plain text.

    Raises:
        ValueError: a part is not `key=value`.
    """
    overrides = {}
    for part in text.split(","):
        key, equals, value = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                f"--hf-overrides {text!r} is neither JSON nor key=value[,key=value], "
                "as in --hf-overrides hired_budget=0.2"
            )
        try:
            overrides[key.strip()] = json.loads(value)
        except json.JSONDecodeError:
            overrides[key.strip()] = value.strip()
    return overrides


def check_settings(model_config: ModelConfig) -> None:
    """Refuses `hired_*` settings that are wrong, or that nobody would read.

    Raises:
        HiredConfigError
    """
    given = given_settings(model_config.hf_config)
    if not given:
        return
    if model_config.architecture not in MODELS:
        key, value = next(iter(given.items()))
        raise HiredConfigError(
            key,
            value,
            f"vllm_hired serves {', '.join(MODELS)}, and vLLM serves this model as "
            f"{model_config.architecture} (model_impl={model_config.model_impl!r})",
        )
    HiredConfig.from_hf_config(model_config.hf_config)
