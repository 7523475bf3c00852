"""What a server says of its images in each family that is asked in the same way."""

from collections.abc import Callable
from typing import Any

from PIL import Image

from benchmarks.server import as_url
from tests.e2e.server import Server, expected_counters

COMMAND = (
    "vllm serve model --hf-overrides hired_budget=0.2 --trust-request-mm-kwargs "
    "--max-model-len 1024 --dtype float32 --enforce-eager --max-num-batched-tokens 256 "
    "--max-num-seqs 8 --limit-mm-per-prompt.image 3 --limit-mm-per-prompt.video 1"
)
"""Of a checkpoint in the folder `model`."""

Expected = Callable[[Image.Image, str], int]
"""An image and a budget -> how many tokens it keeps."""


def check_metrics(
    server: Server, photo: Image.Image, strip: Image.Image, expected: Expected
) -> None:
    """Exact numbers of known requests, the first of their server."""
    for _ in range(2):  # the second from the cache
        server.prompt_tokens(as_url(photo))
    server.prompt_tokens(as_url(photo), as_url(strip))
    tenth: dict[str, Any] = {"mm_processor_kwargs": {"hired_budget": 0.1}}
    server.prompt_tokens(as_url(photo), **tenth)
    kept = [expected(photo, "0.2")] * 3
    kept += [expected(strip, "0.2"), expected(photo, "0.1")]
    stock = 4 * expected(photo, "1") + expected(strip, "1")
    assert server.counters() == expected_counters(kept, stock)


def check_usage(
    server: Server,
    photo: Image.Image,
    strip: Image.Image,
    expected: Expected,
    beside: int,
) -> None:
    """`usage` shows the reduced prompt.

    Args:
        server: of the family.
        photo: an image.
        strip: another.
        expected: of the family.
        beside: tokens of the prompt of two images that are not theirs.
    """
    for budget in ("0.2", "0.1", "0.001"):
        kwargs = {"hired_budget": float(budget)}
        found = server.prompt_tokens(
            as_url(photo), as_url(strip), mm_processor_kwargs=kwargs
        )
        assert found == beside + expected(photo, budget) + expected(strip, budget)


def check_bad_budget(server: Server, photo: Image.Image, value: Any) -> None:
    """HTTP 400, and the engine lives."""
    kwargs = {"hired_budget": value}
    response = server.chat(as_url(photo), mm_processor_kwargs=kwargs)
    assert response.status_code == 400, response.text
    assert "hired_budget" in response.text
    assert server.prompt_tokens(as_url(photo)) > 0
