"""The algorithm against the plain-loop oracle: random sizes, budgets and scores."""

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.llava_next.modeling_llava_next import (
    get_anyres_image_grid_shape,
    unpad_image,
)

from tests import oracle
from tests.observations import attended, observed
from vllm_hired.budget import kept_count, split_thumbnail
from vllm_hired.layouts import ImageSizeError, Layout
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.selectors import SELECTORS, make_selector
from vllm_hired.selectors.allocation import allocate, most_full
from vllm_hired.selectors.base import Selection, kept_rows
from vllm_hired.selectors.hired import HiredSelector
from vllm_hired.selectors.index_tables import index_tables

CPU = torch.device("cpu")
REAL_PINPOINTS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Sizes on which upstream once counted wrong.
UPSTREAM_BUG_SIZES = [
    (171, 152),
    (184, 161),
    (198, 176),
    (333, 296),
    (369, 328),
    (488, 183),
    (2560, 1669),
]
BUG_SIZES = [size for h, w in UPSTREAM_BUG_SIZES for size in ((h, w), (w, h))]


@dataclass(frozen=True)
class Case:
    height: int
    width: int
    pinpoints: tuple[tuple[int, int], ...]
    tile: int
    patch: int

    def layout(self) -> Layout:
        return anyres_layout(
            self.height, self.width, self.pinpoints, self.tile, self.patch
        )

    def oracle(self) -> oracle.Layout | None:
        return oracle.layout(
            self.height, self.width, list(self.pinpoints), self.tile, self.patch
        )


side = st.one_of(st.integers(1, 60), st.integers(1, 4000))
decimals = st.integers(0, 1000).map(lambda i: f"{i / 1000}")
budgets = st.integers(1, 1000).map(lambda i: f"{i / 1000}")


@st.composite
def cases(draw: st.DrawFn, max_grid: int) -> Case:
    patch = draw(st.integers(1, 16))
    tile = patch * draw(st.integers(1, max_grid))
    grids = draw(
        st.lists(
            st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5
        )
    )
    pinpoints = tuple((rows * tile, cols * tile) for rows, cols in grids)
    return Case(draw(side), draw(side), pinpoints, tile, patch)


real_cases = st.builds(
    Case, side, side, st.just(REAL_PINPOINTS), st.just(336), st.just(14)
)


def check_counts(case: Case, rho: str, cap: int | None, alpha: str) -> None:
    expected = case.oracle()
    if expected is None:
        with pytest.raises(ImageSizeError, match="too long and thin"):
            case.layout()
        return
    layout = case.layout()
    assert (layout.tile_rows, layout.tile_cols) == (expected.rows, expected.cols)
    assert (layout.top, layout.left) == (expected.top, expected.left)
    assert layout.top + layout.height == expected.bottom
    assert layout.left + layout.width == expected.right
    assert layout.num_stock_tokens == expected.stock_tokens
    kept = kept_count(layout, Fraction(rho), cap).tokens
    assert kept == oracle.count(expected, rho, cap)
    if kept <= layout.num_selectable:
        assert split_thumbnail(layout, kept, Fraction(alpha)) == oracle.split(
            expected, kept, alpha
        )
    tables = index_tables(layout, CPU)
    assert tables.tile_capacity.tolist() == oracle.tile_capacities(expected)


@settings(max_examples=1500, deadline=None)
@given(cases(8), budgets, st.none() | st.integers(1, 300), decimals)
def test_counts_equal_the_oracle(
    case: Case, rho: str, cap: int | None, alpha: str
) -> None:
    check_counts(case, rho, cap, alpha)


@settings(max_examples=1000, deadline=None)
@given(real_cases, budgets, st.none() | st.integers(1, 3000), decimals)
def test_counts_equal_the_oracle_at_real_sizes(
    case: Case, rho: str, cap: int | None, alpha: str
) -> None:
    check_counts(case, rho, cap, alpha)


@pytest.mark.parametrize(("height", "width"), BUG_SIZES)
def test_counts_on_sizes_that_upstream_got_wrong(height: int, width: int) -> None:
    for rho in ("0.05", "0.2", "0.35", "0.999", "1"):
        check_counts(Case(height, width, REAL_PINPOINTS, 336, 14), rho, None, "0.5")


