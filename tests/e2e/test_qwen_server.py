"""A real `vllm serve` with a Qwen-VL checkpoint: usage, budgets, limits, metrics."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from benchmarks.server import as_url
from tests.conftest import WriteQwenCheckpoint
from tests.e2e.family_server import (
    COMMAND,
    check_bad_budget,
    check_metrics,
    check_usage,
)
from tests.e2e.server import Server, serving
from tests.engine import noise_image
from tests.qwen import QwenFrontEnd

pytestmark = pytest.mark.matrix

PHOTO, STRIP = noise_image(448, 336), noise_image(600, 30)


@pytest.fixture(scope="module")
def front_end(make_qwen: WriteQwenCheckpoint) -> QwenFrontEnd:
    return QwenFrontEnd(make_qwen("qwen2_5_vl"))


@pytest.fixture(scope="module")
def server(
    make_qwen: WriteQwenCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    checkpoint: Path = make_qwen("qwen2_5_vl")
    folder = tmp_path_factory.mktemp("server")
    (folder / "model").symlink_to(checkpoint)
    with serving(COMMAND, folder, checkpoint) as server:
        yield server


def text_and_markers(server: Server, images: int) -> int:
    """Tokens of a prompt beside those of its images, of which each has two markers."""
    return server.prompt_tokens() + 2 * images


def test_metrics_of_known_requests(server: Server, front_end: QwenFrontEnd) -> None:
    """The first test of its server."""
    check_metrics(server, PHOTO, STRIP, front_end.expected)


def test_usage_shows_the_reduced_prompt(
    server: Server, front_end: QwenFrontEnd
) -> None:
    beside = text_and_markers(server, 2)
    check_usage(server, PHOTO, STRIP, front_end.expected, beside)


def test_a_requests_own_limits_of_pixels(
    server: Server, front_end: QwenFrontEnd
) -> None:
    limits = {"min_pixels": 28 * 28, "max_pixels": 28 * 28 * 50}
    assert server.prompt_tokens(
        as_url(PHOTO), mm_processor_kwargs=limits
    ) == text_and_markers(server, 1) + front_end.expected(PHOTO, "0.2", **limits)
    # Beyond what memory was planned for.
    more = {"min_pixels": 28 * 28 * 4000, "max_pixels": 28 * 28 * 5000}
    response = server.chat(as_url(PHOTO), mm_processor_kwargs=more)
    assert response.status_code == 400, response.text
    assert server.prompt_tokens(as_url(PHOTO)) > 0


@pytest.mark.parametrize("value", [0, 0.3, 1.0, True, "0.2", []])
def test_bad_budgets_are_400_and_the_engine_lives(server: Server, value: Any) -> None:
    check_bad_budget(server, PHOTO, value)


def test_images_too_thin_are_400(server: Server) -> None:
    response = server.chat(as_url(Image.new("RGB", (3000, 10))))
    assert response.status_code == 400, response.text
    assert server.prompt_tokens(as_url(PHOTO)) > 0
