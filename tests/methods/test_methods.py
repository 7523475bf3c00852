"""Methods that look at features and keys: against oracles, and under poison."""

import math
import random
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.methods import plain, prumerge_plus, visionzip, vispruner
from tests.methods.oracle_image import Image
from tests.methods.oracles import ORACLES, Seen, in_sequence, within_partitions
from tests.observations import observed
from vllm_hired.budget import proportional_quotas, share_of
from vllm_hired.layouts import Layout
from vllm_hired.selectors import SELECTORS
from vllm_hired.selectors.base import Selection, kept_rows
from vllm_hired.selectors.index_tables import index_tables
from vllm_hired.selectors.prumerge_plus import PruMergePlusSelector
from vllm_hired.selectors.visionzip import VisionZipSelector
from vllm_hired.selectors.vispruner import VisPrunerSelector
from vllm_hired.towers.observation import Observation, Quantity

HALF = Fraction(1, 2)
Keep = Callable[[plain.Partition, int, float], plain.Kept]

METHODS: dict[str, tuple[Any, str, Keep]] = {
    "visionzip": (VisionZipSelector, "dominant", visionzip.keep),
    "prumerge_plus": (PruMergePlusSelector, "outliers", prumerge_plus.keep),
    "vispruner": (VisPrunerSelector, "important", vispruner.keep),
}
"""Name -> its class, its setting and its oracle."""

LAYOUTS = {
    "one partition": Layout(6, 7),
    "one cell": Layout(1, 1, 1, 2, 0, 0, 1, 2),
    "whole tiles": Layout(5, 5, 2, 2, 0, 0, 10, 10),
    "padding": Layout(5, 5, 2, 2, top=3, height=4, left=0, width=10),
    "tiles of padding": Layout(3, 3, 3, 1, top=3, height=3, left=1, width=1),
    "thumbnail last": Layout(
        4, 9, 1, 2, height=4, width=18, thumbnail="last", tile_by_tile=True
    ),
    "no thumbnail": Layout(5, 3, 2, 2, top=1, height=8, width=6, thumbnail="none"),
}

# The 24 unit quaternions of Hurwitz: their lengths and products are exact in floating
# point, and few values are possible, so there are many ties.
EXACT = [
    [scale * x for x in unit]
    for unit in (
        [[float(i == j) for j in range(4)] for i in range(4)]
        + [[0.5 - (bits >> j & 1) for j in range(4)] for bits in range(16)]
    )
    for scale in (1.0, -1.0, 4.0, -0.25)
]


def random_observation(layout: Layout, rng: random.Random) -> Observation:
    """Of Gaussian vectors or such with many ties, now and then with odd values."""
    observation = observed(layout, rng.getrandbits(32), feature_size=6, key_size=8)
    quantities = dict(observation.quantities)
    vectors_of: tuple[Quantity, ...] = ("features", "keys")
    if rng.random() < 0.5:
        for name in vectors_of:
            cells = quantities["final_attention"].shape
            vectors = rng.choices(EXACT, k=cells.numel())
            quantities[name] = torch.tensor(vectors).view(*cells, 4)
        levels = rng.choice((1, 4, 2**20))
        quantities["final_attention"] = (
            quantities["final_attention"] * levels
        ).round() / 2**20
    if rng.random() < 0.3:
        for name in ("final_attention", *vectors_of):
            values = quantities[name].view(-1)
            for odd in (math.nan, math.inf, -math.inf):
                values[rng.randrange(values.numel())] = odd
    return replace(observation, quantities=quantities)


def expected(
    keep: Keep, observation: Observation, layout: Layout, kept: int, wanted: float
) -> tuple[list[int], list[plain.Vector]]:
    """Flat cell indices and rows, by an oracle."""
    image = Image.of(layout)
    seen = Seen(
        **{name: values.tolist() for name, values in observation.quantities.items()}
    )
    rows = within_partitions(keep, wanted)(image, kept, seen)
    cells, vectors = in_sequence(image, rows)
    n = layout.rows * layout.cols
    return [p * n + cell for p, cell in cells], vectors


def rows_of(selection: Selection, observation: Observation, layout: Layout) -> Tensor:
    return kept_rows(observation.features, [selection], [layout])


def test_every_method_has_an_oracle() -> None:
    assert set(ORACLES) == set(SELECTORS)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("where", LAYOUTS)
def test_selection_equals_the_oracle(name: str, where: str) -> None:
    layout = LAYOUTS[where]
    method, setting, keep = METHODS[name]
    rng = random.Random(f"{name} {where}")
    for case in range(16):
        most = layout.num_selectable
        kept = (1, most)[case] if case < 2 else rng.randint(1, most)
        wanted = rng.choice((0.0, 0.25, 0.5, 27 / 32, 1.0))
        observation = random_observation(layout, rng)
        cells, rows = expected(keep, observation, layout, kept, wanted)
        selector = method(**{setting: wanted})
        selection = selector.select(observation, layout, kept, HALF)
        assert selection.cells.tolist() == cells
        torch.testing.assert_close(
            rows_of(selection, observation, layout),
            torch.tensor(rows),
            equal_nan=True,
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf, 0.0, 1e-42, 3e38])
def test_poison_breaks_neither_the_count_nor_other_rows(
    name: str, dtype: torch.dtype, poison: float
) -> None:
    """Everything of every third cell is poisoned; then everything is."""
    selector = METHODS[name][0]()
    for layout in LAYOUTS.values():
        valid = index_tables(layout, torch.device("cpu")).valid.flatten()
        for step, poisons_features in ((3, False), (3, True), (1, True)):
            quantities = dict(observed(layout, step).quantities)
            quantities["features"] = quantities["features"].to(dtype)
            for quantity in quantities:
                if quantity != "features" or poisons_features:
                    quantities[quantity][:, ::step] = poison
            observation = Observation(torch.device("cpu"), quantities)
            for kept in (1, (layout.num_selectable + 1) // 2, layout.num_selectable):
                selection = selector.select(observation, layout, kept, HALF)
                assert selection.cells.shape == (kept,)
                assert len(selection.cells.unique()) == kept
                assert valid[selection.cells].all()
                rows = rows_of(selection, observation, layout)
                assert rows.dtype == dtype
                own = observation.features.flatten(0, 1)[selection.cells]
                assert rows[own.isfinite()].isfinite().all()


@settings(deadline=None)
@given(st.lists(st.integers(0, 600), max_size=9), st.data())
def test_quotas_are_exact_and_equal_the_oracle(
    capacities: list[int], data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, sum(capacities)))
    quotas = proportional_quotas(capacities, total)
    assert sum(quotas) == total
    for quota, capacity in zip(quotas, capacities, strict=True):
        assert 0 <= quota <= capacity
    if total:
        assert list(quotas) == plain.quotas(capacities, total)


@settings(deadline=None)
@given(st.integers(0, 600), st.integers(0, 1000))
def test_a_share_is_the_decimal_that_was_written(count: int, thousandths: int) -> None:
    part = share_of(count, thousandths / 1000)
    assert 1000 * (part - 1) < count * thousandths <= 1000 * part