@settings(max_examples=1500, deadline=None)
@given(cases(24) | real_cases)
def test_geometry_is_that_of_hf(case: Case) -> None:
    """By HF's own functions, on a grid of indices."""
    rows, cols = get_anyres_image_grid_shape(
        (case.height, case.width), [list(p) for p in case.pinpoints], case.tile
    )
    g = case.tile // case.patch
    canvas = torch.arange(rows * cols * g * g).view(1, rows * g, cols * g)
    (valid,) = unpad_image(canvas, (case.height, case.width))
    if valid.numel() == 0:
        with pytest.raises(ImageSizeError, match="too long and thin"):
            case.layout()
        return
    layout = case.layout()
    assert (layout.tile_rows, layout.tile_cols) == (rows, cols)
    assert (layout.height, layout.width) == valid.shape
    assert (layout.top, layout.left) == divmod(int(valid[0, 0]), cols * g)


def test_budgets_are_the_decimals_that_the_user_wrote() -> None:
    layout = Case(672, 672, REAL_PINPOINTS, 336, 14).layout()
    assert (
        kept_count(layout, Fraction(str(0.35)), None).tokens == 1008
    )  # floats say 1007
    assert kept_count(layout, Fraction(str(0.2)), None).tokens == 576
    assert kept_count(layout, Fraction("1e-9"), None).tokens == 1


@settings(max_examples=1000, deadline=None)
@given(st.data())
def test_allocation_is_exact_and_equals_the_oracle(data: st.DataObject) -> None:
    tiles = data.draw(st.integers(0, 9))
    weight = st.integers(0, 3) | st.integers(0, 2**40)
    weights = data.draw(st.lists(weight, min_size=tiles, max_size=tiles))
    caps = data.draw(st.lists(st.integers(0, 600), min_size=tiles, max_size=tiles))
    total = data.draw(st.integers(0, sum(caps)))
    split = allocate(
        torch.tensor(weights, dtype=torch.int64),
        torch.tensor(caps, dtype=torch.int64),
        total,
        most_full(caps, total),
    ).tolist()
    assert sum(split) == total
    assert all(0 <= part <= cap for part, cap in zip(split, caps, strict=True))
    assert split == oracle.shares([Fraction(w) for w in weights], caps, total)


def scores_tensor(layout: Layout, seed: int, levels: int) -> Tensor:
    """Random scores `[P, N]` on a grid of `levels` values: few of them, many ties."""
    generator = torch.Generator().manual_seed(seed)
    shape = (layout.num_partitions, layout.cells_per_partition)
    return torch.randint(levels, shape, generator=generator) / 2**20


def to_grids(scores: Tensor, g: int) -> list[oracle.Grid]:
    return [partition.view(g, g).tolist() for partition in scores]


