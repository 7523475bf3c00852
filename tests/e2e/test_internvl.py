"""InternVL through the engine, against HF transformers and against itself."""

from functools import partial
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams

from tests.conftest import MakeEngine, WriteInternVLCheckpoint
from tests.e2e.test_generation import MAX_TOKENS, generate
from tests.engine import ENGINE_OPTIONS, answers, check_lora_token_counts, processed
from tests.inspections import check_kept_as_by_engine
from tests.internvl import engine_options, internvl_prompt
from tests.internvl_reference import InternVLReference
from tests.processes import STOCK, Processes, answer
from vllm_hired.engine.inputs import item_layout
from vllm_hired.selectors import SELECTORS, make_selector

OPTIONS: dict[str, Any] = {
    # So few that a chunk of a prompt ends inside an image.
    "max_num_batched_tokens": 144,
    "limit_mm_per_prompt": {"image": 3, "video": 1},
}

MEDIA: list[list[Any]] = [
    [(252, 168), "and", (150, 400)],
    ["no image"],
    [(100, 84, 3), "and", (90, 80)],
]
"""Requests that stock vLLM and others answer, too; the last with a video."""

STOCK_TOKENS = 8
"""Of each answer."""

FORMATS = ["internvl", pytest.param("internvl_chat", marks=pytest.mark.matrix)]


BUDGETS = {"hired_budget": 0.25, "hired_max_budget": 1.0}
"""Of the shared engine."""


def options_of(model_type: str) -> dict[str, Any]:
    return {**OPTIONS, **engine_options(model_type)}


