"""Right answers with intervals: what the measurements of accuracy compute."""

import re

import numpy as np
import pytest

from benchmarks.intervals import (
    accuracy_rows,
    as_digits,
    difference_rows,
    draw,
    interval,
    most_usual,
)


def test_a_share_of_twice_as_much_is_half() -> None:
    whole = np.random.default_rng(0).integers(0, 2, (100, 4)).astype(float)
    assert interval(whole / 2, of=whole) == "50.0 (50.0 to 50.0)"


def test_blind_is_the_most_usual_answer() -> None:
    answers = np.array([["yes", "3"], ["no", "3"], ["yes", "2"], ["yes", "4"]])
    expected = [[1, 1], [0, 1], [1, 0], [1, 0]]
    assert most_usual(answers).tolist() == expected


def test_intervals_are_those_of_a_known_spread() -> None:
    """100 trials, half of them right: 50% give or take 1.96 times 5."""
    said = interval(np.repeat([0.0, 1.0], 50))
    mean, low, high = (float(x) for x in re.findall(r"[\d.]+", said))
    assert mean == 50.0
    assert low == pytest.approx(50 - 1.96 * 5, abs=1.5)
    assert high == pytest.approx(50 + 1.96 * 5, abs=1.5)


def test_differences_are_paired() -> None:
    """Two methods that are right on the same trials differ by nothing, surely."""
    right = np.random.default_rng(0).integers(0, 2, (60, 2)).astype(float)
    found = {
        ("stock", 1.0): np.ones((60, 2)),
        ("hired", 0.2): right,
        ("even", 0.2): right,
        ("random", 0.2): 1 - right,
    }
    (row,) = difference_rows(found)
    assert [*row] == ["budget", "hired - even", "hired - random"]
    assert row["hired - even"] == "0.0 (0.0 to 0.0)"
    assert row["hired - random"] == interval(2 * right - 1)
    rows = accuracy_rows(found, ["presence", "counting"])
    assert [row["selector"] for row in rows] == ["stock", "hired", "even", "random"]
    assert rows[1]["counting (%)"] == interval(right[:, 1])
    assert rows[2]["of stock's (%)"] == rows[2]["all tasks (%)"] == interval(right)


def test_right_answers_are_kept_as_digits() -> None:
    assert as_digits(np.array([[1.0, 0.0], [1.0, 1.0]])) == "10 11"


def test_every_line_of_the_picture_begins_at_stock() -> None:
    found = {
        ("stock", 1.0): np.array([[1.0, 1.0]]),
        ("hired", 0.2): np.array([[1.0, 0.0]]),
        ("even", 0.2): np.array([[0.0, 0.0]]),
    }
    lines = draw(found).axes[0].get_lines()
    assert [np.array(line.get_xydata()).tolist() for line in lines] == [
        [[1.0, 100.0], [0.2, 50.0]],
        [[1.0, 100.0], [0.2, 0.0]],
    ]
