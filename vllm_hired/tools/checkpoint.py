"""What a checkpoint says of itself, without vLLM and without its weights."""

from pathlib import Path
from typing import Any

from vllm_hired.engine.models import MODELS
from vllm_hired.tools.config_file import read_config_file


class CheckpointError(ValueError):
    """A checkpoint that is missing, incomplete, or of another kind."""


def read_plain_config(model: str) -> Any:
    """What `read_config` gives, as far as counting and costs need it: from config.json
    alone where that says enough, which takes no time.

    Raises:
        CheckpointError
    """
    return _served(model, read_config_file(model) or read_config(model))


def read_config(model: str) -> Any:
    """The HF config of a directory or model id that `vllm_hired` serves.

    Raises:
        CheckpointError
    """
    # Not before it is needed: it takes longer than all the rest.
    from transformers import AutoConfig

    if Path(model).is_dir() and not (Path(model) / "config.json").is_file():
        raise CheckpointError(f"{model} is no checkpoint: it has no config.json")
    try:
        hf_config = AutoConfig.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"{model} is neither a directory with a config.json that transformers can "
            f"read nor the id of a model that can be found: {reason}"
        ) from error
    return _served(model, hf_config)


def _served(model: str, hf_config: Any) -> Any:
    architectures = getattr(hf_config, "architectures", None) or ["no architecture"]
    if architectures[0] not in MODELS:
        raise CheckpointError(
            f"{model} is {architectures[0]}; vllm_hired serves {', '.join(MODELS)}"
        )
    return hf_config
