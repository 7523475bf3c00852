"""A budget for each image: a list in a request, or OpenAI's `image_url.detail`."""

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from vllm import LLM
from vllm.exceptions import VLLMValidationError
from vllm.multimodal.cache import MultiModalProcessorOnlyCache
from vllm.renderers.base import BaseRenderer

from benchmarks.server import as_url
from tests import oracle
from tests.conftest import WriteCheckpoint, WriteQwenCheckpoint, expect_refusal
from tests.e2e.test_generation import MAX_TOKENS
from tests.engine import ENGINE_OPTIONS, noise_image
from tests.front_end import FrontEnd, num_kept
from tests.qwen import QwenFrontEnd, qwen_prompt
from tests.reference import layout_of
from tests.test_config import NUMBERS_REFUSED, hf_config
from tests.test_metrics import counted
from vllm_hired.config import HiredConfig
from vllm_hired.engine.detail import detail_budgets, wrap_render_chat

OVERRIDES = {"hired_budget": 0.2, "hired_max_budget": 1.0}
IMAGES = [noise_image(112, 112), noise_image(60, 165), noise_image(200, 50)]


@pytest.fixture(scope="module", params=["llava_next", "qwen3_vl"])
def front_end(
    make_checkpoint: WriteCheckpoint,
    make_qwen: WriteQwenCheckpoint,
    request: pytest.FixtureRequest,
) -> FrontEnd:
    options = {"limit_mm_per_prompt": {"image": 3}, "hf_overrides": OVERRIDES}
    if request.param == "llava_next":
        return FrontEnd(make_checkpoint(), **options)
    return QwenFrontEnd(make_qwen(request.param), **options)


def hashes(front_end: FrontEnd, *images: Image.Image, **given: Any) -> list[str]:
    found: list[str] = front_end(*images, **given)["mm_hashes"]["image"]
    return found


def test_each_image_is_hashed_as_in_a_request_of_its_own(front_end: FrontEnd) -> None:
    """Whatever the others' budgets; at 1.0 as stock vLLM hashes it."""
    alone = {
        budget: [hashes(front_end, image, budget=budget)[0] for image in IMAGES]
        for budget in (None, 0.1, 0.2, 0.4, 1.0)
    }
    assert alone[None] == alone[0.2]
    assert len({h for found in alone.values() for h in found}) == 4 * len(IMAGES)
    for budgets in ([0.1, 0.4, 0.1], [0.1, 1.0, None], [1.0] * 3, (0.4, 0.2, 0.1)):
        expected = [alone[budget][place] for place, budget in enumerate(budgets)]
        assert hashes(front_end, *IMAGES, budget=budgets) == expected


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[
        HealthCheck.differing_executors,
        HealthCheck.function_scoped_fixture,
    ],
)
@given(data=st.data())
def test_counts_cached_or_not(front_end: FrontEnd, data: st.DataObject) -> None:
    """Over one shared cache, in which some images of a request are already."""
    cache = MultiModalProcessorOnlyCache(front_end.config)
    percents = st.none() | st.integers(1, 100)
    for _ in range(3):
        images = data.draw(st.lists(st.sampled_from(IMAGES), min_size=1, max_size=3))
        given = [data.draw(percents) for _ in images]
        budgets = [None if percent is None else percent / 100 for percent in given]
        expected = [
            front_end.expected(image, f"{0.2 if budget is None else budget}")
            for image, budget in zip(images, budgets, strict=True)
        ]
        with counted() as counts:
            inputs = front_end(*images, budget=budgets, cache=cache)
        assert front_end.placeholders(inputs) == expected
        assert counts["images"] == len(images)
        assert counts["kept"] == sum(expected)
        plain = front_end(*images, budget=budgets)
        assert plain["mm_hashes"] == inputs["mm_hashes"]
        if any(budget != 1 for budget in budgets):
            assert num_kept(plain) == expected


def test_an_image_is_found_whatever_the_others_budget(front_end: FrontEnd) -> None:
    cache = MultiModalProcessorOnlyCache(front_end.config)
    front_end(*IMAGES[:2], budget=[0.1, 0.4], cache=cache)
    for budget, is_there in ((0.3, False), (0.4, True)):
        found = hashes(front_end, *IMAGES[:2], budget=[0.1, budget])
        assert cache.is_cached(found) == [True, is_there]


