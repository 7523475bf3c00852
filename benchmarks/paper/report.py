"""Ours beside the paper's: a row a task, method and budget, and a picture."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.paper.runs import Run, full_name
from benchmarks.paper.tasks import TASKS, paper_figure
from vllm_hired.tools.tables import Row

Found = Mapping[tuple[Run, str], dict[str, Any]]
"""What each engine answered to each task."""


def rows_of(
    found: Found, runs: Sequence[Run], tasks: Sequence[str], size: str
) -> list[Row]:
    """A row a task and engine, in their order; what was not asked has none.

    Args:
        found: what was answered.
        runs: stock first.
        tasks: as asked.
        size: of the paper's model, or "".
    """
    rows = []
    for task in tasks:
        stock = found.get((runs[0], task))
        for run in runs:
            own = found.get((run, task))
            if own is None:
                continue
            paper = paper_figure(full_name(task), run.selector, run.budget, size)
            rows.append(
                {
                    "benchmark": title_of(task),
                    "method": run.selector,
                    "budget": run.budget,
                    "questions": len(own["samples"]),
                    "score": f"{scaled(task, own['figure']):.1f}",
                    "paper": "-" if paper is None else f"{paper}",
                    "% of stock": "-"
                    if not stock or not stock["figure"]
                    else f"{100 * own['figure'] / stock['figure']:.1f}",
                    "points more than stock": "-"
                    if run.is_stock or stock is None
                    else paired_difference(own["samples"], stock["samples"]),
                }
            )
    return rows


def title_of(task: str) -> str:
    """As the paper calls it; a part of it, or another task, by lmms-eval's name."""
    return TASKS[task].title if task in TASKS else task


def scaled(task: str, figure: float) -> float:
    known = TASKS.get(full_name(task))
    return figure * (known.scale if known else 100.0)


def paired_difference(own: Sequence[Row], stock: Sequence[Row]) -> str:
    """`mean (low to high)` of the questions' differences, in percent points.

    The same question is asked of both. The interval of 95% is the normal one, of the
    mean of as many differences as there are questions.
    """
    scores = {sample["doc"]: sample["score"] for sample in stock}
    differences = 100 * np.array([s["score"] - scores[s["doc"]] for s in own])
    mean = differences.mean()
    error = differences.std(ddof=1) / len(own) ** 0.5 if len(own) > 1 else np.nan
    return f"{mean:+.1f} ({mean - 1.96 * error:+.1f} to {mean + 1.96 * error:+.1f})"


def draw(found: Found, runs: Sequence[Run], tasks: Sequence[str], size: str) -> Figure:
    """A small picture a task: the score over the budget, the paper's dashed."""
    cols = min(4, len(tasks))
    lines = -(-len(tasks) // cols)
    figure = Figure(figsize=(3.4 * cols, 2.8 * lines), layout="constrained")
    for axes, task in zip(
        figure.subplots(lines, cols, squeeze=False).flat, tasks, strict=False
    ):
        for selector in dict.fromkeys(run.selector for run in runs[1:]):
            own = sorted(
                (run.budget, scaled(task, found[run, task]["figure"]))
                for run in runs
                if run.selector in ("stock", selector) and (run, task) in found
            )
            axes.plot(*zip(*own, strict=True), marker="o", label=selector)
        paper = sorted(
            (run.budget, figure_)
            for run in runs
            if (
                figure_ := paper_figure(full_name(task), run.selector, run.budget, size)
            )
            is not None
        )
        if paper:
            axes.plot(
                *zip(*paper, strict=True), "--", color="grey", label="hired (paper)"
            )
        axes.set_title(title_of(task), fontsize="medium")
        axes.set_xlabel("hired_budget")
        axes.invert_xaxis()
    for axes in figure.axes[len(tasks) :]:
        axes.remove()
    figure.axes[0].legend(fontsize="small")
    return figure
