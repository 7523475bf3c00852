"""Budgets that give way under load: which of a few budgets an image gets.

From `hired_max_budget` down to `hired_budget` there is a short ladder of budgets. The
queue says on which of its steps a new image stands, with hysteresis: the step changes
when the queue has clearly grown or shrunk, not whenever one request comes or goes. An
image that comes again keeps its step, so that a conversation about it keeps its answers
and its blocks in the prefix cache.

All of it is a function of the loads and the images that it is given, in their order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

from cachetools import LRUCache

MOST_STEPS = 4
"""Budgets of a ladder: few, because caches hold an image once for each."""

MOST_REMEMBERED = 100_000
"""Images whose step is remembered: more than vLLM's cache of images holds."""

FRESH_S = 10.0
"""How long an engine's report counts. A front end may get no other for long, where
several share an engine or where all clients have gone."""


def budget_ladder(floor: Fraction, ceiling: Fraction) -> tuple[Fraction, ...]:
    """Budgets from `ceiling` down to `floor`, each about the same part of the one
    before.

    Those between are rounded to thousandths. Where that leaves fewer than `MOST_STEPS`
    different ones, the ladder is shorter.
    """
    ratio = float(floor / ceiling) ** (1 / (MOST_STEPS - 1))
    between = (
        Fraction(str(round(float(ceiling) * ratio**step, 3)))
        for step in range(1, MOST_STEPS - 1)
    )
    inside = {budget for budget in between if floor < budget < ceiling}
    return tuple(sorted({floor, ceiling, *inside}, reverse=True))


@dataclass(frozen=True)
class Load:
    """What a front end knows of the load when it is to choose a budget.

    Attributes:
        awaiting: its own unfinished requests that have no token yet.
        waiting: requests in the queues of its engines, whoever sent them, by the last
            reports that reached it.
        engines: how many these are.
    """

    awaiting: int = 0
    waiting: int = 0
    engines: int = 1

    @property
    def queue(self) -> Fraction:
        """Waiting requests for each engine.

        Its own requests are known at once, those of others late or not at all.
        """
        return Fraction(max(self.awaiting, self.waiting), self.engines)


def next_step(step: int, queue: Fraction, per_step: int, last: int) -> int:
    """The step of the ladder that follows `step` at this queue.

    Down to step `s` when the queue reaches `s * per_step`, and up from it when the
    queue is more than half a `per_step` below that. Several steps at once, if the queue
    says so.

    Args:
        step: the present one; 0 is the largest budget.
        queue: waiting requests.
        per_step: waiting requests for each step.
        last: step of the smallest budget.
    """
    grown = int(queue / per_step)
    shrunk = int(queue / per_step + Fraction(1, 2))
    return min(max(grown, min(step, shrunk)), last)


class Reports:
    """The last report of each engine."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[int, float]] = {}

    def note(self, engine: int, waiting: int, time_s: float) -> None:
        """
        Args:
            engine: which one.
            waiting: requests in its queue.
            time_s: when this was heard, by a clock that never goes back.
        """
        self._last[engine] = waiting, time_s

    def waiting(self, time_s: float) -> int:
        """Requests in the queues of all engines, by reports that still count."""
        return sum(
            waiting
            for waiting, heard_s in [*self._last.values()]
            if time_s - heard_s <= FRESH_S
        )


class AdaptiveSteps:
    """The present step, and those of the images that were seen.

    Args:
        num_steps: of the ladder.
        per_step: waiting requests for each step.
        most_remembered: images; of more, those seen longest ago are forgotten.
    """

    def __init__(
        self, num_steps: int, per_step: int, most_remembered: int = MOST_REMEMBERED
    ) -> None:
        self.step = 0
        self._last = num_steps - 1
        self._per_step = per_step
        self._steps: LRUCache[str, int] = LRUCache(most_remembered)

    def choose(self, images: Sequence[str], load: Load) -> list[int]:
        """The steps of a request's images.

        Args:
            images: what tells each from others, whatever its budget.
            load: when the request came.
        """
        if any(image not in self._steps for image in images):
            self.step = next_step(self.step, load.queue, self._per_step, self._last)
        return [self._steps.setdefault(image, self.step) for image in images]
