"""A real server whose budgets give way, under a load that is held still.

vLLM's scheduler is paused, as for an update of weights, so that requests stay
unfinished until the test lets them go.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from time import sleep
from typing import Any

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server import CHAT, as_url, chat_body
from tests.conftest import WriteCheckpoint
from tests.e2e.server import Server, serving
from tests.engine import noise_image

LADDER = ("1.0", "0.585", "0.342", "0.2")
COMMAND = (
    "VLLM_SERVER_DEV_MODE=1 VLLM_LOGGING_LEVEL=DEBUG vllm serve llava-next "
    "--hf-overrides hired_budget=0.2,hired_max_budget=1.0,hired_detail_low=0.25,"
    "hired_adaptive=true,hired_adaptive_queue=2 --trust-request-mm-kwargs "
    "--max-model-len 1024 --dtype float32 --enforce-eager --max-num-seqs 8 "
    "--limit-mm-per-prompt.image 3 --num-gpu-blocks-override 256"
)
SIZE = (112, 112)
IMAGES = [as_url(noise_image(*SIZE, seed)) for seed in range(16)]


@pytest.fixture(scope="module")
def server(
    make_checkpoint: WriteCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    checkpoint = make_checkpoint()
    folder = tmp_path_factory.mktemp("server")
    (folder / "llava-next").symlink_to(checkpoint)
    with serving(COMMAND, folder, checkpoint) as server:
        yield server
    assert "hired_adaptive: budgets [0.2] for 1 images" in server.log.read_text()


def by_budget(server: Server) -> dict[str, float]:
    """Images on `/metrics` by the budget that the load chose."""
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    return {
        sample.labels["budget"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm_hired_adaptive_images_total"
    }


class Held:
    """Requests that stay unfinished: `with Held(server, text) as held: held.ask(...)`.

    Args:
        server: asked.
        text: tokens of a prompt beside its images.
    """

    def __init__(self, server: Server, text: int) -> None:
        self.server, self.text = server, text
        self.pool = ThreadPoolExecutor(32)

    def __enter__(self) -> "Held":
        self.post("/pause?mode=keep")
        return self

    def __exit__(self, *_: object) -> None:
        self.post("/resume")
        self.pool.shutdown()

    def post(self, path: str) -> None:
        requests.post(f"{self.server.url}{path}", timeout=60).raise_for_status()

    def ask(self, *bodies: dict[str, Any]) -> list[Future[int]]:
        """Sends requests of an image each, and waits until the server has them all.

        Returns:
            Their visual tokens, once they are let go.
        """
        seen = self.server.counters()["images_total"]
        asked = [self.pool.submit(self.visual_tokens, body) for body in bodies]
        while self.server.counters()["images_total"] < seen + len(bodies):
            assert not [each for each in asked if each.done()]
            sleep(0.05)
        return asked

    def visual_tokens(self, body: dict[str, Any]) -> int:
        response = requests.post(f"{self.server.url}{CHAT}", json=body, timeout=300)
        assert response.status_code == 200, response.text
        return int(response.json()["usage"]["prompt_tokens"]) - self.text


def results(asked: Sequence[Future[int]]) -> list[int]:
    return [each.result(timeout=300) for each in asked]


@pytest.mark.matrix
def test_budgets_give_way_and_come_back(server: Server) -> None:
    text = server.prompt_tokens()
    kept = {budget: server.kept(noise_image(*SIZE), budget) for budget in LADDER}
    assert len({*kept.values()}) == len(LADDER)
    assert by_budget(server) == dict.fromkeys(LADDER, 0)

    def alone(image: str, **options: Any) -> int:
        return server.prompt_tokens(image, **options) - text

    seen_idle, first, *others = IMAGES
    assert alone(seen_idle) == kept["1.0"]
    with Held(server, text) as held:
        burst = held.ask(*map(chat_body, [first, *others[:9]]))
        low = {"url": others[11], "detail": "low"}
        detail = chat_body(others[11])
        detail["messages"][0]["content"][0]["image_url"] = low
        # At least nine requests are unfinished, and six stand for the last step.
        known, new, with_number, with_detail = held.ask(
            chat_body(seen_idle),
            chat_body(others[10]),
            chat_body(others[12], mm_processor_kwargs={"hired_budget": 0.5}),
            detail,
        )
    tokens = results(burst)
    assert (max(tokens), min(tokens)) == (kept["1.0"], kept["0.2"])
    assert results([known, new]) == [kept["1.0"], kept["0.2"]]
    explicit = [server.kept(noise_image(*SIZE), budget) for budget in ("0.5", "0.25")]
    assert results([with_number, with_detail]) == explicit

    # The load has gone. What it chose stays, and new images get the ceiling.
    later = [alone(others[10]), alone(others[11]), alone(first)]
    assert later[:2] == [kept["0.2"], kept["1.0"]]
    assert later[2] == tokens[0]
    chosen = Counter([kept["1.0"], *tokens, kept["1.0"], kept["0.2"], *later])
    assert by_budget(server) == {budget: chosen[kept[budget]] for budget in LADDER}
