"""FasterVLM, GlobalCom2, DivPrune and SCOPE against plain loops, on random layouts."""

import random
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

import pytest
import torch
from torch import Tensor

from tests.methods import (
    oracle_divprune,
    oracle_fastervlm,
    oracle_globalcom2,
    oracle_scope,
)
from tests.methods.oracle_image import Cell, Image, best
from tests.methods.oracles import first_of_best
from vllm_hired.layouts import Layout
from vllm_hired.selectors import make_selector
from vllm_hired.selectors.base import Selector
from vllm_hired.selectors.scope import ScopeSelector
from vllm_hired.towers.observation import Observation

THUMBNAILS: tuple[Literal["first", "last", "none"], ...] = ("first", "last", "none")
METHODS = ("fastervlm", "globalcom2", "divprune", "scope")
TOLERANCE = 1e-5
"""Scores nearer than this may be taken for each other in float32."""


def random_layout(rng: random.Random) -> Layout:
    rows, cols = rng.randint(1, 4), rng.randint(1, 4)
    tile_rows, tile_cols = rng.choice([(0, 0), (1, 1), (2, 2), (1, 3), (3, 1), (1, 2)])
    thumbnail = rng.choice(THUMBNAILS[: 3 if tile_rows else 2])
    full_height, full_width = tile_rows * rows, tile_cols * cols
    height = rng.randint(1, full_height) if tile_rows else 0
    width = rng.randint(1, full_width) if tile_rows else 0
    return Layout(
        *(rows, cols, tile_rows, tile_cols),
        top=rng.randint(0, full_height - height),
        left=rng.randint(0, full_width - width),
        height=height,
        width=width,
        thumbnail=thumbnail,
        tile_by_tile=rng.random() < 0.5,
    )


def smooth(layout: Layout, rng: random.Random) -> Observation:
    """Scores without ties, in all likelihood."""
    generator = torch.Generator().manual_seed(rng.randrange(2**32))
    cells = (layout.num_partitions, layout.cells_per_partition)
    attention = torch.randn(cells, generator=generator).exp()
    features = torch.randn((*cells, 6), generator=generator)
    return of(attention, features)


def exact(layout: Layout, rng: random.Random) -> Observation:
    """Of which all that the methods compute is exact in float32, with many ties.

    Entries are -1, 0 or 1, and lengths 0, 1, 2 or 4, so cosines are whole sixteenths.
    """
    cells = (layout.num_partitions, layout.cells_per_partition)
    features = torch.zeros((*cells, 16))
    attention = torch.zeros(cells)
    for partition in range(cells[0]):
        for cell in range(cells[1]):
            for place in rng.sample(range(16), rng.choice([0, 1, 4, 4, 16])):
                features[partition, cell, place] = rng.choice([-1, 1])
            attention[partition, cell] = rng.randint(0, 8) / 8
        attention[partition, 0] = 1
    return of(attention, features)


def of(attention: Tensor, features: Tensor) -> Observation:
    return Observation(
        attention.device, {"final_attention": attention, "features": features}
    )


def run(
    selector: Selector, observation: Observation, layout: Layout, kept: int
) -> set[Cell]:
    """What is kept, once its count, order and validity are right."""
    # No method here heeds `hired_alpha`.
    flat = selector.select(observation, layout, kept, Fraction(1, 3)).cells.tolist()
    cells = [divmod(index, layout.cells_per_partition) for index in flat]
    chosen = set(cells)
    assert len(cells) == kept
    assert cells == [cell for cell in Image.of(layout).sequence() if cell in chosen]
    return chosen


def nearly_best_of(chosen: set[Cell]) -> Callable[[dict[Cell, float]], Cell]:
    """Follows a greedy choice of which only the set is known, to within rounding."""

    def pick(scores: dict[Cell, float]) -> Cell:
        own = first_of_best({c: score for c, score in scores.items() if c in chosen})
        assert scores[own] >= max(scores.values()) - TOLERANCE
        return own

    return pick


def cases(count: int) -> list[tuple[Layout, int, random.Random]]:
    found = []
    for seed in range(count):
        rng = random.Random(seed)
        layout = random_layout(rng)
        found.append((layout, rng.randint(1, layout.num_selectable), rng))
    return found


