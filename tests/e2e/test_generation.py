"""Whole generations through the engine, against HF transformers and against itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig
from vllm import LLM, SamplingParams

from random_checkpoints.llava import REAL_PINPOINTS
from tests.conftest import MakeEngine, WriteCheckpoint
from tests.engine import ENGINE_OPTIONS, check_lora_token_counts, prompt
from tests.reference import Reference

MAX_TOKENS = 12

ONE = [(100, 80)]
TWO = [(56, 150), (112, 112)]
# (image sizes of each prompt), as one batch.
BATCHES: dict[str, list[list[tuple[int, int]]]] = {
    "one image": [ONE],
    "two images of different shapes": [TWO],
    "mixed prompts": [ONE, TWO, [(40, 40)], [(300, 60), (60, 300), (30, 20)]],
}


def generate(llm: LLM, *requests: dict[str, Any], **sampling: Any) -> list[list[int]]:
    options = {"max_tokens": MAX_TOKENS, "temperature": 0, "ignore_eos": True}
    outputs = llm.generate(
        list(requests), SamplingParams(**(options | sampling)), use_tqdm=False
    )
    return [list(output.outputs[0].token_ids) for output in outputs]


@pytest.mark.parametrize("rho", ["0.2", "0.4"])
@pytest.mark.parametrize("batch", BATCHES)
def test_equals_hf_fed_the_oracles_embeddings(
    any_engine: LLM, reference: Reference, batch: str, rho: str
) -> None:
    requests = [
        prompt(*sizes, budget=float(rho), seed=10 * i)
        for i, sizes in enumerate(BATCHES[batch])
    ]
    expected = [reference.generate(request, rho, MAX_TOKENS) for request in requests]
    assert generate(any_engine, *requests) == expected


@pytest.mark.parametrize("batch", BATCHES)
def test_equals_hf_alone_where_nothing_is_dropped(
    any_engine: LLM, reference: Reference, batch: str
) -> None:
    requests = [
        prompt(*sizes, budget=1.0, seed=10 * i)
        for i, sizes in enumerate(BATCHES[batch])
    ]
    expected = [reference.generate_whole(request, MAX_TOKENS) for request in requests]
    assert generate(any_engine, *requests) == expected


def test_equals_hf_with_the_real_vision_geometry(
    make_checkpoint: WriteCheckpoint, make_engine: MakeEngine
) -> None:
    folder = make_checkpoint(tile_size=336, patch_size=14, pinpoints=REAL_PINPOINTS)
    request = prompt((700, 500))
    expected = Reference(folder).generate(request, "0.2", MAX_TOKENS)
    llm = make_engine(folder, hired_budget=0.2)
    assert generate(llm, request) == [expected]


@pytest.mark.parametrize("backbone", ["mistral", "qwen2"])
def test_other_backbones(
    make_checkpoint: WriteCheckpoint, make_engine: MakeEngine, backbone: str
) -> None:
    folder = make_checkpoint(backbone=backbone)
    request = prompt(*TWO)
    expected = Reference(folder).generate(request, "0.2", MAX_TOKENS)
    llm = make_engine(folder, hired_budget=0.2)
    assert generate(llm, request) == [expected]


def test_budgets_differ(any_engine: LLM) -> None:
    """What the other tests compare is sensitive to what is kept."""
    outputs = generate(
        any_engine, *(prompt(*ONE, budget=budget) for budget in (0.1, 0.2, 0.4, 1.0))
    )
    assert len({tuple(output) for output in outputs}) == 4


def test_one_batch_of_all_kinds(any_engine: LLM) -> None:
    """Dropped and stock images of several requests in one call of the model."""
    requests = [
        prompt(*TWO, budget=budget, seed=seed)
        for seed, budget in enumerate([0.1, 1.0, None, 0.4, 1.0, 0.99])
    ]
    together = generate(any_engine, *requests)
    any_engine.reset_prefix_cache()
    assert together == [generate(any_engine, request)[0] for request in requests]


def test_prefix_cache_keeps_budgets_apart(
    any_engine: LLM, make_engine: MakeEngine, any_checkpoint: Path
) -> None:
    """One engine, one image, two budgets: what two fresh engines give."""
    fresh = []
    for budget in (0.2, 0.4):
        llm = make_engine(any_checkpoint, hired_budget=budget)
        fresh += generate(llm, prompt(*ONE, seed=5))
    for budget, expected in [*zip((0.2, 0.4) * 2, fresh * 2, strict=True)]:
        assert generate(any_engine, prompt(*ONE, budget=budget, seed=5)) == [expected]
    (again,) = any_engine.generate(
        [prompt(*ONE, budget=0.4, seed=5)], SamplingParams(max_tokens=1), use_tqdm=False
    )
    # All whole blocks but what the last token needs.
    block = ENGINE_OPTIONS["block_size"]
    prompt_tokens = len(again.prompt_token_ids or [])
    assert again.num_cached_tokens == (prompt_tokens - 1) // block * block > 0


@pytest.mark.parametrize(
    "options",
    [
        {"enable_chunked_prefill": True, "max_num_batched_tokens": 64},
        {"enable_chunked_prefill": False},
    ],
)
def test_chunked_prefill_changes_nothing(
    any_engine: LLM,
    make_engine: MakeEngine,
    any_checkpoint: Path,
    options: dict[str, Any],
) -> None:
    requests = [prompt(*TWO, seed=20), prompt(*ONE, seed=21)]
    llm = make_engine(any_checkpoint, hired_budget=0.2, **options)
    assert generate(llm, *requests) == generate(any_engine, *requests)


@pytest.mark.parametrize("cap", [10, 10_000])
def test_token_cap(
    any_checkpoint: Path,
    any_engine: LLM,
    make_engine: MakeEngine,
    reference: Reference,
    cap: int,
) -> None:
    """A cap that binds keeps that many; one that does not leaves images whole."""
    request = prompt(*ONE, seed=3)
    (capped,) = generate(make_engine(any_checkpoint, hired_token_cap=cap), request)
    if cap == 10:
        (image,) = request["multi_modal_data"]["image"]
        layout = reference.layout(image)
        patches = (layout.rows * layout.cols + 1) * layout.g**2
        assert capped == reference.generate(request, str(cap / patches), MAX_TOKENS)
    else:
        assert [capped] == generate(any_engine, prompt(*ONE, seed=3, budget=1.0))


def test_a_cap_between_two_images(
    checkpoint: Path, engine: LLM, make_engine: MakeEngine
) -> None:
    """In one call some stay whole and some are dropped from, in their order."""
    llm = make_engine(checkpoint, hired_token_cap=250)
    processor = llm.llm_engine.renderer.get_mm_processor()
    images = prompt((112, 112), (56, 112), (100, 80))["multi_modal_data"]["image"]
    inputs = processor(
        "<image>" * len(images), processor.info.parse_mm_data({"image": images})
    )
    items = inputs["mm_kwargs"]["image"]
    (model,) = llm.apply_model(lambda model: model)

    def embed(*chosen: Any) -> list[torch.Tensor]:
        with torch.inference_mode():
            return model.embed_multimodal(
                pixel_values=[item["pixel_values"].data for item in chosen],
                image_sizes=torch.stack([item["image_sizes"].data for item in chosen]),
                num_kept=torch.stack([item["num_kept"].data for item in chosen]),
                is_undropped=torch.stack(
                    [item["is_undropped"].data for item in chosen]
                ),
            )

    together = embed(*items)
    # 336, 208 and 268 tokens without dropping.
    assert [len(rows) for rows in together] == [250, 208, 250]
    for rows, item in zip(together, items, strict=True):
        torch.testing.assert_close(rows, embed(item)[0])


def test_ready_made_embeddings_pass_through(
    any_checkpoint: Path, make_engine: MakeEngine, reference: Reference
) -> None:
    """Of different lengths in one batch, beside an image with pixels."""
    requests = [prompt(*ONE, seed=seed) for seed in range(3)]
    expected = [
        reference.generate(request, rho, MAX_TOKENS)
        for request, rho in zip(requests, ("0.1", "0.2", "0.2"), strict=True)
    ]
    for request, rho in zip(requests[:2], ("0.1", "0.2"), strict=True):
        (image,) = request["multi_modal_data"]["image"]
        embeddings = reference.kept_embeddings(image, rho)
        request["multi_modal_data"] = {"image": embeddings[None].clone()}
    llm = make_engine(any_checkpoint, hired_budget=0.2, enable_mm_embeds=True)
    assert generate(llm, *requests) == expected


def test_the_model_says_what_it_does(
    make_engine: MakeEngine, any_checkpoint: Path, caplog_vllm: pytest.LogCaptureFixture
) -> None:
    make_engine(any_checkpoint, hired_budget=0.3)
    said = [r.getMessage() for r in caplog_vllm.records if "hired_budget" in r.msg]
    assert len(said) == 1
    (upstream,) = AutoConfig.from_pretrained(any_checkpoint).architectures
    assert said[0].startswith(f"Hired{upstream}: ")
    assert "hired_budget=0.3" in said[0]


def test_lora_token_counts_are_the_towers_and_the_projectors(any_engine: LLM) -> None:
    (model,) = any_engine.apply_model(lambda model: model)
    processor = any_engine.llm_engine.renderer.get_mm_processor()
    (image,) = prompt(*ONE)["multi_modal_data"]["image"]
    items = []
    for budget in (0.2, 1.0):
        inputs = processor(
            "<image>",
            processor.info.parse_mm_data({"image": image}),
            hf_processor_mm_kwargs={"hired_budget": budget},
        )
        (item,) = inputs["mm_kwargs"]["image"]
        items.append((item, {key: elem.data[None] for key, elem in item.items()}))
    check_lora_token_counts(
        model,
        model.vision_tower.vision_model.encoder.layers[0].mlp,
        model.multi_modal_projector,
        items,
    )
