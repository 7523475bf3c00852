"""Right answers as tables and pictures, with 95% bootstrap intervals.

An array of them is `[trials, tasks]` of 0 and 1. Intervals are over trials, and
differences between methods are paired: the same trials, the same questions.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vllm_hired.tools.tables import Row

Array = np.ndarray[Any, np.dtype[Any]]


def as_digits(values: Array) -> str:
    """`[trials, tasks]` of 0 and 1 as text, a word a trial: `1101 1111 ...`."""
    return " ".join("".join(str(int(x)) for x in trial) for trial in values)


def most_usual(truth: Array) -> Array:
    """`[trials, tasks]` of 0 and 1: where the task's most usual answer is right."""
    usual = [Counter(column).most_common(1)[0][0] for column in truth.T.tolist()]
    return (truth == np.array(usual)).astype(float)


def interval(values: Array, of: Array | None = None, draws: int = 2000) -> str:
    """`mean (low to high)` in percent: 95% bootstrap over the first axis.

    Args:
        values: `[trials, ...]`.
        of: `[trials, ...]`, by whose mean the other is divided, trials drawn alike.
        draws: of as many trials as there are.
    """
    rng = np.random.default_rng(0)
    part = values.reshape(len(values), -1).mean(axis=1)
    whole = np.ones_like(part) if of is None else of.reshape(len(of), -1).mean(axis=1)
    picks = rng.integers(0, len(part), (draws, len(part)))
    drawn = part[picks].mean(axis=1) / whole[picks].mean(axis=1)
    low, high = np.percentile(100 * drawn, [2.5, 97.5])
    return f"{100 * part.mean() / whole.mean():.1f} ({low:.1f} to {high:.1f})"


def accuracy_rows(
    found: dict[tuple[str, float], Array], names: Sequence[str]
) -> list[Row]:
    """A row a selector and budget, a column for each of the tasks' names."""
    return [
        {
            "selector": selector,
            "budget": budget,
            "all tasks (%)": interval(values),
            "of stock's (%)": interval(values, found["stock", 1.0]),
            **{f"{name} (%)": interval(values[:, i]) for i, name in enumerate(names)},
        }
        for (selector, budget), values in found.items()
    ]


def difference_rows(found: dict[tuple[str, float], Array]) -> list[Row]:
    """HiRED less each other selector at the same budget, in percent points."""
    budgets = dict.fromkeys(b for s, b in found if s == "hired")
    others = dict.fromkeys(s for s, _ in found if s not in ("stock", "hired"))
    return [
        {
            "budget": budget,
            **{
                f"hired - {other}": interval(
                    found["hired", budget] - found[other, budget]
                )
                for other in others
            },
        }
        for budget in budgets
    ]


def draw(found: dict[tuple[str, float], Array]) -> Figure:
    """Accuracy over the budget, a line a selector; stock is where all begin."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    stock = found["stock", 1.0].mean()
    for selector in dict.fromkeys(name for name, _ in found if name != "stock"):
        points = [(1.0, stock)]
        points += [(b, v.mean()) for (s, b), v in found.items() if s == selector]
        plot_selector(axes, selector, [(x, 100 * share) for x, share in points])
    axes.set(xlabel="hired_budget", ylabel="right answers (%)", xscale="log")
    budgets = list(dict.fromkeys(budget for _, budget in found))
    axes.set_xticks(budgets, [str(budget) for budget in budgets])
    axes.minorticks_off()
    axes.invert_xaxis()
    axes.legend()
    return figure


def plot_selector(axes: Axes, name: str, points: Sequence[tuple[float, float]]) -> None:
    """A selector's line."""
    # Wide and pale, or a line as good as HiRED's would hide it.
    width, alpha = (6, 0.4) if name == "hired" else (1.5, 1.0)
    axes.plot(*zip(*points, strict=True), "o-", lw=width, alpha=alpha, label=name)
