"""Whole generations of every selection method, against HF fed its oracle's rows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from vllm import LLM, SamplingParams

from tests.conftest import MakeEngine
from tests.engine import prompt
from tests.methods.oracle_image import Image
from tests.methods.oracles import (
    HALF,
    ORACLES,
    Rows,
    Seen,
    areas,
    ranked,
    within_partitions,
)
from tests.methods.reference import TOLERANCE, Answer, Images, as_answer, difference
from tests.methods.visionzip import keep as visionzip
from tests.processes import Processes
from tests.processes import answer as answer_apart
from tests.reference import Reference
from vllm_hired.config import SETTINGS
from vllm_hired.layouts import Layout
from vllm_hired.selectors import SELECTORS, make_selector, read_method
from vllm_hired.selectors.base import Selection, Selector
from vllm_hired.towers import Tower
from vllm_hired.towers.observation import Observation, Quantity

MAX_TOKENS = 8
SIZES = [(58, 150), (112, 100)]
"""Of the images of the one prompt, (width, height); no other test has these."""

EXAMPLE = Path(__file__).parents[2] / "examples/custom_selector"


class Watched(Selector):
    """A method, and all that it was given to look at."""

    def __init__(self, inner: Selector) -> None:
        self.inner = inner
        self.seen: list[Observation] = []

    def needs_on(self, tower: Tower) -> frozenset[Quantity]:
        return self.inner.needs_on(tower)

    def select(
        self, observation: Observation, layout: Layout, kept: int, alpha: Fraction
    ) -> Selection:
        self.seen.append(observation)
        return self.inner.select(observation, layout, kept, alpha)


@contextmanager
def serving(llm: LLM, name: str) -> Iterator[Watched]:
    """Makes `name` the method of a running engine, in its front end and in its worker.

    Its caches stay as they are: as between engines that share one, nothing but the
    hashes of the images keeps the methods apart.
    """
    (model,) = llm.apply_model(lambda model: model)
    info = llm.llm_engine.renderer.get_mm_processor().info
    before = model.hired, model.selector
    method = read_method(name, {}, SETTINGS)
    info.hired = model.hired = replace(model.hired, selector=name, method=method)
    model.selector = Watched(make_selector(name, method))
    try:
        yield model.selector
    finally:
        model.hired, model.selector = before
        info.hired = model.hired


def request(budget: str) -> dict[str, Any]:
    return prompt(*SIZES, budget=float(budget))


def answer(llm: LLM, budget: str) -> Answer:
    sampling = SamplingParams(
        max_tokens=MAX_TOKENS, temperature=0, ignore_eos=True, logprobs=-1
    )
    (output,) = llm.generate([request(budget)], sampling, use_tqdm=False)
    (completion,) = output.outputs
    assert completion.logprobs is not None
    logits = [{t: v.logprob for t, v in step.items()} for step in completion.logprobs]
    return as_answer(completion.token_ids, logits)


@pytest.fixture(scope="module")
def images(reference: Reference) -> Images:
    return Images(reference, request("1.0"))


@pytest.mark.parametrize("name", SELECTORS)
def test_equals_hf_fed_the_oracles_rows(
    any_engine: LLM, images: Images, name: str
) -> None:
    for budget in ("0.2", "0.45"):
        with serving(any_engine, name) as selector:
            given = answer(any_engine, budget)
            # On both images: nothing came of what the caches hold of other methods.
            assert len(selector.seen) == len(SIZES)
            again = answer(any_engine, budget)
            assert len(selector.seen) == len(SIZES)
        assert difference(given, again) < TOLERANCE
        is_seeded = name == "random"
        seen = with_bits(images.seen, selector.seen) if is_seeded else images.seen
        rows = images.kept(ORACLES[name], budget, seen)
        assert difference(given, images.answer(rows, MAX_TOKENS)) < TOLERANCE
        # One wrong row would be noticed.
        rows[-1][-1] = rows[-1][0]
        assert difference(given, images.answer(rows, MAX_TOKENS)) > 10 * TOLERANCE


def with_bits(of_hf: list[Seen], of_engine: list[Observation]) -> list[Seen]:
    """With the engine's attention, whose bits are the seed; HF's is only near it."""
    found = []
    for seen, observation in zip(of_hf, of_engine, strict=True):
        attention = observation.final_attention
        near = torch.tensor(seen.final_attention)
        torch.testing.assert_close(attention, near, rtol=1e-3, atol=1e-5)
        found.append(replace(seen, final_attention=attention.tolist()))
    return found


def test_a_method_and_its_setting_arrive(
    make_engine: MakeEngine, checkpoint: Path
) -> None:
    """As `--hf-overrides` brings them, in an engine started with them."""
    overrides = {
        "hired_budget": 0.45,
        "hired_selector": "visionzip",
        "hired_visionzip_dominant": 0.5,
    }
    given = answer(make_engine(checkpoint, hf_overrides=overrides), "0.2")
    images = Images(Reference(checkpoint), request("1.0"))
    rows = images.kept(within_partitions(visionzip, 0.5), "0.2", images.seen)
    assert difference(given, images.answer(rows, MAX_TOKENS)) < TOLERANCE


def centre(image: Image, kept: int, seen: Seen) -> Rows:
    """The example's method, columns counting twice."""
    scores = [
        -(
            ((row - (image.rows - 1) / 2) / image.rows) ** 2
            + (2 * (col - (image.cols - 1) / 2) / image.cols) ** 2
        )
        for row in range(image.rows)
        for col in range(image.cols)
    ]
    everywhere = [scores] * image.partitions()
    return ranked(image, kept, seen, areas(image), HALF, everywhere)


def answer_with(site: Path, *args: Any, **options: Any) -> dict[str, list[Any]]:
    """With what is installed in a folder."""
    sys.path.insert(0, str(site))
    return answer_apart(*args, **options)


def test_the_example_package_is_installed_and_served(
    checkpoint: Path, tmp_path: Path
) -> None:
    """`examples/custom_selector`, as pip installs it, in an engine that finds it."""
    site = tmp_path / "site"
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--quiet"]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", *options, "--target", site, EXAMPLE],
        check=True,
    )
    overrides = {
        "hired_budget": 0.45,
        "hired_selector": "centre",
        "hired_centre_stretch": 2,
    }
    with Processes() as processes:
        result = processes(
            {},
            answer_with,
            site,
            str(checkpoint),
            [(SIZES, 0.45)],
            MAX_TOKENS,
            hf_overrides=overrides,
        )
    (output,) = result["outputs"]
    given = as_answer(output["token_ids"], output["logits"])
    images = Images(Reference(checkpoint), request("1.0"))
    rows = images.kept(centre, "0.45", images.seen)
    assert difference(given, images.answer(rows, MAX_TOKENS)) < TOLERANCE
    others = images.kept(ORACLES["uniform"], "0.45", images.seen)
    assert difference(given, images.answer(others, MAX_TOKENS)) > 10 * TOLERANCE
