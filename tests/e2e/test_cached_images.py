"""Images that come again: under a name of the client's, or encoded a second time."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from vllm import LLM, SamplingParams

from tests.engine import ENGINE_OPTIONS, prompt
from tests.reference import Reference
from tests.test_metrics import counted
from vllm_hired.engine.capture import capture
from vllm_hired.engine.models import partitions
from vllm_hired.layouts import image_layout
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.towers.observation import Quantity

MAX_TOKENS = 8


def generate(llm: LLM, request: dict[str, Any]) -> Any:
    sampling = SamplingParams(max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True)
    (output,) = llm.generate([request], sampling, use_tqdm=False)
    return output


def named(name: str, *sizes: tuple[int, int]) -> dict[str, Any]:
    uuids = {"image": [f"{name} {i}" for i in range(len(sizes))]}
    return prompt(*sizes, budget=0.9) | {"multi_modal_uuids": uuids}


def test_a_name_used_for_two_images(any_engine: LLM, reference: Reference) -> None:
    """vLLM answers from the first image, and we count what is served; an honest
    request after it is answered."""
    (first,) = named("again", (112, 112))["multi_modal_data"]["image"]
    with counted() as counts:
        generate(any_engine, named("again", (112, 112)))
    kept = counts["kept"]
    assert counts == {
        "images": 1,
        "kept": kept,
        "dropped": reference.layout(first).stock_tokens - kept,
    }
    with counted() as again:
        generate(any_engine, named("again", (100, 20)))
    assert again == counts
    nothing_sent = named("again", (100, 20))
    nothing_sent["multi_modal_data"] = {"image": [None]}
    with counted() as by_name_alone:
        generate(any_engine, nothing_sent)
    assert by_name_alone == counts
    with counted() as honest:
        generate(any_engine, prompt((60, 60)))
    assert honest["images"] == 1


NOISE = 2.0**-5
"""Relative; sixteen times that of bfloat16, so that a few images show what it does."""


def test_near_ties_between_two_encodings(
    engine: LLM, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An image is encoded twice with scores that differ by rounding, the second time
    for the rows alone that the prefix cache does not hold.

    What cannot change is the count and the place of each row. What can: each patch
    that only one of the two encodings keeps may be there twice, or not at all. The
    answer is that of the rows that came together.
    """
    reference = Reference(checkpoint)
    generator = torch.Generator().manual_seed(0)
    kept: list[list[int]] = []

    @contextmanager
    def capture_with_noise(
        tower: Any, readings: Any
    ) -> Iterator[dict[Quantity, Tensor]]:
        with capture(tower, readings) as measured:
            yield measured
        for name, score in measured.items():
            noise = torch.rand(score.shape, generator=generator) * 2 - 1
            measured[name] = score * (1 + NOISE * noise)

    monkeypatch.setattr(partitions, "capture", capture_with_noise)
    (model,) = engine.apply_model(lambda model: model)
    select = model.select

    def select_and_note(*args: Any) -> Any:
        features, selections = select(*args)
        kept.extend(one.cells.tolist() for one in selections)
        return features, selections

    monkeypatch.setattr(model, "select", select_and_note)
    layout = image_layout(model.config, 112, 112)
    sequence = index_tables(layout, torch.device("cpu")).sequence.tolist()
    exchanged = 0
    for seed in range(8):
        request = prompt((112, 112), budget=0.35, seed=900 + seed)
        request["prompt"] = "<image>?"
        (image,) = request["multi_modal_data"]["image"]
        kept.clear()
        generate(engine, request)
        engine.llm_engine.reset_encoder_cache()
        output = generate(engine, request)
        first, second = kept
        assert len(first) == len(second) == 112

        token = model.config.image_token_index
        start = (output.prompt_token_ids or []).index(token)
        cut = (output.num_cached_tokens or 0) - start
        assert ENGINE_OPTIONS["block_size"] < cut < len(first)
        together = first[:cut] + second[cut:]
        only_one = len({*first} - {*second})
        exchanged += only_one
        assert len(together) - len({*together}) <= only_one
        # Both parts are in sequence order, so only the seam can go back.
        for part in (together[:cut], together[cut:]):
            assert part == sorted(part, key=sequence.index)

        rows = reference.embeddings_of(image, together)
        expected = reference.generate_from(request["prompt"], [rows], MAX_TOKENS)
        assert list(output.outputs[0].token_ids) == expected
    assert exchanged > 0, "no near tie fell otherwise: the test shows nothing"