@pytest.fixture(scope="module", params=FORMATS)
def model_type(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def llm(
    make_engine: MakeEngine, make_internvl: WriteInternVLCheckpoint, model_type: str
) -> LLM:
    """The shared engine, with both caches on."""
    return make_engine(make_internvl(model_type), **BUDGETS, **options_of(model_type))


@pytest.fixture(scope="module")
def reference(
    make_internvl: WriteInternVLCheckpoint, model_type: str
) -> InternVLReference:
    return reference_of(make_internvl, model_type)


def reference_of(
    make_internvl: WriteInternVLCheckpoint, model_type: str
) -> InternVLReference:
    """Of the format with remote code, the same weights in HF's format."""
    if model_type == "internvl":
        return InternVLReference(make_internvl(model_type))
    folder = make_internvl("internvl", qk_norm=True, backbone="qwen2")
    return InternVLReference(folder, model_type)


def requests(model_type: str) -> list[tuple[str | None, dict[str, Any]]]:
    """Of all kinds, and the budget at which images of each are kept."""

    def ask(*media: Any, **options: Any) -> dict[str, Any]:
        return internvl_prompt(model_type, *media, **options)

    return [
        ("0.25", ask("a photo", (252, 168), "of something", seed=1)),
        ("0.25", ask((100, 300), "x", (168, 84), seed=2)),
        ("0.1", ask((300, 100), budget=0.1, seed=3)),
        ("0.5", ask((84, 84), (600, 40), (168, 170), budget=0.5, seed=4)),
        (None, ask((250, 170), "whole", budget=1.0, seed=5)),
        (None, ask("no image at all")),
        ("0.25", ask((100, 84, 2), "and", (300, 200), seed=6)),
        ("0.4", ask((300, 200), (100, 120, 3), budget=0.4, seed=7)),
    ]


def test_equals_hf_fed_what_is_to_be_kept(
    llm: LLM,
    reference: InternVLReference,
    model_type: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One batch of all kinds, then one after another, in chunks that cut images."""
    (model,) = llm.apply_model(lambda model: model)
    embed = model.embed_input_ids
    lengths: set[int] = set()

    def note(input_ids: Any, multimodal_embeddings: Any = None, **options: Any) -> Any:
        lengths.update(len(rows) for rows in multimodal_embeddings or [])
        return embed(input_ids, multimodal_embeddings, **options)

    monkeypatch.setattr(model, "embed_input_ids", note)
    asked = requests(model_type)
    expected = [reference.generate(request, rho, MAX_TOKENS) for rho, request in asked]
    assert len({tuple(answer) for answer in expected}) == len(expected)
    assert generate(llm, *(request for _, request in asked)) == expected
    whole = {
        r.get_num_embeds()
        for _, request in asked
        for ranges in processed(llm, request)["mm_placeholders"].values()
        for r in ranges
    }
    assert lengths - whole, "no image was cut"

    llm.reset_prefix_cache()
    for right, (_, request) in zip(expected, asked, strict=True):
        assert generate(llm, request) == [right]


def test_another_choice_of_cells_is_seen(
    llm: LLM, reference: InternVLReference, model_type: str
) -> None:
    """What the test above compares is sensitive to what is kept."""
    asked = [internvl_prompt(model_type, (252, 168), seed=seed) for seed in range(3)]
    right = [reference.generate(one, "0.25", MAX_TOKENS) for one in asked]
    assert generate(llm, *asked) == right
    for other in (-1, 0):
        assert right != [
            reference.generate(one, "0.25", MAX_TOKENS, final_layer=other)
            for one in asked
        ]


def test_prefix_cache_keeps_budgets_apart(
    llm: LLM, reference: InternVLReference, model_type: str
) -> None:
    """One image, two budgets, again and again; hits are counted."""
    budgets = ("0.25", "0.5")
    asked = {
        rho: internvl_prompt(model_type, (252, 168), budget=float(rho), seed=50)
        for rho in budgets
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


@pytest.mark.parametrize(
    "budget", [1.0, pytest.param(None, marks=pytest.mark.matrix)], ids=["1.0", "unset"]
)
def test_without_a_budget_everything_is_stocks(
    make_internvl: WriteInternVLCheckpoint,
    make_engine: MakeEngine,
    processes: Processes,
    llm: LLM,
    model_type: str,
    budget: float | None,
) -> None:
    """Same placeholders, hashes and logits, bit for bit."""
    checkpoint, options = make_internvl(model_type), options_of(model_type)
    make = partial(internvl_prompt, model_type)
    stock = processes(
        STOCK,
        answer,
        str(checkpoint),
        [(media, None) for media in MEDIA],
        STOCK_TOKENS,
        make=make,
        **options,
    )
    assert len(stock["outputs"][0]["logits"][0]) > 256
    ours = make_engine(checkpoint, **options) if budget is None else llm
    ours.reset_prefix_cache()
    asked = [make(*media, budget=budget) for media in MEDIA]
    assert told_apart(answers(ours, asked, STOCK_TOKENS)) == told_apart(stock)


def told_apart(found: dict[str, list[Any]]) -> dict[str, list[Any]]:
    """With placeholders as numbers; vLLM's have a tensor in them, of which no two can
    be compared."""
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


def batched(items: list[Any], key: str) -> dict[str, torch.Tensor]:
    """Processed images as vLLM hands them to the model."""
    fields = [name for name in items[0] if name not in (key, "image_token_id")]
    return {
        key: torch.cat([item[key].data for item in items]),
        "image_token_id": items[0]["image_token_id"].data,
        **{name: torch.stack([i[name].data for i in items]) for name in fields},
    }


def test_what_is_kept_is_the_top_of_hfs_attention(
    llm: LLM, reference: InternVLReference, model_type: str
) -> None:
    """Of images of several grids in one forward of the tower: cells, attention and
    features."""
    request = internvl_prompt(model_type, (252, 168), (84, 84), (90, 260), budget=0.3)
    items = processed(llm, request)["mm_kwargs"]["image"]
    (model,) = llm.apply_model(lambda model: model)
    layouts = [item_layout(model.config, item) for item in items]
    counts = [int(item["num_kept"].data) for item in items]
    pixels = [item[model.pixels_key].data for item in items]
    with torch.inference_mode():
        features, observations = model.observe(pixels, layouts)
        _, selections = model.select(pixels, layouts, counts)
    rows = features.split([layout.num_partitions for layout in layouts])
    for number, image in enumerate(request["multi_modal_data"]["image"]):
        encoded = reference.encode(reference.pixels(image))
        seen = observations[number]
        for found, right in (
            (seen.init_attention, encoded.attention[0]),
            (seen.final_attention, encoded.attention[-2]),
            (rows[number], encoded.rows),
        ):
            torch.testing.assert_close(found, right, rtol=1e-3, atol=1e-3)
        kept = reference.kept(encoded, reference.grid(image), "0.3")
        assert selections[number].cells.tolist() == kept
        assert len(kept) == counts[number]


def test_images_whole_and_pruned_in_one_call_under_a_bound(
    llm: LLM, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In their order, in as many forwards of the tower as memory was planned for."""
    request = internvl_prompt(
        model_type, (252, 168), (168, 84), (84, 252), budget=0.3, seed=9
    )
    items = processed(llm, request)["mm_kwargs"]["image"]
    (model,) = llm.apply_model(lambda model: model)

    def embed(whole: list[bool], chosen: slice = slice(None)) -> list[torch.Tensor]:
        inputs = batched(items[chosen], model.pixels_key)
        own = torch.tensor(whole[chosen])
        all_cells = inputs["image_num_patches"] * 36
        inputs["num_kept"] = torch.where(own, all_cells, inputs["num_kept"])
        with torch.inference_mode():
            return model.embed_multimodal(**inputs | {"is_undropped": own})

    forwards: list[int] = []
    tower = getattr(model, model.tower_name)
    hook = tower.register_forward_pre_hook(
        lambda *_: forwards.append(1), with_kwargs=False
    )
    monkeypatch.setattr(model, "max_cells_per_forward", 1000)
    together = embed([False, True, False])
    assert len(forwards) == 2
    monkeypatch.setattr(model, "max_cells_per_forward", 60)
    apart = embed([False, True, False])
    assert len(forwards) == 2 + 3
    hook.remove()
    assert [len(rows) for rows in together] == [75, 108, 43]
    for image, rows in enumerate(together):
        torch.testing.assert_close(rows, apart[image])
        (alone,) = embed([False, True, False], slice(image, image + 1))
        torch.testing.assert_close(rows, alone)


def test_every_selector_keeps_its_count(
    llm: LLM, model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Methods that look at features and keys, and those that combine rows, too."""
    request = internvl_prompt(model_type, (252, 168), (40, 40), budget=0.3, seed=3)
    items = processed(llm, request)["mm_kwargs"]["image"]
    (model,) = llm.apply_model(lambda model: model)
    width = model.config.text_config.hidden_size
    sums: dict[str, float] = {}
    for name in SELECTORS:
        monkeypatch.setattr(model, "selector", make_selector(name))
        with torch.inference_mode():
            rows = model.embed_multimodal(**batched(items, model.pixels_key))
        assert [tuple(own.shape) for own in rows] == [(75, width), (10, width)]
        assert all(own.isfinite().all() for own in rows)
        sums[name] = round(float(rows[0].double().sum()), 3)
    # Half of 75 tokens fill the thumbnail, so that more of them cannot go there.
    assert sums.pop("thumbnail") == sums["hired"]
    assert len({*sums.values()}) == len(sums), sums


@pytest.mark.parametrize("size", [(252, 168), (84, 84), (90, 260)])
def test_inspect_keeps_what_the_engine_keeps(
    llm: LLM,
    make_internvl: WriteInternVLCheckpoint,
    model_type: str,
    size: tuple[int, int],
) -> None:
    (model,) = llm.apply_model(lambda model: model)
    requests = {
        rho: internvl_prompt(model_type, size, seed=4, budget=rho)
        for rho in (0.1, 0.3, 0.7)
    }
    check_kept_as_by_engine(
        llm,
        make_internvl(model_type),
        requests,
        lambda item: [item[model.pixels_key].data],
    )


def test_ready_made_embeddings_pass_through(
    llm: LLM, reference: InternVLReference, model_type: str
) -> None:
    """Of different lengths in one call."""
    (model,) = llm.apply_model(lambda model: model)
    image = internvl_prompt(model_type, (252, 168))["multi_modal_data"]["image"][0]
    embeddings = [reference.embeddings(image, rho) for rho in ("0.1", "0.2")]
    for given, own in zip(
        model.embed_multimodal(image_embeds=embeddings), embeddings, strict=True
    ):
        assert torch.equal(given, own)


def test_lora_token_counts_are_the_towers_and_the_projectors(
    llm: LLM, model_type: str
) -> None:
    if model_type == "internvl":
        pytest.skip("vLLM adapts no tower of this format")
    (model,) = llm.apply_model(lambda model: model)
    items = []
    for budget in (0.2, 1.0):
        request = internvl_prompt(model_type, (252, 168), budget=budget)
        (item,) = processed(llm, request)["mm_kwargs"]["image"]
        items.append((item, batched([item], model.pixels_key)))
    layer = model.vision_model.encoder.layers[0].mlp
    check_lora_token_counts(model, layer, model.mlp1, items)