def check_selection(case: Case, rho: str, alpha: str, seed: int, levels: int) -> None:
    expected = case.oracle()
    if expected is None:
        return
    layout = case.layout()
    kept = min(kept_count(layout, Fraction(rho), None).tokens, layout.num_selectable)
    scores = attended(
        scores_tensor(layout, seed, levels), scores_tensor(layout, seed + 1, levels)
    )
    selector = HiredSelector()
    tables = index_tables(layout, CPU)
    tiles = split_thumbnail(layout, kept, Fraction(alpha))[1]
    capacities = oracle.tile_capacities(expected)
    assert tables.tile_capacity.tolist() == capacities == [*layout.tile_capacities]
    tile_split = allocate(
        selector.tile_weights(scores, layout),
        tables.tile_capacity,
        tiles,
        most_full(capacities, tiles),
    )
    g = expected.g
    init, final = scores.init_attention, scores.final_attention
    grids = to_grids(init, g), to_grids(final, g)
    assert tile_split.tolist() == oracle.shares(
        oracle.tile_weights(expected, grids[0][0]), capacities, tiles
    )
    chosen = selector.select(scores, layout, kept, Fraction(alpha)).cells
    assert [(i // g**2, i % g**2 // g, i % g) for i in chosen.tolist()] == (
        oracle.select(expected, kept, alpha, *grids)
    )


@settings(max_examples=800, deadline=None)
@given(
    cases(5),
    budgets,
    decimals,
    st.integers(0, 2**32),
    st.sampled_from([1, 2, 5, 2**20]),
)
def test_selection_equals_the_oracle(
    case: Case, rho: str, alpha: str, seed: int, levels: int
) -> None:
    check_selection(case, rho, alpha, seed, levels)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width"), [(672, 672), (300, 1000), (2560, 1669), (171, 152)]
)
def test_selection_equals_the_oracle_at_real_sizes(height: int, width: int) -> None:
    case = Case(height, width, REAL_PINPOINTS, 336, 14)
    for seed, (rho, alpha) in enumerate(
        [("0.4", "0.5"), ("0.2", "0.5"), ("0.05", "0"), ("0.9", "1")]
    ):
        check_selection(case, rho, alpha, seed, 2**20)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_selection_equals_the_oracle_on_softmax_scores(seed: int) -> None:
    """Whose last bits are rounded before they become tile weights."""
    case = Case(300 + 40 * seed, 500, REAL_PINPOINTS, 336, 14)
    layout, expected = case.layout(), case.oracle()
    assert expected is not None
    generator = torch.Generator().manual_seed(seed)
    shape = (2, 16, layout.num_partitions, 577)
    logits = 3 * torch.randn(shape, generator=generator)
    init, final = logits.softmax(dim=-1).sum(dim=1)[..., 1:]
    kept = kept_count(layout, Fraction("0.2"), None).tokens
    chosen = (
        make_selector("hired")
        .select(attended(init, final), layout, kept, Fraction(1, 2))
        .cells
    )
    grids = to_grids(init, 24), to_grids(final, 24)
    assert [(i // 576, i % 576 // 24, i % 24) for i in chosen.tolist()] == (
        oracle.select(expected, kept, "0.5", *grids)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", SELECTORS)
@pytest.mark.parametrize(
    "poison", [float("nan"), float("inf"), -float("inf"), 0.0, 1e-42, 3e38]
)
def test_every_selector_keeps_the_exact_count_of_valid_patches(
    name: str, poison: float
) -> None:
    """A tower that overflows must not make counts that kill the engine."""
    for seed, size in enumerate(BUG_SIZES):
        # Few patches, because greedy methods take a step for each that they keep.
        layout = Case(*size, REAL_PINPOINTS, 336, 56).layout()
        observation = observed(layout, seed, poison=poison)
        for kept in (1, 37, layout.num_selectable):
            chosen = (
                make_selector(name)
                .select(observation, layout, kept, Fraction(1, 2))
                .cells
            )
            assert chosen.shape == (kept,)
            assert len(chosen.unique()) == kept
            valid = index_tables(layout, CPU).valid.flatten()
            assert valid[chosen].all()


def test_one_partition_without_tiles() -> None:
    """LLaVA-1.5: the thumbnail alone, ranked by the final layer."""
    layout = Layout(4, 4)
    scores = scores_tensor(layout, 0, 2**20)
    kept = kept_count(layout, Fraction("0.3"), None).tokens
    assert kept == 4
    chosen = (
        make_selector("hired")
        .select(attended(scores, scores), layout, kept, Fraction(1, 2))
        .cells
    )
    assert chosen.tolist() == sorted(scores[0].topk(4).indices.tolist())


def test_gather_takes_each_image_from_its_own_partitions() -> None:
    layouts = [Layout(2, 2, 1, 1, 0, 0, 2, 2), Layout(2, 2, 1, 2, 0, 0, 2, 4)]
    features = torch.arange(5 * 4 * 3).view(5, 4, 3)
    kept = [torch.tensor([0, 7]), torch.tensor([3, 4, 11])]
    rows = kept_rows(features, [Selection(cells) for cells in kept], layouts)
    expected = [features[0, 0], features[1, 3]]
    expected += [features[2, 3], features[3, 0], features[4, 3]]
    assert torch.equal(rows, torch.stack(expected))


@pytest.mark.parametrize("name", SELECTORS)
def test_selection_reads_nothing_back_to_the_host(name: str) -> None:
    """On a device that has no values: reading one, or a size from one, would fail."""
    layout = Case(672, 672, REAL_PINPOINTS, 336, 14).layout()
    scores = scores_tensor(layout, 0, 2**20).to("meta")
    observation = observed(layout, 0, scores)
    selection = make_selector(name).select(observation, layout, 576, Fraction(1, 2))
    rows = kept_rows(observation.features, [selection], [layout])
    assert rows.shape == (576, 8)
    assert rows.device.type == "meta"
