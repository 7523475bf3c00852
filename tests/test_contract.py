"""A vLLM that changed: each part of what we rely on, broken on purpose."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from vllm.engine.arg_utils import EngineArgs
from vllm.exceptions import VLLMValidationError
from vllm.model_executor.models.clip import CLIPAttention, CLIPEncoder
from vllm.model_executor.models.llava import (
    BaseLlavaMultiModalProcessor,
    BaseLlavaProcessingInfo,
)
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
)
from vllm.multimodal.processing import (
    BaseMultiModalProcessor,
    BaseProcessingInfo,
    InputProcessingContext,
    ProcessorInputs,
)

from tests.conftest import expect_refusal
from tests.engine import noise_image
from tests.front_end import FrontEnd
from vllm_hired.engine.budgets import BudgetedInputs
from vllm_hired.engine.contract import contract_problem
from vllm_hired.engine.models.llava import HiredLlavaForConditionalGeneration
from vllm_hired.engine.models.llava_next import (
    HiredLlavaNextForConditionalGeneration,
    HiredLlavaNextMultiModalProcessor,
    HiredLlavaNextProcessingInfo,
)
from vllm_hired.engine.processing_info import HiredInputProcessingContext

Break = Callable[[pytest.MonkeyPatch], None]
OURS = (
    HiredLlavaNextForConditionalGeneration,
    HiredLlavaForConditionalGeneration,
    HiredLlavaNextMultiModalProcessor,
    HiredLlavaNextProcessingInfo,
    HiredInputProcessingContext,
    BudgetedInputs,
)


def test_the_installed_vllm_fits() -> None:
    assert contract_problem(*OURS) is None


def remove(name: str, *classes: type) -> Break:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        assert any(name in vars(cls) for cls in classes)
        for cls in classes:
            if name in vars(cls):
                monkeypatch.delattr(cls, name)

    return apply


def put(cls: type, name: str, new: Any) -> Break:
    def apply(monkeypatch: pytest.MonkeyPatch) -> None:
        assert name in vars(cls)
        monkeypatch.setattr(cls, name, new)

    return apply


def renamed_parameters(self: Any, inputs: Any, hf_kwargs: Any) -> Mapping[str, Any]:
    raise AssertionError("only looked at")


def one_more(self: Any, inputs: Any, timing_ctx: Any, *, priority: int) -> Any:
    raise AssertionError("only looked at")


def unknown_attributes(self: Any, *args: Any, **kwargs: Any) -> None:
    self.attention = None


def with_a_parameter(self: Any, headless: bool) -> Any:
    raise AssertionError("only looked at")


BROKEN_SIGNATURES: dict[str, tuple[Break, str]] = {
    "a hook of the processor is gone": (
        remove("_finalize_hf_mm_data", BaseMultiModalProcessor),
        "overrides _finalize_hf_mm_data, which vLLM no longer has",
    ),
    "a hook has other parameters": (
        put(LlavaNextMultiModalProcessor, "_get_mm_fields_config", renamed_parameters),
        "_get_mm_fields_config .* with other parameters: hf_inputs, hf_kwargs",
    ),
    "a hook has one parameter more": (
        put(BaseMultiModalProcessor, "apply", one_more),
        "calls apply of .* with other parameters: priority",
    ),
    "the processing info plans otherwise": (
        remove(
            "get_mm_max_tokens_per_item", BaseProcessingInfo, BaseLlavaProcessingInfo
        ),
        "overrides get_mm_max_tokens_per_item",
    ),
    "the context merges otherwise": (
        remove("get_merged_mm_kwargs", InputProcessingContext),
        "overrides get_merged_mm_kwargs",
    ),
    "the model embeds otherwise": (
        put(
            LlavaNextForConditionalGeneration,
            "get_mm_lora_token_counts",
            lambda self, *, modality, kwargs, num_mm_embeds: None,
        ),
        "get_mm_lora_token_counts .* with other parameters: kwargs, mm_kwargs",
    ),
    "the model's features are elsewhere": (
        remove("_image_pixels_to_features", LlavaNextForConditionalGeneration),
        "_image_pixels_to_features is no longer in vLLM's llava_next",
    ),
    "the tower's attention is elsewhere": (
        put(CLIPAttention, "__init__", unknown_attributes),
        "CLIPAttention.__init__ knows no attribute attn",
    ),
    "the tower does not call it": (
        put(CLIPAttention, "forward", unknown_attributes),
        "CLIPAttention.forward knows no attribute attn",
    ),
    "the tower's layers are elsewhere": (
        put(CLIPEncoder, "__init__", unknown_attributes),
        "CLIPEncoder.__init__ knows no attribute layers",
    ),
    "the engine's arguments are made elsewhere": (
        put(EngineArgs, "create_model_config", with_a_parameter),
        "create_model_config.* takes parameters",
    ),
}


@pytest.mark.parametrize("name", BROKEN_SIGNATURES)
def test_a_changed_signature_is_found(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    break_it, said = BROKEN_SIGNATURES[name]
    break_it(monkeypatch)
    with pytest.raises(AssertionError, match=f"does not fit vllm_hired: .*{said}"):
        raise AssertionError(contract_problem(*OURS))


def stocks_placeholders(self: Any, **kwargs: Any) -> Any:
    return BaseLlavaMultiModalProcessor._get_prompt_updates(self, **kwargs)


def hashes_without_kwargs(
    self: ProcessorInputs, model_id: str, hash_algorithm: Any
) -> Any:
    return {"image": ["the same"] * len(self.mm_data_items["image"])}


BROKEN_BEHAVIOUR: dict[str, tuple[Break, str]] = {
    "kwargs left the hash": (
        put(ProcessorInputs, "get_mm_hashes", hashes_without_kwargs),
        "the hash of an image does not depend on its budget",
    ),
    "placeholders are counted elsewhere": (
        lambda monkeypatch: monkeypatch.setattr(
            HiredLlavaNextMultiModalProcessor,
            "_get_prompt_updates",
            stocks_placeholders,
        ),
        r"a dummy image gets \[\d+\] placeholders, not \d+",
    ),
    "a hook is gone": BROKEN_SIGNATURES["the model's features are elsewhere"],
}


@pytest.mark.parametrize("name", BROKEN_BEHAVIOUR)
def test_a_budget_is_refused_by_name(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """At start-up where it is a setting, with HTTP 400 where a request asks; and stock
    is served."""
    break_it, said = BROKEN_BEHAVIOUR[name]
    break_it(monkeypatch)
    with expect_refusal(match=f"hired_budget=0.2 .*does not fit vllm_hired: .*{said}"):
        FrontEnd(checkpoint, hf_overrides={"hired_budget": 0.2})
    front_end = FrontEnd(checkpoint)
    image = noise_image(100, 80)
    for _ in range(2):
        with pytest.raises(VLLMValidationError, match=said):
            front_end(image, budget=0.2)
    assert front_end.placeholders(front_end(image)) == [front_end.expected(image, "1")]
