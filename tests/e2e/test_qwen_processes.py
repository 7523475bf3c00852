"""What Qwen-VL needs processes of its own for: stock vLLM, two ranks, experts."""

from typing import Any

import pytest

from tests.conftest import MakeEngine, WriteQwenCheckpoint
from tests.e2e.test_qwen_vl import FAMILIES, OPTIONS
from tests.engine import answers
from tests.processes import STOCK, TWO_RANKS, Processes, answer
from tests.qwen import qwen_kept_digest, qwen_prompt
from tests.qwen_reference import QwenReference

MEDIA: list[list[Any]] = [
    [(300, 220), "and", (150, 400)],
    ["no image"],
    [(200, 224, 4), "and", (200, 200)],
]
"""The last with a video."""

# Each request is computed anew.
ANEW = {**OPTIONS, "enable_prefix_caching": False}
EXPERTS = {"HIRED_TEST_ENGINES": "with experts"}
"""vLLM decides on a process's first engine whether there are experts: so, another."""

MAX_TOKENS = 8


def media_of(family: str) -> list[list[Any]]:
    return MEDIA[:2] if family == "qwen2_vl" else MEDIA


def requests(family: str, *budgets: float | None) -> list[tuple[Any, float | None]]:
    return [(media, budget) for budget in budgets for media in media_of(family)]


@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_budget_everything_is_stocks(
    make_qwen: WriteQwenCheckpoint,
    make_engine: MakeEngine,
    processes: Processes,
    family: str,
) -> None:
    """Same placeholders, hashes and logits, bit for bit, unset and at 1.0."""
    checkpoint = make_qwen(family)
    stock = processes(
        STOCK,
        answer,
        str(checkpoint),
        requests(family, None),
        MAX_TOKENS,
        make=qwen_prompt,
        **ANEW,
    )
    assert len(stock["outputs"][0]["logits"][0]) > 256
    llm = make_engine(checkpoint, **ANEW)
    for budget in (None, 1.0):
        asked = [qwen_prompt(*media, budget=budget) for media in media_of(family)]
        assert answers(llm, asked, MAX_TOKENS) == stock


@pytest.mark.matrix
def test_a_mixture_of_experts(
    make_qwen: WriteQwenCheckpoint, processes: Processes
) -> None:
    """Equals stock's at 1.0 and HF's below."""
    checkpoint = make_qwen("qwen3_vl_moe")

    def ask(environment: dict[str, str], *budgets: float | None) -> dict[str, Any]:
        found: dict[str, Any] = processes(
            EXPERTS | environment,
            answer,
            str(checkpoint),
            requests("qwen3_vl_moe", *budgets),
            MAX_TOKENS,
            make=qwen_prompt,
            **ANEW,
        )
        return found

    assert ask({}, 1.0) == ask(STOCK, None)
    reference = QwenReference(checkpoint)
    assert [output["token_ids"] for output in ask({}, 0.25, 0.5)["outputs"]] == [
        reference.generate(qwen_prompt(*media), f"{budget}", MAX_TOKENS)
        for media, budget in requests("qwen3_vl_moe", 0.25, 0.5)
    ]


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_two_ranks_keep_what_one_keeps(
    make_qwen: WriteQwenCheckpoint, make_engine: MakeEngine, family: str
) -> None:
    """Tensor parallel: same cells on every rank, same greedy text."""
    checkpoint = make_qwen(family)
    llm = make_engine(checkpoint, hired_budget=0.25, **ANEW)
    asked = [qwen_prompt(*media) for media in media_of(family)]
    alone = answers(llm, asked, MAX_TOKENS)
    # Ranks that wait for work keep their cores busy.
    with Processes() as processes:
        pair = processes(
            TWO_RANKS,
            answer,
            str(checkpoint),
            requests(family, None),
            MAX_TOKENS,
            make=qwen_prompt,
            digest=qwen_kept_digest,
            tensor_parallel_size=2,
            hf_overrides={"hired_budget": 0.25},
            **ANEW,
        )
    (digest,) = llm.apply_model(qwen_kept_digest)
    assert pair["digests"] == [digest] * 2
    assert pair["inputs"] == alone["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]


@pytest.mark.matrix
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
def test_drafting_from_the_text_changes_nothing(
    make_qwen: WriteQwenCheckpoint, make_engine: MakeEngine, family: str
) -> None:
    """Speculative decoding with n-grams: the same greedy text."""
    checkpoint = make_qwen(family)
    plain = answers(
        make_engine(checkpoint, hired_budget=0.25, **ANEW),
        [qwen_prompt(*media) for media in media_of(family)],
        24,
    )
    # Where n-grams are looked up, vLLM 0.32 can start no other engine on a CPU.
    with Processes() as processes:
        drafted = processes(
            {},
            answer,
            str(checkpoint),
            requests(family, None),
            24,
            make=qwen_prompt,
            hf_overrides={"hired_budget": 0.25},
            speculative_config={
                "method": "ngram",
                "num_speculative_tokens": 3,
                "prompt_lookup_max": 3,
                "prompt_lookup_min": 1,
            },
            **ANEW,
        )
    for one, two in zip(plain["outputs"], drafted["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]
