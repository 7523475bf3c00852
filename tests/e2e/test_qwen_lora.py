"""LoRA adapters on Qwen-VL's LLM, tower and merger: what merged weights would give."""

from pathlib import Path

import pytest
from vllm import LLM
from vllm.lora.request import LoRARequest

from tests.conftest import MakeEngine, WriteQwenCheckpoint
from tests.e2e.test_lora import RANK, write_adapter_and_merged
from tests.e2e.test_qwen_vl import OPTIONS
from tests.qwen import qwen_prompt

pytestmark = pytest.mark.matrix

MAX_TOKENS = 12
LLM_NAMES = {
    "qwen2_5_vl": ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj"),
    "qwen3_vl": (
        "model.language_model.layers.0.self_attn.q_proj",
        "model.language_model.layers.1.mlp.up_proj",
    ),
}
TOWER_NAMES = {
    "qwen2_5_vl": (
        *("visual.blocks.0.attn.qkv", "visual.blocks.3.attn.qkv"),
        *("visual.blocks.1.mlp.down_proj", "visual.merger.mlp.0"),
    ),
    "qwen3_vl": (
        *("model.visual.blocks.0.attn.qkv", "model.visual.blocks.3.attn.qkv"),
        *("model.visual.blocks.1.mlp.linear_fc2", "model.visual.merger.linear_fc1"),
    ),
}


def generate(llm: LLM, lora: LoRARequest | None = None) -> list[list[int]]:
    from vllm import SamplingParams

    outputs = llm.generate(
        [
            qwen_prompt((300, 220), seed=1),
            qwen_prompt((150, 400), "and", (448, 448), budget=0.1, seed=2),
            qwen_prompt("no image"),
        ],
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True),
        lora_request=lora,
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("on_tower", [False, True], ids=["LLM", "LLM and tower"])
@pytest.mark.parametrize("family", LLM_NAMES)
def test_equals_merged_weights(
    make_qwen: WriteQwenCheckpoint,
    make_engine: MakeEngine,
    tmp_path: Path,
    family: str,
    on_tower: bool,
) -> None:
    checkpoint = make_qwen(family)
    names = LLM_NAMES[family] + (TOWER_NAMES[family] if on_tower else ())
    adapter, merged = write_adapter_and_merged(checkpoint, tmp_path, names)
    expected = generate(make_engine(merged, hired_budget=0.25, **OPTIONS))
    plain = generate(make_engine(checkpoint, hired_budget=0.25, **OPTIONS))
    assert expected != plain
    llm = make_engine(
        checkpoint,
        hired_budget=0.25,
        enable_lora=True,
        enable_tower_connector_lora=on_tower,
        max_lora_rank=RANK,
        **OPTIONS,
    )
    assert generate(llm, LoRARequest("adapter", 1, str(adapter))) == expected
    assert generate(llm) == plain
