"""A real `vllm serve` with the commands of the README, and what it reports."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from openai import OpenAI
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.hostile import SILENCE, run_campaign
from benchmarks.hostile_requests import attacks
from benchmarks.server import as_url, data_url
from benchmarks.soak import mixture, soak
from tests.conftest import ARCHITECTURES, WriteCheckpoint
from tests.e2e.server import Server, expected_counters, serving
from tests.engine import noise_image

COMMANDS = {
    "llava_next": "vllm serve --model llava-next --hf-overrides hired_budget=0.2",
    "llava": "vllm serve llava-next --hf-overrides "
    "hired_budget=0.2,hired_detail_low=0.05,hired_detail_high=0.15 "
    # Two processes, whose counters come together.
    "--api-server-count 2",
}
"""By architecture: the literal line, which vLLM calls deprecated, and vLLM's form."""

OPTIONS = (
    "--trust-request-mm-kwargs --max-model-len 1024 --dtype float32 --enforce-eager "
    "--max-num-batched-tokens 1024 --max-num-seqs 8 --limit-mm-per-prompt.image 3 "
    # A KV cache of one long prompt, so that many at once preempt each other.
    "--block-size 32 --num-gpu-blocks-override 34"
)
DASHBOARD = Path(__file__).parents[2] / "docs/dashboards/vllm-hired.json"


