"""Qwen-VL through the engine, against HF transformers and against itself."""

from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams

from tests.conftest import MakeEngine, WriteQwenCheckpoint
from tests.e2e.test_generation import MAX_TOKENS, generate
from tests.engine import ENGINE_OPTIONS, processed
from tests.inspections import check_kept_as_by_engine
from tests.qwen import QWEN3_IS_HFS, kept_count, qwen_prompt
from tests.qwen_reference import QwenReference
from vllm_hired.budget import kept_count as package_count
from vllm_hired.engine.inputs import item_layout
from vllm_hired.selectors import SELECTORS, make_selector

OPTIONS: dict[str, Any] = {
    # So few that a chunk of a prompt ends inside an image.
    "max_num_batched_tokens": 144,
    "limit_mm_per_prompt": {"image": 3, "video": 1},
}

FAMILIES = [
    "qwen2_5_vl",
    pytest.param(
        "qwen3_vl",
        marks=pytest.mark.skipif(
            not QWEN3_IS_HFS,
            reason="this vLLM's own tower of Qwen3-VL is not HF's",
        ),
    ),
    pytest.param("qwen2_vl", marks=pytest.mark.matrix),
]


@pytest.fixture(scope="module", params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def folder(make_qwen: WriteQwenCheckpoint, family: str) -> Path:
    return make_qwen(family)


@pytest.fixture(scope="module")
def llm(make_engine: MakeEngine, folder: Path) -> LLM:
    """Default 0.25, requests up to 1.0, both caches on."""
    return make_engine(folder, hired_budget=0.25, hired_max_budget=1.0, **OPTIONS)


@pytest.fixture(scope="module")
def reference(folder: Path) -> QwenReference:
    return QwenReference(folder)


def requests(family: str) -> list[tuple[str | None, dict[str, Any]]]:
    """Of all kinds, and the budget at which images of each are kept."""
    bare = family == "qwen2_vl"
    return [
        ("0.25", qwen_prompt("a photo", (448, 616), "of something", seed=1)),
        ("0.25", qwen_prompt((280, 560), "x", (448, 196), seed=2)),
        ("0.1", qwen_prompt((560, 500), budget=0.1, seed=3)),
        ("0.5", qwen_prompt((90, 40), (900, 40), (500, 450), budget=0.5, seed=4)),
        (None, qwen_prompt((280, 300), "whole", budget=1.0, seed=5)),
        (None, qwen_prompt("no image at all")),
        (
            "0.25",
            qwen_prompt((200, 224, 4), "and", (300, 200), seed=6, bare_videos=bare),
        ),
        (
            "0.4",
            qwen_prompt(
                (300, 200), (160, 224, 4), budget=0.4, seed=7, bare_videos=bare
            ),
        ),
    ]


def test_equals_hf_fed_what_is_to_be_kept(
    llm: LLM, reference: QwenReference, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One batch of all kinds, then one after another, in chunks that cut images."""
    (model,) = llm.apply_model(lambda model: model)
    take = model.hired_positions.take
    lengths: set[int] = set()

    def note(embeddings: Any, *args: Any) -> Any:
        lengths.update(len(rows) for rows in embeddings)
        return take(embeddings, *args)

    monkeypatch.setattr(model.hired_positions, "take", note)
    asked = requests(family)
    expected = [reference.generate(request, rho, MAX_TOKENS) for rho, request in asked]
    assert len({tuple(answer) for answer in expected}) == len(expected)
    assert generate(llm, *(request for _, request in asked)) == expected
    whole = {
        r.length
        for _, request in asked
        for ranges in processed(llm, request)["mm_placeholders"].values()
        for r in ranges
    }
    assert lengths - whole, "no image was cut"

    llm.reset_prefix_cache()
    for answer, (_, request) in zip(expected, asked, strict=True):
        assert generate(llm, request) == [answer]


def test_an_error_in_the_positions_is_seen(
    llm: LLM, reference: QwenReference, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the test above compares is sensitive to where kept tokens are."""
    asked = [qwen_prompt((448, 616), seed=seed) for seed in range(3)]
    right = [reference.generate(one, "0.25", MAX_TOKENS) for one in asked]
    assert right != [
        reference.generate(one, "0.25", MAX_TOKENS, wrong_by=5) for one in asked
    ]
    assert generate(llm, *asked) == right
    (model,) = llm.apply_model(lambda model: model)
    with monkeypatch.context() as patch:
        patch.setattr(model.hired_positions, "forward", lambda positions: positions + 0)
        llm.reset_prefix_cache()
        assert generate(llm, *asked) != right
    llm.reset_prefix_cache()


def test_prefix_cache_keeps_budgets_apart(llm: LLM, reference: QwenReference) -> None:
    """One image, two budgets, again and again; hits are counted."""
    budgets = ("0.25", "0.5")
    asked = {
        rho: qwen_prompt((448, 448), budget=float(rho), seed=50) for rho in budgets
    }
    expected = {
        rho: reference.generate(request, rho, MAX_TOKENS)
        for rho, request in asked.items()
    }
    for rho in budgets * 2:
        assert generate(llm, asked[rho]) == [expected[rho]]
    (again,) = llm.generate(
        [asked["0.5"]], SamplingParams(max_tokens=1), use_tqdm=False
    )
    # All whole blocks but what the last token needs.
    block = ENGINE_OPTIONS["block_size"]
    prompt_tokens = len(again.prompt_token_ids or [])
    assert again.num_cached_tokens == (prompt_tokens - 1) // block * block > 0
    # A hit that ends inside the image: the rest of it is encoded anew, and placed.
    llm.llm_engine.reset_encoder_cache()
    other = qwen_prompt((448, 448), budget=0.5, seed=50)
    other["prompt"] = other["prompt"].replace("this?", "that?")
    assert generate(llm, other) == [reference.generate(other, "0.5", MAX_TOKENS)]


def dummy_steps(worker: Any) -> None:
    """As vLLM takes them to warm up, and of a rank that has nothing to do."""
    for tokens in (1, 17, OPTIONS["max_num_batched_tokens"]):
        worker.model_runner._dummy_run(tokens)


def test_dummy_steps_after_a_prefill(llm: LLM, reference: QwenReference) -> None:
    """They call the model without embedding anything, with what the last step left."""
    request = qwen_prompt((140, 400), budget=0.4, seed=70)
    generate(llm, request, max_tokens=1)
    (model,) = llm.apply_model(lambda model: model)
    assert model.hired_positions.offsets.any()
    llm.collective_rpc(dummy_steps)
    llm.reset_prefix_cache()
    assert generate(llm, request) == [reference.generate(request, "0.4", MAX_TOKENS)]


def items_of(llm: LLM, request: dict[str, Any]) -> list[Any]:
    """Of a request's images."""
    items: list[Any] = processed(llm, request)["mm_kwargs"]["image"]
    return items


def batched(items: list[Any]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.cat([item["pixel_values"].data for item in items]),
        "image_grid_thw": torch.stack([item["image_grid_thw"].data for item in items]),
    }


def test_what_is_kept_is_the_top_of_hfs_attention(
    llm: LLM, reference: QwenReference
) -> None:
    """Of images of several shapes in one forward of the tower: cells, attention and
    features, in the image's own order."""
    request = qwen_prompt((448, 616), (900, 40), (120, 500), budget=0.3)
    items = items_of(llm, request)
    (model,) = llm.apply_model(lambda model: model)
    layouts = [item_layout(model.config, item) for item in items]
    counts = [int(item["num_kept"].data) for item in items]
    with torch.inference_mode():
        features, observations = model.observe(batched(items), layouts)
        _, selections = model.select(batched(items), layouts, counts)
    inputs = reference.inputs(request)
    pixels = inputs["pixel_values"]
    for image, grid in enumerate(inputs["image_grid_thw"]):
        patches = int(grid.prod())
        encoded = reference.encode(pixels[:patches], grid)
        pixels = pixels[patches:]
        assert counts[image] == kept_count(*encoded.grid[1:], "0.3")
        torch.testing.assert_close(
            observations[image].final_attention[0],
            encoded.attention,
            rtol=1e-4,
            atol=1e-4,
        )
        torch.testing.assert_close(features[image], encoded.rows, rtol=1e-3, atol=1e-3)
        assert (
            selections[image].cells.tolist() == reference.kept(encoded, "0.3").tolist()
        )


def test_images_whole_and_pruned_in_one_call_under_a_bound(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in as many forwards of the tower as memory was planned for."""
    items = items_of(
        llm, qwen_prompt((448, 616), (300, 200), (120, 500), budget=0.3, seed=9)
    )
    (model,) = llm.apply_model(lambda model: model)
    kept = torch.stack([item["num_kept"].data for item in items])

    def embed(whole: list[bool], chosen: slice = slice(None)) -> list[torch.Tensor]:
        counts = [
            item_layout(model.config, item).num_cells if stays else int(count)
            for item, stays, count in zip(items, whole, kept, strict=True)
        ]
        with torch.inference_mode():
            return model.embed_multimodal(
                **batched(items[chosen]),
                num_kept=torch.tensor(counts[chosen]),
                is_undropped=torch.tensor(whole[chosen]),
            )

    forwards: list[int] = []
    hook = model.visual.register_forward_pre_hook(lambda *_: forwards.append(1))
    monkeypatch.setattr(model, "max_cells_per_forward", 1000)
    together = embed([False, True, False])
    assert len(forwards) == 2
    monkeypatch.setattr(model, "max_cells_per_forward", 60)
    apart = embed([False, True, False])
    assert len(forwards) == 2 + 3
    width = model.visual.out_hidden_size
    assert [rows.shape[1] - width for rows in together] == [4, 0, 4]
    for image, rows in enumerate(together):
        torch.testing.assert_close(rows, apart[image])
        (alone,) = embed([False, True, False], slice(image, image + 1))
        torch.testing.assert_close(rows, alone)
    hook.remove()


def test_every_selector_keeps_its_count(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that look at features and keys, and those that combine rows, too."""
    (item,) = items_of(llm, qwen_prompt((448, 300), budget=0.3, seed=3))
    (model,) = llm.apply_model(lambda model: model)
    layout = item_layout(model.config, item)
    count = int(item["num_kept"].data)
    assert count == package_count(layout, model.hired.request_budget(0.3), None).tokens
    kept = set()
    for name in SELECTORS:
        monkeypatch.setattr(model, "selector", make_selector(name))
        with torch.inference_mode():
            (rows,) = model.embed_multimodal(
                **batched([item]),
                num_kept=item["num_kept"].data[None],
                is_undropped=item["is_undropped"].data[None],
            )
        assert rows.shape == (count, model.visual.out_hidden_size + 4)
        assert rows.isfinite().all()
        cells = rows[:, -3] * layout.cols + rows[:, -1]
        assert (cells.diff() > 0).all()
        kept.add(tuple(cells.tolist()))
    # Without tiles, methods that differ in the tiles' shares alone do not differ.
    assert len(kept) >= len(SELECTORS) - 4


@pytest.mark.parametrize("size", [(448, 300), (120, 500)])
def test_inspect_keeps_what_the_engine_keeps(
    llm: LLM, folder: Path, size: tuple[int, int]
) -> None:
    requests = {rho: qwen_prompt(size, seed=4, budget=rho) for rho in (0.1, 0.3, 0.7)}
    check_kept_as_by_engine(llm, folder, requests, lambda item: batched([item]))