def test_names_of_images_are_hashed_with_their_budgets(front_end: FrontEnd) -> None:
    """A client's uuid stands for the image, and the budget still counts."""
    processor = front_end.processor

    def named(budget: object) -> list[str]:
        kwargs = {} if budget is None else {"hired_budget": budget}
        found: list[str] = processor(
            front_end.image_text * 2,
            processor.info.parse_mm_data({"image": IMAGES[:2]}),
            mm_uuid_items={"image": ["first", None]},
            hf_processor_mm_kwargs=kwargs,
        )["mm_hashes"]["image"]
        return found

    whole, mixed, tenth = named(1.0), named([1.0, 0.1]), named(0.1)
    assert whole[0] == "first" == mixed[0]
    assert mixed[1] == tenth[1] != whole[1]
    assert tenth[0] != "first"


def test_videos_are_hashed_as_without_a_budget(make_qwen: WriteQwenCheckpoint) -> None:
    """One that comes again at another budget is in the cache."""
    front_end = QwenFrontEnd(make_qwen("qwen2_5_vl"), hf_overrides=OVERRIDES)
    request = qwen_prompt((200, 150), (112, 96, 4))
    data = front_end.processor.info.parse_mm_data(request["multi_modal_data"])
    found = [
        front_end.processor(
            request["prompt"], data, hf_processor_mm_kwargs={"hired_budget": budget}
        )["mm_hashes"]
        for budget in (0.2, 0.1, [0.1], 1.0)
    ]
    assert len({mm_hashes["video"][0] for mm_hashes in found}) == 1
    assert len({mm_hashes["image"][0] for mm_hashes in found}) == 3


@pytest.mark.parametrize(
    ("budget", "said"),
    [
        ([], r"has 2 images; ask for a number in \(0, 1.0\], or for a list"),
        ([0.1], "has 2 images"),
        ([0.1, 0.1, 0.1], "has 2 images"),
        ([0.1, 0], r"hired_budget=0 is not allowed: a number in \(0, 1\]"),
        ([True, 0.1], "hired_budget=True is not allowed"),
        ([0.1, [0.1]], r"hired_budget=\[0.1\] is not allowed"),
        ([0.1, "0.1"], "hired_budget='0.1' is not allowed"),
        ({"0": 0.1}, "is not allowed"),
    ],
)
def test_lists_that_are_refused(front_end: FrontEnd, budget: Any, said: str) -> None:
    with pytest.raises(VLLMValidationError, match=said) as refusal:
        front_end(*IMAGES[:2], budget=budget)
    assert refusal.value.parameter == "hired_budget"


def test_one_budget_above_the_engines_is_refused(checkpoint: Path) -> None:
    front_end = FrontEnd(checkpoint, hf_overrides={"hired_budget": 0.2})
    with pytest.raises(VLLMValidationError, match=r"hired_max_budget=0\.2"):
        front_end(*IMAGES[:2], budget=[0.2, 0.3])


def test_settings_for_details() -> None:
    details = {"hired_detail_low": 0.1, "hired_detail_high": 0.4}
    given = HiredConfig.from_hf_config(hf_config(**OVERRIDES, **details))
    assert given.has_details
    assert given.detail_budget("low") == Fraction(1, 10)
    assert given.detail_budget("high") == Fraction(2, 5)
    assert given.detail_budget("original") == 1
    assert given.detail_budget("auto") is given.detail_budget(None) is None
    assert given.cache_key(given.budget) == HiredConfig.from_hf_config(
        hf_config(**OVERRIDES)
    ).cache_key(given.budget)
    half = HiredConfig.from_hf_config(hf_config(hired_detail_low=0.1))
    assert half.budget == 1
    assert half.detail_budget("high") is None
    assert not HiredConfig.from_hf_config(hf_config(**OVERRIDES)).has_details
    for key in details:
        for value in [0, *NUMBERS_REFUSED]:
            with expect_refusal(match=f"{key}=.* is not allowed"):
                HiredConfig.from_hf_config(hf_config(**{key: value}))
        with expect_refusal(match=f"{key}=0.3 .*must not exceed hired_max_budget=0.2"):
            HiredConfig.from_hf_config(hf_config(hired_budget=0.2, **{key: 0.3}))


def test_details_are_refused_where_a_chat_cannot_be_looked_through(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: Any, messages: Any) -> Any:
        raise AssertionError("only looked at")

    monkeypatch.setattr(BaseRenderer, "render_chat_async", other)
    FrontEnd(checkpoint, hf_overrides=OVERRIDES)
    overrides = OVERRIDES | {"hired_detail_high": 0.4}
    with expect_refusal(match=r"hired_detail_high=0\.4 .* has no BaseRenderer"):
        FrontEnd(checkpoint, hf_overrides=overrides)


HIRED = HiredConfig.from_hf_config(
    hf_config(**OVERRIDES, hired_detail_low=0.1, hired_detail_high=0.4)
)
URL = "data:image/png;base64,"


