"""Two ranks or stages with InternVL, in processes of their own."""

from functools import partial

import pytest

from tests.conftest import INTERNVL_FORMATS, MakeEngine, WriteInternVLCheckpoint
from tests.e2e.test_internvl import (
    BUDGETS,
    MEDIA,
    STOCK_TOKENS,
    options_of,
    told_apart,
)
from tests.engine import answers
from tests.internvl import internvl_kept_digest, internvl_prompt
from tests.processes import TWO_RANKS, Processes, answer

pytestmark = pytest.mark.matrix


@pytest.mark.parametrize("model_type", INTERNVL_FORMATS)
def test_two_ranks_keep_what_one_keeps(
    make_internvl: WriteInternVLCheckpoint, make_engine: MakeEngine, model_type: str
) -> None:
    """Tensor parallel: same cells on every rank, same greedy text."""
    checkpoint = make_internvl(model_type)
    make = partial(internvl_prompt, model_type)
    llm = make_engine(checkpoint, **BUDGETS, **options_of(model_type))
    alone = answers(llm, [make(*media) for media in MEDIA], STOCK_TOKENS)
    # Ranks that wait for work keep their cores busy.
    with Processes() as processes:
        pair = processes(
            TWO_RANKS,
            answer,
            str(checkpoint),
            [(media, None) for media in MEDIA],
            STOCK_TOKENS,
            make=make,
            digest=internvl_kept_digest,
            tensor_parallel_size=2,
            hf_overrides=BUDGETS,
            **options_of(model_type),
        )
    (digest,) = llm.apply_model(internvl_kept_digest)
    assert pair["digests"] == [digest] * 2
    assert told_apart(pair)["inputs"] == told_apart(alone)["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]


@pytest.mark.parametrize("model_type", INTERNVL_FORMATS)
def test_two_stages_answer_as_one(
    make_internvl: WriteInternVLCheckpoint, make_engine: MakeEngine, model_type: str
) -> None:
    """Pipeline parallel: the tower and the first layers, then the others."""
    checkpoint = make_internvl(model_type)
    make = partial(internvl_prompt, model_type)
    llm = make_engine(checkpoint, **BUDGETS, **options_of(model_type))
    alone = answers(llm, [make(*media) for media in MEDIA], STOCK_TOKENS)
    with Processes() as processes:
        stages = processes(
            TWO_RANKS,
            answer,
            str(checkpoint),
            [(media, None) for media in MEDIA],
            STOCK_TOKENS,
            make=make,
            pipeline_parallel_size=2,
            hf_overrides=BUDGETS,
            **options_of(model_type),
        )
    assert told_apart(stages)["inputs"] == told_apart(alone)["inputs"]
    for one, two in zip(alone["outputs"], stages["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]
