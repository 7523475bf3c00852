"""LoRA adapters on InternVL's LLM and tower: what merged weights would give."""

from pathlib import Path

import pytest
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tests.conftest import MakeEngine, WriteInternVLCheckpoint
from tests.e2e.test_internvl import BUDGETS, options_of
from tests.e2e.test_lora import RANK, write_adapter_and_merged
from tests.internvl import internvl_prompt

pytestmark = pytest.mark.matrix

MAX_TOKENS = 12
LLM_NAMES = (
    "language_model.model.layers.0.self_attn.q_proj",
    "language_model.model.layers.1.mlp.up_proj",
)
TOWER_NAMES = (
    "vision_model.encoder.layers.0.attn.qkv",
    "vision_model.encoder.layers.2.attn.qkv",
    "vision_model.encoder.layers.1.mlp.fc2",
)
"""vLLM adapts no tower in HF's format, and no projector in either."""


def generate(
    llm: LLM, model_type: str, lora: LoRARequest | None = None
) -> list[list[int]]:
    outputs = llm.generate(
        [
            internvl_prompt(model_type, (252, 168), seed=1),
            internvl_prompt(model_type, (84, 84), "x", (84, 300), budget=0.1, seed=2),
            internvl_prompt(model_type, "no image"),
        ],
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True),
        lora_request=lora,
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize(
    ("model_type", "on_tower"),
    [("internvl", False), ("internvl_chat", False), ("internvl_chat", True)],
)
def test_equals_merged_weights(
    make_internvl: WriteInternVLCheckpoint,
    make_engine: MakeEngine,
    tmp_path: Path,
    model_type: str,
    on_tower: bool,
) -> None:
    checkpoint = make_internvl(model_type)
    names = LLM_NAMES + (TOWER_NAMES if on_tower else ())
    adapter, merged = write_adapter_and_merged(checkpoint, tmp_path, names)
    options = {**BUDGETS, **options_of(model_type)}
    expected = generate(make_engine(merged, **options), model_type)
    plain = generate(make_engine(checkpoint, **options), model_type)
    assert expected != plain
    llm = make_engine(
        checkpoint,
        enable_lora=True,
        enable_tower_connector_lora=on_tower,
        max_lora_rank=RANK,
        **options,
    )
    lora = LoRARequest("adapter", 1, str(adapter))
    assert generate(llm, model_type, lora) == expected
    assert generate(llm, model_type) == plain
