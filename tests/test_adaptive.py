"""Budgets by the load: the ladder, its steps, and the images that keep theirs."""

import json
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_hired.adaptive import (
    FRESH_S,
    MOST_STEPS,
    AdaptiveSteps,
    Load,
    Reports,
    budget_ladder,
    next_step,
)

RECORDED = Path(__file__).parent / "recorded_loads.json"


def fractions(*texts: str) -> tuple[Fraction, ...]:
    return tuple(map(Fraction, texts))


@pytest.mark.parametrize(
    ("floor", "ceiling", "expected"),
    [
        ("0.1", "0.8", ("0.8", "0.4", "0.2", "0.1")),
        ("0.1", "1", ("1", "0.464", "0.215", "0.1")),
        ("0.2", "0.4", ("0.4", "0.317", "0.252", "0.2")),
        # Nothing lies between, or one thousandth.
        ("0.199", "0.2", ("0.2", "0.199")),
        ("0.198", "0.2", ("0.2", "0.199", "0.198")),
        ("0.0001", "0.0002", ("0.0002", "0.0001")),
    ],
)
def test_ladders(floor: str, ceiling: str, expected: tuple[str, ...]) -> None:
    assert budget_ladder(Fraction(floor), Fraction(ceiling)) == fractions(*expected)


@given(st.lists(st.integers(1, 10_000), min_size=2, max_size=2, unique=True))
def test_a_ladder_falls_from_ceiling_to_floor(ends: list[int]) -> None:
    floor, ceiling = (Fraction(end, 10_000) for end in sorted(ends))
    ladder = budget_ladder(floor, ceiling)
    assert (ladder[0], ladder[-1]) == (ceiling, floor)
    assert 2 <= len(ladder) <= MOST_STEPS
    assert all(above > below for above, below in pairwise(ladder))


@pytest.mark.parametrize(
    ("step", "queue", "expected"),
    [
        (0, 0, 0),
        (0, 3, 0),
        (0, 4, 1),
        (0, 7, 1),
        (0, 8, 2),
        (0, 12, 3),
        (0, 1000, 3),
        (1, 4, 1),
        (1, 2, 1),
        (1, 1, 0),
        (2, 6, 2),
        (2, 5, 1),
        (3, 10, 3),
        (3, 9, 2),
        (3, 2, 1),
        (3, 0, 0),
    ],
)
def test_steps_by_four_waiting_requests_each(
    step: int, queue: int, expected: int
) -> None:
    assert next_step(step, Fraction(queue), per_step=4, last=3) == expected


QUEUES = st.fractions(0, 40)
STEPS = st.integers(0, 3)
SIZES = st.integers(1, 9)


@given(step=STEPS, queue=QUEUES, per_step=SIZES)
def test_a_step_holds_until_the_queue_leaves_its_band(
    step: int, queue: Fraction, per_step: int
) -> None:
    new = next_step(step, queue, per_step, last=3)
    assert 0 <= new <= 3
    assert next_step(new, queue, per_step, last=3) == new
    if new > step:
        assert queue >= new * per_step
    elif new < step:
        assert queue < (new + 1) * per_step - Fraction(per_step, 2)
    else:
        assert step == 3 or queue < (step + 1) * per_step
        assert step == 0 or queue >= step * per_step - Fraction(per_step, 2)
    # Under a queue that goes up and down by less than half a step it comes to rest.
    more = queue + Fraction(per_step, 2) * Fraction(99, 100)
    for each in (more, queue):
        new = next_step(new, each, per_step, last=3)
    assert next_step(new, more, per_step, last=3) == new


@given(step=STEPS, queues=st.tuples(QUEUES, QUEUES), per_step=SIZES)
def test_a_longer_queue_never_gets_a_larger_budget(
    step: int, queues: tuple[Fraction, Fraction], per_step: int
) -> None:
    shorter, longer = (next_step(step, q, per_step, last=3) for q in sorted(queues))
    assert shorter <= longer


@pytest.mark.parametrize(
    ("load", "expected"),
    [
        (Load(), 0),
        (Load(awaiting=5), 5),
        (Load(awaiting=5, waiting=3), 5),
        # Requests of another front end.
        (Load(awaiting=1, waiting=8), 8),
        (Load(awaiting=6, waiting=8, engines=4), 2),
    ],
)
def test_queues(load: Load, expected: int) -> None:
    assert load.queue == expected


def test_reports_of_several_engines_count_while_they_are_fresh() -> None:
    reports = Reports()
    assert reports.waiting(0) == 0
    reports.note(0, 5, 100)
    reports.note(1, 7, 104)
    assert reports.waiting(104) == 12
    reports.note(0, 2, 105)
    assert reports.waiting(105) == 9
    assert reports.waiting(104 + FRESH_S) == 9
    assert reports.waiting(105 + FRESH_S) == 2
    assert reports.waiting(106 + FRESH_S) == 0


def test_an_image_keeps_its_step_while_it_is_remembered() -> None:
    steps = AdaptiveSteps(num_steps=4, per_step=1, most_remembered=3)
    idle, busy = Load(), Load(awaiting=3)
    assert steps.choose(["a"], idle) == [0]
    assert steps.choose(["b", "a", "b"], busy) == [3, 0, 3]
    assert steps.choose(["a", "b"], idle) == [0, 3]
    # Without a new image there is nothing to decide.
    assert steps.step == 3
    assert steps.choose(["c"], idle) == [0]
    # Seen again, "a" is not the one that has to go.
    assert steps.choose(["a"], busy) == [0]
    assert steps.choose(["d"], busy) == [3]
    assert steps.choose(["a", "c", "d"], busy) == [0, 0, 3]
    assert steps.choose(["b"], idle) == [0]


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(0, 30)),
        min_size=1,
        max_size=40,
    )
)
def test_choices_are_a_function_of_images_and_loads(
    requests: list[tuple[str, int]],
) -> None:
    first, second = AdaptiveSteps(4, 4), AdaptiveSteps(4, 4)
    taken: dict[str, int] = {}
    step = 0
    for image, awaiting in requests:
        load = Load(awaiting=awaiting)
        (chosen,) = first.choose([image], load)
        assert [chosen] == second.choose([image], load)
        if image not in taken:
            step = next_step(step, load.queue, 4, last=3)
            taken[image] = step
        assert chosen == taken[image]


def test_recorded_bursts_are_answered_as_they_were() -> None:
    """Loads that a server has seen (`tests/recorded_loads.py`), each with a new image,
    and what it chose."""
    bursts = json.loads(RECORDED.read_text())
    assert len(bursts["loads"]) > 100
    ladder = budget_ladder(Fraction(bursts["floor"]), Fraction(bursts["ceiling"]))
    steps = AdaptiveSteps(len(ladder), bursts["queue"])
    found = [
        float(ladder[step])
        for place, (awaiting, waiting, _) in enumerate(bursts["loads"])
        for step in steps.choose([str(place)], Load(awaiting, waiting))
    ]
    assert found == [budget for _, _, budget in bursts["loads"]]
    assert {*found} == {*map(float, ladder)}
    # What hysteresis is for: the same loads by thresholds alone change far more often.
    alone = [
        next_step(0, Load(awaiting, waiting).queue, bursts["queue"], len(ladder) - 1)
        for awaiting, waiting, _ in bursts["loads"]
    ]
    assert changes(found) < changes(alone)


def changes(values: list[float] | list[int]) -> int:
    return sum(a != b for a, b in pairwise(values))
