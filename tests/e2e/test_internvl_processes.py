"""What InternVL needs processes of its own for: stock vLLM, two ranks."""

from functools import partial
from typing import Any

import pytest

from tests.conftest import MakeEngine, WriteInternVLCheckpoint
from tests.e2e.test_internvl import FORMATS, options_of
from tests.engine import answers
from tests.internvl import internvl_kept_digest, internvl_prompt
from tests.processes import STOCK, TWO_RANKS, Processes, answer

MEDIA: list[list[Any]] = [
    [(252, 168), "and", (150, 400)],
    ["no image"],
    [(100, 84, 3), "and", (90, 80)],
]
"""The last with a video."""

MAX_TOKENS = 8


def anew(model_type: str) -> dict[str, Any]:
    """Each request is computed anew."""
    return {**options_of(model_type), "enable_prefix_caching": False}


@pytest.mark.parametrize("model_type", FORMATS)
def test_without_a_budget_everything_is_stocks(
    make_internvl: WriteInternVLCheckpoint,
    make_engine: MakeEngine,
    processes: Processes,
    model_type: str,
) -> None:
    """Same placeholders, hashes and logits, bit for bit, unset and at 1.0."""
    checkpoint = make_internvl(model_type)
    make = partial(internvl_prompt, model_type)
    stock = processes(
        STOCK,
        answer,
        str(checkpoint),
        [(media, None) for media in MEDIA],
        MAX_TOKENS,
        make=make,
        **anew(model_type),
    )
    assert len(stock["outputs"][0]["logits"][0]) > 256
    llm = make_engine(checkpoint, **anew(model_type))
    for budget in (None, 1.0):
        asked = [make(*media, budget=budget) for media in MEDIA]
        assert told_apart(answers(llm, asked, MAX_TOKENS)) == told_apart(stock)


def told_apart(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """With placeholders as numbers: which of a range are embedded is a tensor or a
    function, and these compare by identity."""
    return {
        "outputs": found["outputs"],
        "inputs": [
            (
                hashes,
                {
                    modality: [(r.offset, r.length, r.get_num_embeds()) for r in ranges]
                    for modality, ranges in placeholders.items()
                },
            )
            for hashes, placeholders in found["inputs"]
        ],
    }


@pytest.mark.matrix
@pytest.mark.parametrize("model_type", ["internvl", "internvl_chat"])
def test_two_ranks_keep_what_one_keeps(
    make_internvl: WriteInternVLCheckpoint, make_engine: MakeEngine, model_type: str
) -> None:
    """Tensor parallel: same cells on every rank, same greedy text."""
    checkpoint = make_internvl(model_type)
    make = partial(internvl_prompt, model_type)
    llm = make_engine(checkpoint, hired_budget=0.25, **anew(model_type))
    alone = answers(llm, [make(*media) for media in MEDIA], MAX_TOKENS)
    # Ranks that wait for work keep their cores busy.
    with Processes() as processes:
        pair = processes(
            TWO_RANKS,
            answer,
            str(checkpoint),
            [(media, None) for media in MEDIA],
            MAX_TOKENS,
            make=make,
            digest=internvl_kept_digest,
            tensor_parallel_size=2,
            hf_overrides={"hired_budget": 0.25},
            **anew(model_type),
        )
    (digest,) = llm.apply_model(internvl_kept_digest)
    assert pair["digests"] == [digest] * 2
    assert told_apart(pair)["inputs"] == told_apart(alone)["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]
