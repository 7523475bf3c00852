"""What Qwen-VL needs processes of its own for: stock vLLM, two ranks, experts."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WriteQwenCheckpoint
from tests.e2e.test_processes import answer
from tests.e2e.test_qwen_vl import FAMILIES, OPTIONS
from tests.qwen import qwen_prompt
from tests.qwen_reference import QwenReference

MEDIA: list[list[Any]] = [
    [[300, 220], "and", [150, 400]],
    [[200, 224, 4], "and", [200, 200]],
    ["no image"],
]


def job(checkpoint: Path, *budgets: float | None, **options: Any) -> dict[str, Any]:
    media = MEDIA[:1] + MEDIA[2:] if "qwen2_vl" in checkpoint.name else MEDIA
    return {
        "engine": {
            "model": str(checkpoint),
            # Each request is computed anew.
            "enable_prefix_caching": False,
            **OPTIONS,
            **options,
        },
        "is_qwen": True,
        "requests": [(one, budget) for budget in budgets for one in media],
        "max_tokens": 8,
    }


MIXTURE = pytest.param("qwen3_vl_moe", marks=pytest.mark.matrix)
"""vLLM decides on a process's first engine whether there are experts."""


@pytest.mark.parametrize("family", [*FAMILIES, MIXTURE])
def test_without_a_budget_everything_is_stocks(
    make_qwen: WriteQwenCheckpoint, tmp_path: Path, family: str
) -> None:
    """Same placeholders, hashes and logits, bit for bit, unset and at 1.0."""
    checkpoint = make_qwen(family)
    stock = answer(tmp_path, job(checkpoint, None), VLLM_PLUGINS="")
    ours = answer(tmp_path, job(checkpoint, None, 1.0))
    for key in ("inputs", "outputs"):
        assert ours[key] == stock[key] * 2
    assert len(stock["outputs"][0]["logits"][0]) > 256


@pytest.mark.matrix
def test_a_mixture_of_experts_equals_hf(
    make_qwen: WriteQwenCheckpoint, tmp_path: Path
) -> None:
    checkpoint = make_qwen("qwen3_vl_moe")
    asked = job(
        checkpoint,
        0.25,
        0.5,
        hf_overrides={"hired_max_budget": 1.0, "hired_budget": 1.0},
    )
    reference = QwenReference(checkpoint)
    expected = [
        reference.generate(qwen_prompt(*media), f"{budget}", asked["max_tokens"])
        for media, budget in asked["requests"]
    ]
    outputs = answer(tmp_path, asked)["outputs"]
    assert [output["token_ids"] for output in outputs] == expected


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_two_ranks_keep_what_one_keeps(
    make_qwen: WriteQwenCheckpoint, tmp_path: Path, family: str
) -> None:
    """Tensor parallel: same cells on every rank, same greedy text."""
    overrides = {"hired_budget": 0.25}
    asked = job(make_qwen(family), None, hf_overrides=overrides) | {"digest": True}
    alone = answer(tmp_path, asked)
    asked["engine"]["tensor_parallel_size"] = 2
    pair = answer(
        tmp_path,
        asked,
        VLLM_CPU_OMP_THREADS_BIND="0|1",
        VLLM_ALLOW_INSECURE_SERIALIZATION="1",
    )
    assert pair["digests"] == alone["digests"] * 2
    assert pair["inputs"] == alone["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_drafting_from_the_text_changes_nothing(
    make_qwen: WriteQwenCheckpoint, tmp_path: Path, family: str
) -> None:
    """Speculative decoding with n-grams: the same greedy text."""
    asked = job(make_qwen(family), None, hf_overrides={"hired_budget": 0.25})
    asked["max_tokens"] = 24
    plain = answer(tmp_path, asked)
    asked["engine"]["speculative_config"] = {
        "method": "ngram",
        "num_speculative_tokens": 3,
        "prompt_lookup_max": 3,
        "prompt_lookup_min": 1,
    }
    drafted = answer(tmp_path, asked)
    for one, two in zip(plain["outputs"], drafted["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]
