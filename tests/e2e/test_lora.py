"""A LoRA adapter on tower, projector and LLM: what merged weights would give."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest

from tests.conftest import MakeEngine, expect_refusal
from tests.engine import prompt

RANK, ALPHA = 8, 16
ADAPTED = (
    "vision_tower.vision_model.encoder.layers.0.self_attn.q_proj",
    "vision_tower.vision_model.encoder.layers.2.self_attn.k_proj",
    "vision_tower.vision_model.encoder.layers.1.mlp.fc1",
    "multi_modal_projector.linear_1",
    "language_model.model.layers.0.self_attn.q_proj",
)
MAX_TOKENS = 12


def write_adapter_and_merged(
    checkpoint: Path, folder: Path, adapted: Sequence[str] = ADAPTED
) -> tuple[Path, Path]:
    generator = torch.Generator().manual_seed(7)
    adapter, merged = folder / "adapter", folder / "merged"
    adapter.mkdir()
    shutil.copytree(checkpoint, merged)
    weights = load_file(checkpoint / "model.safetensors")
    tensors = {}
    for name in adapted:
        weight = weights[f"{name}.weight"]
        down = torch.randn((RANK, weight.shape[1]), generator=generator) * 0.1
        up = torch.randn((weight.shape[0], RANK), generator=generator) * 0.1
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
        weights[f"{name}.weight"] = weight + up @ down * (ALPHA / RANK)
    save_file(tensors, adapter / "adapter_model.safetensors")
    save_file(weights, merged / "model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": sorted({name.rpartition(".")[2] for name in adapted}),
        "bias": "none",
    }
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    return adapter, merged


def generate(llm: LLM, lora: LoRARequest | None = None) -> list[list[int]]:
    requests = [prompt((100, 80)), prompt((56, 150), (112, 112), budget=0.1)]
    outputs = llm.generate(
        requests,
        SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True),
        lora_request=lora,
        use_tqdm=False,
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


def test_equals_merged_weights(
    any_checkpoint: Path, make_engine: MakeEngine, tmp_path: Path
) -> None:
    adapter, merged = write_adapter_and_merged(any_checkpoint, tmp_path)
    expected = generate(make_engine(merged, hired_budget=0.2))
    plain = generate(make_engine(any_checkpoint, hired_budget=0.2))
    assert expected != plain
    llm = make_engine(
        any_checkpoint,
        hired_budget=0.2,
        enable_lora=True,
        enable_tower_connector_lora=True,
        max_lora_rank=RANK,
    )
    assert generate(llm, LoRARequest("adapter", 1, str(adapter))) == expected
    assert generate(llm) == plain


def test_a_token_cap_is_refused(checkpoint: Path, make_engine: MakeEngine) -> None:
    with expect_refusal(match="not together with --enable-tower-connector-lora"):
        make_engine(
            checkpoint,
            hired_token_cap=50,
            enable_lora=True,
            enable_tower_connector_lora=True,
        )