@pytest.fixture(scope="module", params=COMMANDS)
def server(
    make_checkpoint: WriteCheckpoint,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[Server]:
    checkpoint = make_checkpoint(**ARCHITECTURES[request.param])
    folder = tmp_path_factory.mktemp("server")
    (folder / "llava-next").symlink_to(checkpoint)
    command = f"{COMMANDS[request.param]} {OPTIONS}"
    with serving(command, folder, checkpoint) as server:
        yield server


SQUARE, WIDE = noise_image(112, 112), noise_image(112, 56)
IMAGE, OTHER = as_url(SQUARE), as_url(WIDE)


def test_metrics_of_known_requests(server: Server) -> None:
    """Exact numbers; the first test of its server, which has profiled and warmed up."""
    names = ("images", "visual_tokens_kept", "visual_tokens_dropped")
    assert {server.counters()[f"{name}_total"] for name in names} == {0}

    at_tenth = {"mm_processor_kwargs": {"hired_budget": 0.1}}
    for _ in range(3):  # the second and third from the cache
        server.prompt_tokens(IMAGE)
    server.prompt_tokens(IMAGE, OTHER)
    server.prompt_tokens(IMAGE, n=2, temperature=1.0)
    server.prompt_tokens(OTHER, **at_tenth)
    # A token a character: with an image it is too long, without one it is not.
    almost = "x" * (1016 - server.prompt_tokens(prompt=""))
    refused = (
        server.chat(IMAGE, prompt=almost),
        server.chat(IMAGE, mm_processor_kwargs={"hired_budget": 0.9}),
        server.chat(IMAGE, prompt="long " * 1000),
        server.chat(data_url(b"no image")),
    )
    assert [response.status_code for response in refused] == [400] * 4

    # The image that makes a prompt too long has been processed before it is refused.
    kept = [server.kept(SQUARE)] * 6 + [server.kept(WIDE), server.kept(WIDE, "0.1")]
    stock = 6 * server.stock(SQUARE) + 2 * server.stock(WIDE)
    assert server.counters() == expected_counters(kept, stock)


def test_the_dashboard_asks_for_what_the_server_shows(server: Server) -> None:
    panels = json.loads(DASHBOARD.read_text())["panels"]
    asked = set(re.findall(r"vllm(?::|_hired_)\w+", json.dumps(panels)))
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    shown = {
        sample.name
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }
    assert len(asked) > 15
    assert asked <= shown


def test_usage_shows_the_reduced_prompt(server: Server) -> None:
    text = server.prompt_tokens()
    assert server.prompt_tokens(IMAGE) == text + server.kept(SQUARE)
    both = server.kept(SQUARE) + server.kept(WIDE)
    assert server.prompt_tokens(IMAGE, OTHER) == text + both


def test_a_request_sets_a_smaller_budget(server: Server) -> None:
    text = server.prompt_tokens()
    for budget in ("0.1", "0.2", "0.05", "0.001"):
        tokens = server.prompt_tokens(
            IMAGE, mm_processor_kwargs={"hired_budget": float(budget)}
        )
        assert tokens == text + server.kept(SQUARE, budget)


def test_a_budget_for_each_image(server: Server) -> None:
    text = server.prompt_tokens()
    kwargs = {"hired_budget": [0.1, None]}
    both = server.kept(SQUARE, "0.1") + server.kept(WIDE)
    assert server.prompt_tokens(IMAGE, OTHER, mm_processor_kwargs=kwargs) == text + both


DETAILS = {"low": "0.05", "high": "0.15", "auto": "0.2", "original": "0.2", None: "0.2"}
"""`image_url.detail` -> budget, on the server that has such settings."""


def test_openais_client_sets_details(server: Server) -> None:
    """As its users do, with no field of vLLM's: chat completions and responses, whole
    and streamed, images of different detail in one prompt."""
    # Its types know no dictionaries for messages that are put together here.
    client: Any = OpenAI(base_url=f"{server.url}/v1", api_key="none")
    (model,) = client.models.list().data
    has_details = server.hf_config.model_type == "llava"

    def ask(api: str, details: list[str | None], is_stream: bool) -> int:
        given = [{} if detail is None else {"detail": detail} for detail in details]
        images = [as_url(noise_image(112, 112, seed)) for seed in range(len(given))]
        if api == "chat":
            content: Any = [
                {"type": "image_url", "image_url": {"url": url, **own}}
                for url, own in zip(images, given, strict=True)
            ]
            message = {"role": "user", "content": content}
            answer: Any = client.chat.completions.create(
                model=model.id,
                messages=[message],
                max_tokens=2,
                stream=is_stream,
                **({"stream_options": {"include_usage": True}} if is_stream else {}),
            )
            usage = ([*answer][-1] if is_stream else answer).usage
            return int(usage.prompt_tokens)
        content = [
            {"type": "input_image", "image_url": url, **own}
            for url, own in zip(images, given, strict=True)
        ]
        answer = client.responses.create(
            model=model.id,
            input=[{"role": "user", "content": content}],
            max_output_tokens=2,
            stream=is_stream,
        )
        last = [*answer][-1].response if is_stream else answer
        return int(last.usage.input_tokens)

    counted = server.counters()
    text = {
        (api, images): ask(api, [None] * images, False)
        - images * server.kept(noise_image(112, 112))
        for api in ("chat", "responses")
        for images in (1, 2)
    }
    asked: list[list[str | None]] = [
        ["low"],
        ["high"],
        ["auto"],
        ["original"],
        ["low", "high"],
        [None, "low"],
        ["high", "auto"],
    ]
    for api in ("chat", "responses"):
        for place, details in enumerate(asked):
            kept = [
                server.kept(noise_image(112, 112), DETAILS[d] if has_details else "0.2")
                for d in details
            ]
            tokens = ask(api, details, is_stream=place % 2 == 0)
            assert tokens == text[api, len(details)] + sum(kept), (api, details)
    images = 2 * (sum(map(len, asked)) + 3)
    now = server.counters()
    assert now["images_total"] - counted["images_total"] == images


def test_a_requests_budget_goes_before_details(server: Server) -> None:
    part = {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}}
    body: dict[str, Any] = {
        "messages": [{"role": "user", "content": [part]}],
        "max_tokens": 2,
    }
    found = {}
    for budget in (None, 0.1):
        kwargs = {} if budget is None else {"hired_budget": budget}
        response = requests.post(
            f"{server.url}/v1/chat/completions",
            json=body | {"mm_processor_kwargs": kwargs},
            timeout=60,
        )
        assert response.status_code == 200, response.text
        found[budget] = response.json()["usage"]["prompt_tokens"]
    low = "0.05" if server.hf_config.model_type == "llava" else "0.2"
    difference = server.kept(SQUARE, low) - server.kept(SQUARE, "0.1")
    assert found[None] - found[0.1] == difference


BAD_BUDGETS = ["0", "-0.1", "0.3", "1.0", "2", "NaN", "Infinity", "true", '"0.2"', "[]"]