def image_part(detail: str | None = None, **more: Any) -> dict[str, Any]:
    own = {} if detail is None else {"detail": detail}
    return {"type": "image_url", "image_url": {"url": URL, **own}, **more}


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ([], None),
        (["text", {"type": "text", "text": "detail"}], None),
        ([image_part(), image_part("auto")], None),
        ([image_part("low")], [0.1]),
        ([image_part("auto"), "text", image_part("high")], [None, 0.4]),
        ([image_part("original"), image_part()], [1.0, None]),
        ([{"type": "input_image", "image_url": URL, "detail": "low"}], [0.1]),
        ([{"image_url": URL, "detail": "high"}, image_part("low")], [0.4, 0.1]),
        ([image_part("low", uuid="a"), {"image_url": None, "uuid": "b"}], [0.1, None]),
        (
            [{"type": "image_embeds", "image_embeds": ""}, image_part("low")],
            [None, 0.1],
        ),
        ([{"type": "video_url", "video_url": {"url": URL}}, image_part("low")], [0.1]),
    ],
)
def test_details_of_a_conversation(
    parts: list[Any], expected: list[float | None] | None
) -> None:
    system = {"role": "system", "content": "be brief"}
    other = {"role": "assistant", "content": None}
    messages = [system, {"role": "user", "content": parts}, other]
    assert detail_budgets(messages, HIRED) == expected
    apart = [{"role": "user", "content": [part]} for part in parts]
    assert detail_budgets(apart, HIRED) == expected


@pytest.mark.parametrize("detail", ["ultra", "", 3, ["low"]])
def test_other_details_are_client_errors(detail: Any) -> None:
    messages = [{"role": "user", "content": [image_part(detail)]}]
    with pytest.raises(VLLMValidationError, match='must be "low", "high"') as refusal:
        detail_budgets(messages, HIRED)
    assert refusal.value.parameter == "image_url.detail"


@pytest.fixture
def with_details(engine: LLM, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    """The shared engine, with settings for details."""
    info = engine.llm_engine.renderer.get_mm_processor().info
    details = {"detail_low": Fraction("0.1"), "detail_high": Fraction("0.4")}
    monkeypatch.setattr(info, "hired", replace(info.hired, **details))
    wrap_render_chat()
    yield engine
    engine.llm_engine.reset_prefix_cache()


def chat_part(image: Image.Image, detail: str | None) -> dict[str, Any]:
    own = {} if detail is None else {"detail": detail}
    return {"type": "image_url", "image_url": {"url": as_url(image), **own}}


def test_a_started_engine_answers_as_with_the_same_budgets(with_details: LLM) -> None:
    """Conversations of different details in one call; one image, found in the prefix
    cache whatever the other's detail."""
    sampling = with_details.get_default_sampling_params()
    sampling.temperature, sampling.max_tokens = 0, MAX_TOKENS
    budgets = {"low": 0.1, "high": 0.4, "original": 1.0, None: None}
    asked: list[list[str | None]] = [["low", "high"], [None, None], ["original", "low"]]

    def conversation(details: list[str | None]) -> list[dict[str, Any]]:
        images = zip(IMAGES[:2], details, strict=True)
        parts = [chat_part(image, detail) for image, detail in images]
        text = {"type": "text", "text": "What is this?"}
        return [{"role": "user", "content": [*parts, text]}]

    def chat(conversations: Any, **given: Any) -> list[Any]:
        return with_details.chat(conversations, sampling, use_tqdm=False, **given)

    together = chat([conversation(details) for details in asked])
    answers = set()
    for details, found in zip(asked, together, strict=True):
        with_details.llm_engine.reset_prefix_cache()
        (expected,) = chat(
            [conversation([None, None])],
            mm_processor_kwargs={"hired_budget": [budgets[d] for d in details]},
        )
        assert found.prompt_token_ids == expected.prompt_token_ids
        assert found.outputs[0].token_ids == expected.outputs[0].token_ids
        answers.add((len(expected.prompt_token_ids), *expected.outputs[0].token_ids))
        # A request's own budget goes before details.
        (own,) = chat(
            [conversation(details)], mm_processor_kwargs={"hired_budget": 0.3}
        )
        (same,) = chat(
            [conversation([None, None])], mm_processor_kwargs={"hired_budget": 0.3}
        )
        assert own.prompt_token_ids == same.prompt_token_ids
    assert len(answers) == len(asked)

    with_details.llm_engine.reset_prefix_cache()
    chat([conversation(["high", "low"])])
    (again,) = chat([conversation(["high", "high"])])
    hf_config: Any = with_details.llm_engine.model_config.hf_config
    first = again.prompt_token_ids.index(hf_config.image_token_index)
    end = first + oracle.count(layout_of(hf_config, IMAGES[0]), "0.4", None)
    block = ENGINE_OPTIONS["block_size"]
    assert again.num_cached_tokens >= end // block * block > 0
