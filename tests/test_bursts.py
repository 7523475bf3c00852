"""What `benchmarks.bursts` computes, without a server."""

from itertools import pairwise
from statistics import mean

import pytest

from benchmarks.bursts import arrivals, burst_row, plot, quantile


def test_arrivals_are_a_poisson_process() -> None:
    times = arrivals(4000, rate=2.0, seed=1)
    gaps = [b - a for a, b in pairwise(times)]
    assert times[0] == 0
    assert min(gaps) > 0
    assert mean(gaps) == pytest.approx(0.5, rel=0.05)
    # As many gaps are longer than the mean as in an exponential distribution.
    assert mean(gap > 0.5 for gap in gaps) == pytest.approx(0.368, abs=0.03)
    slower = arrivals(4000, rate=0.5, seed=1)
    assert slower == pytest.approx([4 * time for time in times])
    assert arrivals(4, 1, seed=2) != arrivals(4, 1, seed=3)


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [
        ([3.0], 0.95, 3.0),
        ([4.0, 1.0, 3.0, 2.0], 0.5, 2.0),
        ([4.0, 1.0, 3.0, 2.0], 0.95, 4.0),
        ([*map(float, range(1, 101))], 0.95, 95.0),
        ([*map(float, range(1, 101))], 0.5, 50.0),
    ],
)
def test_quantiles(values: list[float], share: float, expected: float) -> None:
    assert quantile(values, share) == expected


def test_rows_and_their_picture() -> None:
    rows = [
        burst_row(2, "adaptive", [1.0, 2.0, 9.0, 3.0], {0.8: 1, 0.4: 0, 0.1: 3}),
        burst_row(2, "0.8", [8.0], {0.8: 4}),
    ]
    assert rows == [
        {
            "arrivals / sustained": 2,
            "budget": "adaptive",
            "TTFT p50 (s)": 2.0,
            "TTFT p95 (s)": 9.0,
            "mean budget": 0.275,
        },
        {
            "arrivals / sustained": 2,
            "budget": "0.8",
            "TTFT p50 (s)": 8.0,
            "TTFT p95 (s)": 8.0,
            "mean budget": 0.8,
        },
    ]
    (axes,) = plot(rows).axes
    assert len(axes.lines) == 4
