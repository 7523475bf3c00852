"""Two ranks with InternVL, in processes of their own."""

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
@pytest.mark.parametrize("parallel", ["tensor", "pipeline"])
def test_two_ranks_keep_what_one_keeps(
    make_internvl: WriteInternVLCheckpoint,
    make_engine: MakeEngine,
    model_type: str,
    parallel: str,
) -> None:
    """Same cells on every rank, same greedy text."""
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
            hf_overrides=BUDGETS,
            **{f"{parallel}_parallel_size": 2, **options_of(model_type)},
        )
    (digest,) = llm.apply_model(internvl_kept_digest)
    assert pair["digests"] == [digest] * 2
    assert told_apart(pair)["inputs"] == told_apart(alone)["inputs"]
    for one, two in zip(alone["outputs"], pair["outputs"], strict=True):
        assert one["token_ids"] == two["token_ids"]
