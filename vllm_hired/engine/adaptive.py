"""`hired_adaptive` in vLLM's front end: a budget by the load, the log and `/metrics`.

`vllm_hired.adaptive` chooses, and `engine.load` knows the load.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

from vllm.logger import init_logger

from vllm_hired.adaptive import AdaptiveSteps, Load, budget_ladder
from vllm_hired.config import HiredConfig
from vllm_hired.engine.metrics import adaptive_images
from vllm_hired.errors import HiredConfigError

# Under "vllm", where vLLM has set up its handlers.
logger = init_logger(f"vllm.{__name__}")


class AdaptiveBudgets:
    """Chooses budgets for the images of one front end.

    Attributes:
        load: how to ask for the load; None in a process without an `AsyncLLM`.
    """

    load: Callable[[], Load] | None = None

    def __init__(self, hired: HiredConfig) -> None:
        self._ladder = budget_ladder(hired.budget, hired.max_budget)
        self._steps = AdaptiveSteps(len(self._ladder), hired.adaptive_queue)
        for budget in self._ladder:  # On `/metrics` from here on, at zero.
            adaptive_images().labels(float(budget))

    def choose(self, images: Sequence[str]) -> list[Fraction]:
        """The budgets of a request's images.

        Args:
            images: their hashes without a budget.

        Raises:
            HiredConfigError: this process does not know any load.
        """
        if self.load is None:
            raise HiredConfigError(
                "hired_adaptive",
                True,
                "this process prepares prompts and has no engine whose load it could "
                "know; ask for a hired_budget",
            )
        load = self.load()
        steps = self._steps.choose(images, load)
        budgets = [self._ladder[step] for step in steps]
        logger.debug(
            "hired_adaptive: budgets %s for %d images, at %s",
            [float(budget) for budget in budgets],
            len(images),
            load,
        )
        return budgets

    def count(self, budgets: Sequence[Fraction]) -> None:
        """Counts the images of one processed request, for `/metrics`."""
        for budget in budgets:
            adaptive_images().labels(float(budget)).inc()
