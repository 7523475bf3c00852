"""`--hf-overrides hired_budget=0.2`, and a clear word at start-up."""

import json
from functools import cache, wraps
from typing import Any

from vllm.config import ModelConfig
from vllm.engine.arg_utils import EngineArgs
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.utils.torch_utils import set_default_torch_num_threads

from vllm_hired.config import (
    OBSTACLE,
    HiredConfig,
    given_settings,
    refuse_settings_among,
)
from vllm_hired.engine.contract import render_chat_problem
from vllm_hired.engine.models import MODELS
from vllm_hired.errors import HiredConfigError


@cache
def wrap_create_model_config() -> None:
    """Wraps `EngineArgs.create_model_config`, once, to read overrides that are not
    JSON and to refuse settings that cannot be used before any process is started."""
    upstream = EngineArgs.create_model_config

    @wraps(upstream)
    def create_model_config(self: EngineArgs) -> ModelConfig:
        if isinstance(self.hf_overrides, str):
            self.hf_overrides = parse_overrides(self.hf_overrides)
        refuse_settings_among(self.mm_processor_kwargs)
        model_config = upstream(self)
        check_engine(self, model_config)
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


def check_engine(args: EngineArgs, model_config: ModelConfig) -> None:
    """Refuses a budget that this engine, this model or this vLLM cannot honour.

    Here and not in the processing info, whose `ValueError` vLLM takes for "serves text
    only". Where no setting is given nothing is refused, and what stands against
    dropping is left on the HF config for requests that ask for a budget.

    Raises:
        HiredConfigError
    """
    hf_config = model_config.hf_config
    given = given_settings(hf_config)
    if model_config.architecture not in MODELS:
        for key, value in given.items():
            raise HiredConfigError(
                key,
                value,
                f"vllm_hired serves {', '.join(MODELS)}, and vLLM serves this model as "
                f"{model_config.architecture} (model_impl={model_config.model_impl!r})",
            )
        return
    refused = refused_option(args, model_config)
    if refused is None and model_config.uses_mrope:
        refused = refused_mrope_option(args)
    if refused is not None:
        setattr(hf_config, OBSTACLE, refused)
    if not given:
        return
    hired = HiredConfig.from_hf_config(hf_config)
    if hired.token_cap and args.enable_lora and args.enable_tower_connector_lora:
        raise HiredConfigError(
            "hired_token_cap",
            hired.token_cap,
            "not together with --enable-tower-connector-lora: images that stay whole "
            "take a second forward, which would get others' adapters",
        )
    if hired.has_details and (problem := render_chat_problem()) is not None:
        key = next(key for key in given if key.startswith("hired_detail_"))
        raise HiredConfigError(key, given[key], problem)
    if hired.adaptive:
        # Only then, since it reaches into vLLM's engine.
        from vllm_hired.engine.load import check_adaptive, wrap_async_llm

        check_adaptive(args)
        wrap_async_llm()
    if hired.drops_by_default:
        check_processor(model_config)


def refused_option(
    args: EngineArgs, model_config: ModelConfig
) -> tuple[str, object, str] | None:
    """An option under which a tower's hooks would not run, or would not see all images,
    as the arguments of a `HiredConfigError`."""
    for option in ("compile_mm_encoder", "cudagraph_mm_encoder"):
        value = getattr(args.compilation_config, option, False)
        if value:
            return (
                f"compilation_config.{option}",
                value,
                "not with a budget: attention is read by hooks on the vision tower, "
                "which a compiled or captured tower does not call",
            )
    # Of models that cannot encode so, vLLM has set it back.
    if model_config.get_multimodal_config().mm_encoder_tp_mode == "data":
        return (
            "mm_encoder_tp_mode",
            "data",
            'with a budget it must be "weights" for this model: with "data" a rank '
            "sees the attention of its own images alone",
        )
    return None


OTHER_POSITIONS = (
    "not with a budget for this model: a part of a batch would get the positions of "
    "another part"
)

DRAFTERS_OF_TEXT = ("ngram", "ngram_gpu", "suffix")
"""Methods of speculative decoding that never see an image's rows."""


def speculation(args: EngineArgs) -> dict[str, Any]:
    """`--speculative-config` with what `--spec-method` and the like say.

    vLLM joins them later, in `EngineArgs.create_speculative_config`.
    """
    short = {"method": args.spec_method, "model": args.spec_model}
    short["num_speculative_tokens"] = args.spec_tokens
    given = {key: value for key, value in short.items() if value is not None}
    return {**(args.speculative_config or {}), **given}


def refused_mrope_option(args: EngineArgs) -> tuple[str, object, str] | None:
    """An option under which kept tokens would lose their positions, as the arguments of
    a `HiredConfigError`."""
    drafter = speculation(args)
    refusals: tuple[tuple[str, object, bool, str], ...] = (
        (
            "pipeline_parallel_size",
            args.pipeline_parallel_size,
            args.pipeline_parallel_size > 1,
            "with a budget it must be 1 for this model: where kept tokens lie in their "
            "image is known to the first stage alone",
        ),
        (
            "enable_dbo",
            args.enable_dbo,
            bool(args.enable_dbo),
            OTHER_POSITIONS,
        ),
        ("ubatch_size", args.ubatch_size, args.ubatch_size > 1, OTHER_POSITIONS),
        (
            "video_pruning_rate",
            args.video_pruning_rate,
            bool(args.video_pruning_rate),
            "not with a budget: it puts positions of its own into the same rows",
        ),
        (
            "speculative_config",
            drafter,
            bool(drafter) and drafter.get("method") not in DRAFTERS_OF_TEXT,
            f"with a budget its method must be one of {', '.join(DRAFTERS_OF_TEXT)} "
            "for this model: other drafters take images' rows without the positions of "
            "kept tokens",
        ),
    )
    for option, value, is_refused, why in refusals:
        if is_refused:
            return option, value, why
    return None


def check_processor(model_config: ModelConfig) -> None:
    """Sends a dummy image through the processor that the engine will have.

    Raises:
        HiredConfigError: see `HiredMultiModalProcessorMixin.check_dropping`.
    """
    has_images = model_config.get_multimodal_config().get_limit_per_prompt("image") > 0
    if model_config.skip_tokenizer_init or not has_images:
        return
    # A team of threads would not survive the fork of an engine process.
    with set_default_torch_num_threads(1):
        MULTIMODAL_REGISTRY.create_processor(model_config).check_dropping()