@pytest.mark.parametrize("make", [smooth, exact])
def test_fastervlm_equals_the_oracle(
    make: Callable[[Layout, random.Random], Observation],
) -> None:
    for layout, kept, rng in cases(200):
        observation = make(layout, rng)
        chosen = run(make_selector("fastervlm"), observation, layout, kept)
        attention = observation.final_attention.tolist()
        assert chosen == oracle_fastervlm.select(Image.of(layout), kept, attention)


@pytest.mark.parametrize("make", [smooth, exact])
def test_globalcom2_equals_the_oracle(
    make: Callable[[Layout, random.Random], Observation],
) -> None:
    """In counts exactly, in cells as far as their scores differ in float32."""
    for layout, kept, rng in cases(200):
        observation = make(layout, rng)
        chosen = run(make_selector("globalcom2"), observation, layout, kept)
        image, attention = Image.of(layout), observation.final_attention.tolist()
        quotas = oracle_globalcom2.split(image, kept, attention)
        scores = oracle_globalcom2.scores(image, attention)
        for partition, quota in enumerate(quotas):
            own = [scores[partition][cell] for p, cell in chosen if p == partition]
            wanted = best(scores[partition], image.valid(partition), quota)
            assert sorted(own) == pytest.approx(
                sorted(scores[partition][cell] for cell in wanted), abs=1e-6
            )


def test_divprune_equals_the_oracle() -> None:
    for layout, kept, rng in cases(150):
        observation = exact(layout, rng)
        chosen = run(make_selector("divprune"), observation, layout, kept)
        image, features = Image.of(layout), observation.features.tolist()
        assert chosen == oracle_divprune.steps(image, kept, features, first_of_best)


def test_divprune_is_greedy_to_within_rounding() -> None:
    for layout, kept, rng in cases(100):
        observation = smooth(layout, rng)
        chosen = run(make_selector("divprune"), observation, layout, kept)
        oracle_divprune.steps(
            Image.of(layout),
            kept,
            observation.features.tolist(),
            nearly_best_of(chosen),
        )


@pytest.mark.parametrize("alpha", [0.0, 1.0, 2.0])
def test_scope_equals_the_oracle(alpha: float) -> None:
    for layout, kept, rng in cases(80):
        observation = exact(layout, rng)
        chosen = run(ScopeSelector(alpha), observation, layout, kept)
        assert chosen == oracle_scope.steps(
            Image.of(layout),
            kept,
            observation.features.tolist(),
            observation.final_attention.tolist(),
            alpha,
            first_of_best,
        )


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_scope_is_greedy_to_within_rounding(alpha: float) -> None:
    for layout, kept, rng in cases(100):
        observation = smooth(layout, rng)
        chosen = run(ScopeSelector(alpha), observation, layout, kept)
        oracle_scope.steps(
            Image.of(layout),
            kept,
            observation.features.tolist(),
            observation.final_attention.tolist(),
            alpha,
            nearly_best_of(chosen),
        )


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -1.0, 0.0, 3e38])
def test_counts_are_exact_under_poison(name: str, poison: float) -> None:
    """Some cells, some whole partitions, or everything."""
    for layout, kept, rng in cases(20):
        observation = smooth(layout, rng)
        for quantity in observation.quantities.values():
            for partition in range(layout.num_partitions):
                quantity[partition, :: rng.choice([1, 2, 3])] = poison
        run(make_selector(name), observation, layout, kept)


def test_divprune_takes_cells_that_are_not_finite_last() -> None:
    layout = Layout(4, 4)
    observation = smooth(layout, random.Random(0))
    bad = {3, 4, 9}
    for cell, value in zip(sorted(bad), ("nan", "inf", "-inf"), strict=True):
        observation.features[0, cell, 1] = float(value)
    good = {(0, cell) for cell in range(16) if cell not in bad}
    assert run(make_selector("divprune"), observation, layout, 13) == good
    assert run(make_selector("divprune"), observation, layout, 14) == good | {(0, 3)}
