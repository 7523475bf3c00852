"""A real `vllm serve`, and what its checkpoint says of counts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from PIL import Image
from transformers import AutoConfig

from benchmarks.server import CHAT, RunningServer, chat_body, running_server
from tests import oracle
from tests.reference import layout_of


@dataclass
class Server(RunningServer):
    """With what its checkpoint says of counts."""

    checkpoint: Path

    @cached_property
    def hf_config(self) -> Any:
        return AutoConfig.from_pretrained(self.checkpoint)

    def kept(self, image: Image.Image, budget: str = "0.2") -> int:
        """By the oracle."""
        return oracle.count(layout_of(self.hf_config, image), budget, None)

    def stock(self, image: Image.Image) -> int:
        return layout_of(self.hf_config, image).stock_tokens

    def counters(self) -> dict[str, float]:
        """Ours on `/metrics`, by their names without the prefix."""
        return {
            name.removeprefix("vllm_hired_"): value
            for name, value in self.metrics().items()
            if name.startswith("vllm_hired_")
            and not name.endswith(("_bucket", "_created"))
        }

    def chat(self, *images: str, **options: Any) -> requests.Response:
        """Asks what `chat_body` writes."""
        body = chat_body(*images, **options)
        return requests.post(f"{self.url}{CHAT}", json=body, timeout=60)

    def prompt_tokens(self, *images: str, **extra: Any) -> int:
        response = self.chat(*images, **extra)
        assert response.status_code == 200, response.text
        body = response.json()
        assert body["choices"][0]["message"]["content"] is not None
        return int(body["usage"]["prompt_tokens"])


def expected_counters(kept: list[int], stock: int) -> dict[str, float]:
    """After images of so many kept tokens each, and of `stock` without dropping."""
    return {
        "images_total": len(kept),
        "visual_tokens_kept_total": sum(kept),
        "visual_tokens_dropped_total": stock - sum(kept),
        "kept_tokens_per_image_count": len(kept),
        "kept_tokens_per_image_sum": sum(kept),
    }


@contextmanager
def serving(command: str, folder: Path, checkpoint: Path) -> Iterator[Server]:
    """A server that lives to the end and says what it serves."""
    with running_server(command, folder) as running:
        yield Server(**vars(running), checkpoint=checkpoint)
        assert running.process.poll() is None, "the server died"
    said = running.log.read_text()
    (upstream,) = AutoConfig.from_pretrained(checkpoint).architectures
    assert f"Hired{upstream}: hired_budget=0.2" in said
