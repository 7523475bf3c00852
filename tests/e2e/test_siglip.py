"""Towers without [CLS]: LLaVA with SigLIP, ranked by attention that patches receive."""

from pathlib import Path

import pytest
import torch
from vllm import LLM

from tests.conftest import NO_CLS, MakeEngine, WriteCheckpoint
from tests.e2e.test_generation import MAX_TOKENS, generate
from tests.engine import prompt
from tests.reference import Reference
from vllm_hired.layouts import image_layout

BATCH = [[(100, 80)], [(56, 150), (112, 112)], [(40, 40)]]


@pytest.fixture(scope="module")
def siglip(make_checkpoint: WriteCheckpoint) -> Path:
    return make_checkpoint(**NO_CLS["siglip"])


@pytest.fixture(scope="module")
def llm(make_engine: MakeEngine, siglip: Path) -> LLM:
    return make_engine(
        siglip, hired_budget=0.2, hired_max_budget=1.0, hired_attention="received"
    )


@pytest.mark.parametrize("rho", ["0.2", "0.5"])
def test_equals_hf_fed_the_oracles_embeddings(llm: LLM, siglip: Path, rho: str) -> None:
    reference = Reference(siglip)
    requests = [
        prompt(*sizes, budget=float(rho), seed=10 * i) for i, sizes in enumerate(BATCH)
    ]
    expected = [reference.generate(request, rho, MAX_TOKENS) for request in requests]
    assert generate(llm, *requests) == expected
    whole = [prompt(*sizes, budget=1.0, seed=i) for i, sizes in enumerate(BATCH)]
    assert generate(llm, *whole) == [
        reference.generate_whole(request, MAX_TOKENS) for request in whole
    ]


def test_received_attention_is_hfs(llm: LLM, siglip: Path) -> None:
    """Of the final layer; what the engine keeps is its top."""
    (model,) = llm.apply_model(lambda model: model)
    side = model.config.vision_config.image_size
    pixels = torch.randn((3, 3, side, side), generator=torch.Generator().manual_seed(0))
    layouts = [image_layout(model.config, side, side)] * 3
    with torch.inference_mode():
        _, observations = model.observe([*pixels], layouts)
        _, selections = model.select([*pixels], layouts, [12] * 3)
    last = Reference(siglip).tower(pixels).attentions[model.hired.final_layer]
    expected = last.sum(dim=(1, 2))
    for image, (seen, selection) in enumerate(
        zip(observations, selections, strict=True)
    ):
        torch.testing.assert_close(
            seen.final_attention, expected[image : image + 1], rtol=1e-4, atol=1e-5
        )
        top = expected[image].topk(12).indices.sort().values
        assert selection.cells.tolist() == top.tolist()
