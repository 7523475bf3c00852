"""What each selection method promises beside exact counts (see test_algorithm)."""

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tests.observations import attended, observed
from tests.test_algorithm import REAL_PINPOINTS, scores_tensor
from vllm_hired.layouts import Layout
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.selectors import make_selector, selector_class
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.uniform import UniformSelector
from vllm_hired.towers.observation import Observation

HALF = Fraction(1, 2)


def real_geometry(height: int, width: int) -> Layout:
    return anyres_layout(height, width, REAL_PINPOINTS, 336, 14)


def select(
    name: str, layout: Layout, kept: int, seed: int = 0
) -> list[tuple[int, int]]:
    """Kept patches as (partition, patch)."""
    scores = attended(
        scores_tensor(layout, seed, 2**20), scores_tensor(layout, seed + 1, 2**20)
    )
    chosen = make_selector(name).select(scores, layout, kept, HALF).cells.tolist()
    return [divmod(i, layout.cells_per_partition) for i in chosen]


def per_partition(chosen: list[tuple[int, int]], layout: Layout) -> list[int]:
    partitions = [partition for partition, _ in chosen]
    return [partitions.count(p) for p in range(layout.num_partitions)]


def test_even_gives_every_tile_the_same() -> None:
    layout = real_geometry(672, 672)
    chosen = select("even", layout, 578)
    assert per_partition(chosen, layout) == [289, 73, 72, 72, 72]
    # Within a tile it ranks as HiRED does.
    scores = scores_tensor(layout, 1, 2**20)[4]
    last = {patch for partition, patch in chosen if partition == 4}
    order = torch.argsort(scores, descending=True, stable=True)
    assert last == set(order[:72].tolist())


@pytest.mark.parametrize(
    ("kept", "expected"),
    [(300, [300, 0, 0, 0, 0]), (576, [576, 0, 0, 0, 0]), (600, [576, 24])],
)
def test_thumbnail_comes_first(kept: int, expected: list[int]) -> None:
    layout = real_geometry(672, 672)
    split = per_partition(select("thumbnail", layout, kept), layout)
    assert split[0] == expected[0]
    assert sum(split[1:]) == sum(expected[1:])


@pytest.mark.parametrize("kept", [16, 64, 144])
def test_uniform_is_evenly_spaced(kept: int) -> None:
    """Of a square with one patch kept in each cell, no cell is missed."""
    layout = Layout(16, 16)
    cells = 4 if kept == 16 else 8
    side = 16 // cells
    seen = {
        (patch // 16 // side, patch % 16 // side)
        for _, patch in select("uniform", layout, kept)
    }
    assert len(seen) == cells**2


def test_uniform_does_not_look_at_the_image() -> None:
    layout = real_geometry(500, 800)
    one, other = (select("uniform", layout, 345, seed) for seed in (0, 7))
    assert one == other
    assert per_partition(one, layout)[1:] == sorted(
        per_partition(one, layout)[1:], reverse=True
    )


def test_random_is_seeded_by_the_image() -> None:
    layout = real_geometry(672, 672)
    one, again, other = (select("random", layout, 576, seed) for seed in (0, 0, 7))
    assert one == again
    shared = len(set(one) & set(other))
    # A fifth of a fifth by chance: half of 576 in the thumbnail, the rest in tiles.
    expected = 288 * 288 / 576 + 288 * 288 / (4 * 576)
    assert abs(shared - expected) < 60


def test_random_prefers_no_place() -> None:
    """Over many images every patch is kept about equally often."""
    layout = Layout(8, 8)
    counts = torch.zeros(64)
    for seed in range(400):
        for _, patch in select("random", layout, 16, seed):
            counts[patch] += 1
    # Binomial(400, 1/4): mean 100, standard deviation 8.7.
    assert counts.mean() == 100
    assert (counts - 100).abs().max() < 5 * 8.7
    assert 5 < counts.std() < 13


def test_random_ignores_how_high_a_score_is() -> None:
    layout = Layout(8, 8)
    scores = torch.linspace(1, 2, 64).view(1, 64)
    kept = (
        make_selector("random").select(attended(scores, scores), layout, 32, HALF).cells
    )
    above = int((kept >= 32).sum())
    assert 6 < above < 26


def test_capacities_bound_every_method() -> None:
    """A letterboxed canvas whose outer tiles are half padding."""
    layout = real_geometry(300, 1000)
    capacity = index_tables(layout, torch.device("cpu")).tile_capacity.tolist()
    for name in ("even", "uniform", "random", "thumbnail"):
        split = per_partition(select(name, layout, layout.num_selectable), layout)
        assert split == [576, *capacity]


BY_ATTENTION: dict[str, dict[str, float]] = {
    "hired": {},
    "even": {},
    "fastervlm": {},
    "globalcom2": {},
    "scope": {},
    "visionzip": {"dominant": 1.0},
    "prumerge_plus": {"outliers": 1.0},
    "vispruner": {"important": 1.0},
}
"""Methods that look at attention, with settings under which it alone decides who is
last."""


@pytest.mark.parametrize("name", BY_ATTENTION)
@pytest.mark.parametrize(
    "layout",
    [
        Layout(4, 4),
        Layout(4, 4, 1, 1, height=4, width=4),
        Layout(4, 4, 1, 1, top=1, height=3, width=4, thumbnail="none"),
    ],
)
def test_nan_ranks_last(name: str, layout: Layout) -> None:
    """Behind zeros, and before padding, which is never kept."""
    attention = torch.zeros((layout.num_partitions, 16))
    attention[:, 7] = 1.0
    attention[:, ::5] = torch.nan
    observation = observed(layout, 0, attention)
    sequence = index_tables(layout, observation.device).sequence.tolist()
    good = [cell for cell in sequence if not attention.flatten()[cell].isnan()]
    selector = selector_class(name)(**BY_ATTENTION[name])
    chosen = selector.select(observation, layout, len(good), HALF).cells
    assert chosen.tolist() == good
    everything = selector.select(observation, layout, len(sequence), HALF).cells
    assert everything.tolist() == sequence


def test_nan_ranks_below_any_number() -> None:
    """Scores of other packages' methods may be negative."""

    class Theirs(UniformSelector):
        def token_scores(self, observation: Observation, layout: Layout) -> Tensor:
            scores = -torch.arange(1.0, 17.0).to(torch.float16)
            scores[::5] = torch.nan
            scores[7] = -torch.inf
            return scores.expand(layout.num_partitions, -1)

    layout = Layout(4, 4)
    observation = observed(layout, 0)
    chosen = Theirs().select(observation, layout, 11, HALF).cells.tolist()
    assert chosen == [cell for cell in range(16) if cell % 5 and cell != 7]
