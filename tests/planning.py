"""What tests of `vllm-hired plan` ask of every family."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from tests.front_end import FrontEnd
from vllm_hired.tools import checkpoint as checkpoint_module
from vllm_hired.tools.cli import main
from vllm_hired.tools.config_file import read_config_file
from vllm_hired.tools.cost import llm_flops

FEW_EXAMPLES = settings(
    max_examples=10,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
"""Each of many images."""


def plan(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict[str, Any]]:
    assert main(["plan", *arguments, "--json"]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    return rows


def check_counts(
    capsys: pytest.CaptureFixture[str],
    front_end: FrontEnd,
    sizes: list[tuple[int, int]],
    budget: float,
    options: tuple[str, ...] = (),
    limits: dict[str, int] | None = None,
) -> None:
    """Whole and at a budget, images get as many placeholders as `plan` says.

    Args:
        capsys: of the test.
        front_end: of the engine.
        sizes: (width, height) of images.
        budget: of the engine's requests.
        options: further ones of `plan`.
        limits: the same of requests, as processor kwargs.
    """
    names = [f"{width}x{height}" for width, height in sizes]
    arguments = ["--size", *names, "--budget", str(budget), *options]
    rows = plan(capsys, front_end.config.model, *arguments)
    by_size = {(row["size"], row["budget"]): row["kept tokens"] for row in rows}
    for size, name in zip(sizes, names, strict=True):
        image = Image.new("RGB", size)
        for asked, label in ((1.0, "stock"), (budget, budget)):
            inputs = front_end(image, budget=asked, **limits or {})
            assert front_end.placeholders(inputs) == [by_size[name, label]], name


def count_flops(call: Callable[[], Any]) -> int:
    """Of the matrix products in `call`."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        call()
    return int(counter.get_total_flops())


def check_llm_flops(model: Any, positions: Tensor) -> None:
    """Matrix products of HF's LLM; its attention is not causal, ours is.

    Args:
        model: HF's, of images and text.
        positions: of tokens, as its LLM takes them; the last dimension is theirs.
    """
    language, text = model.model.language_model, model.config.text_config
    tokens = positions.shape[-1]
    embeddings = torch.rand(1, tokens, text.hidden_size)
    inputs = {"inputs_embeds": embeddings, "position_ids": positions}
    found = count_flops(
        lambda: model.lm_head(language(**inputs).last_hidden_state[:, -1])
    )
    future = tokens * tokens - tokens * (tokens + 1) // 2
    heads = text.num_attention_heads
    width = heads * getattr(text, "head_dim", text.hidden_size // heads)
    # Some releases of transformers compute the rotary angles as a matrix product.
    angles = count_flops(lambda: language.rotary_emb(embeddings, positions))
    assert found == (
        llm_flops(text, tokens) + 4 * future * width * text.num_hidden_layers + angles
    )


def check_reads_what_transformers_reads(
    capsys: pytest.CaptureFixture[str], folder: str
) -> None:
    """Every figure, with and without the short way."""
    assert read_config_file(folder) is not None
    short = plan(capsys, folder, "--size", "400x300")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint_module, "read_config_file", lambda model: None)
        assert plan(capsys, folder, "--size", "400x300") == short


def check_refused(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    """In one line, with status 2 and no table."""
    assert main(["plan", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vllm-hired: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