@pytest.mark.parametrize("value", BAD_BUDGETS)
def test_bad_budgets_are_400_and_the_engine_lives(server: Server, value: str) -> None:
    body = (
        '{"max_tokens": 2, "mm_processor_kwargs": {"hired_budget": VALUE}, "messages":'
        '[{"role": "user", "content": [{"type": "image_url", "image_url":'
        '{"url": "IMAGE"}}]}]}'
    )
    response = requests.post(
        f"{server.url}/v1/chat/completions",
        data=body.replace("VALUE", value).replace("IMAGE", IMAGE),
        headers={"Content-Type": "application/json"},
        timeout=60,
    )
    assert response.status_code == 400, response.text
    if value not in ("NaN", "Infinity"):  # no JSON: vLLM may refuse it before us
        assert "hired_budget" in response.text
        assert "(0, " in response.text
    assert server.prompt_tokens(IMAGE) > 0


@pytest.mark.parametrize(
    ("kwargs", "said"),
    [
        ({"image_std": [1e-45] * 3}, "after normalisation the pixels"),
        ({"rescale_factor": 1e308}, "after normalisation the pixels"),
        ({"size": {"shortest_edge": 10**6}}, "leave crop_size"),
        ({"image_grid_pinpoints": [[56, 56]]}, "leave crop_size"),
    ],
)
def test_processor_kwargs_that_would_harm_others_are_400(
    server: Server, kwargs: dict[str, Any], said: str
) -> None:
    response = server.chat(IMAGE, mm_processor_kwargs=kwargs)
    assert response.status_code == 400, response.text
    assert said in response.text
    assert server.prompt_tokens(IMAGE) > 0


def test_a_name_used_for_two_images(server: Server) -> None:
    """vLLM answers both from the first, and no counter stands in the way."""
    for image in (IMAGE, as_url(noise_image(100, 20)), IMAGE):
        response = server.chat(image, uuid="the same name")
        assert response.status_code == 200, response.text
    assert server.prompt_tokens(IMAGE) > 0


def test_other_settings_are_not_a_requests(server: Server) -> None:
    response = server.chat(IMAGE, mm_processor_kwargs={"hired_alpha": 0.1})
    assert response.status_code == 400
    assert "takes hired_budget alone" in response.text


@pytest.mark.parametrize("size", [(3000, 1), (1, 3000)])
def test_images_without_a_valid_patch_are_400(
    server: Server, size: tuple[int, int]
) -> None:
    response = server.chat(as_url(Image.new("RGB", size)))
    if server.hf_config.model_type == "llava":  # crops every image to a square
        assert response.status_code == 200
        return
    assert response.status_code == 400
    assert "too long and thin" in response.text
    assert server.prompt_tokens(IMAGE) > 0


@pytest.mark.parametrize("keep", [0, 20, 500])
def test_broken_images_are_400(server: Server, keep: int) -> None:
    png = base64.b64decode(IMAGE.partition(",")[2])
    response = server.chat(data_url(png[:keep]))
    assert response.status_code in (400, 422), response.text
    assert server.prompt_tokens(IMAGE) > 0


STOCK_FAILS = {"broken images", "guided output"}
"""Kinds of requests of which vLLM itself answers some with 500: images that claim more
pixels than PIL allows, and schemas whose grammar its backend cannot follow."""


def test_a_short_campaign_of_hostile_requests(server: Server) -> None:
    """`benchmarks.hostile` has a longer one, and what stock says."""
    width = server.hf_config.text_config.hidden_size
    drawn = attacks(104, seed=1, width=width)
    found = run_campaign(server, drawn)
    assert {drawn[i][0] for i in found.said} <= STOCK_FAILS, found.said
    assert SILENCE not in found.statuses
    assert found.healthy == [True, True]
    assert found.lived


def test_a_short_soak(server: Server) -> None:
    """Many at once answer as each alone; `benchmarks.soak` has a longer one."""
    bodies = mixture(24, seed=1, budgets=(0.05, 0.1, 0.2))
    found = soak(server, bodies, rounds=1, seed=1)
    assert found["unlike"] == [[]]
    # Images of LLaVA-1.5 are too small to fill this KV cache.
    if server.hf_config.model_type == "llava_next":
        assert found["preemptions"] > 0
