"""A real `vllm serve` with an InternVL checkpoint: usage, budgets, limits, metrics."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.server import as_url
from tests.conftest import WriteInternVLCheckpoint
from tests.e2e.family_server import (
    COMMAND,
    check_bad_budget,
    check_metrics,
    check_usage,
)
from tests.e2e.server import Server, serving
from tests.engine import noise_image
from tests.internvl import InternVLFrontEnd

pytestmark = pytest.mark.matrix

PHOTO, STRIP = noise_image(252, 168), noise_image(600, 30)


@pytest.fixture(scope="module")
def front_end(make_internvl: WriteInternVLCheckpoint) -> InternVLFrontEnd:
    return InternVLFrontEnd(make_internvl("internvl"))


@pytest.fixture(scope="module")
def server(
    make_internvl: WriteInternVLCheckpoint, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    checkpoint: Path = make_internvl("internvl")
    folder = tmp_path_factory.mktemp("server")
    (folder / "model").symlink_to(checkpoint)
    with serving(COMMAND, folder, checkpoint) as server:
        yield server


def text_and_markers(server: Server, images: int) -> int:
    """Tokens of a prompt beside those of its images, of which each has two markers and
    a line's end."""
    return server.prompt_tokens() + 3 * images


def test_metrics_of_known_requests(server: Server, front_end: InternVLFrontEnd) -> None:
    """The first test of its server."""
    check_metrics(server, PHOTO, STRIP, front_end.expected)


def test_usage_shows_the_reduced_prompt(
    server: Server, front_end: InternVLFrontEnd
) -> None:
    beside = text_and_markers(server, 2)
    check_usage(server, PHOTO, STRIP, front_end.expected, beside)


def test_a_requests_own_limit_of_tiles(
    server: Server, front_end: InternVLFrontEnd
) -> None:
    limits = {"max_patches": 2}
    assert server.prompt_tokens(
        as_url(PHOTO), mm_processor_kwargs=limits
    ) == text_and_markers(server, 1) + front_end.expected(PHOTO, "0.2", **limits)
    # Beyond what memory was planned for.
    more = {"max_patches": 20}
    response = server.chat(as_url(noise_image(500, 400)), mm_processor_kwargs=more)
    assert response.status_code == 400, response.text
    assert server.prompt_tokens(as_url(PHOTO)) > 0


@pytest.mark.parametrize("value", [0, 0.3, 1.0, True, "0.2", []])
def test_bad_budgets_are_400_and_the_engine_lives(server: Server, value: Any) -> None:
    check_bad_budget(server, PHOTO, value)
