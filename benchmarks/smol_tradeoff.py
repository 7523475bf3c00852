"""Right answers against time to first token: what a user chooses a budget by.

Joins what two measurements of one checkpoint wrote; it measures nothing itself.

    python -m benchmarks.latency --model out/llava-next-smol --dtype float32 \
        --size 672x672 --name smol-latency
    python -m benchmarks.smol_accuracy --model out/llava-next-smol --dtype float32
    python -m benchmarks.smol_tradeoff

A budget's time is that of `hired`: the count decides it. What other methods take longer
is in `methods.md`. The table has `hired` alone, for the README.
"""

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any

from matplotlib import colormaps
from matplotlib.figure import Figure

from benchmarks.harness import RESULTS
from benchmarks.intervals import plot_selector
from vllm_hired.tools.tables import Row, as_table


def seconds_by_budget(latency: dict[str, Any]) -> dict[float, float]:
    """Median time to first token of each budget, of the one size that was measured."""
    (_,) = {row["size"] for row in latency["raw"]}
    return {
        row["budget"]: median(one["first token"] for one in row["rounds"])
        for row in latency["raw"]
    }


def shares(accuracy: dict[str, Any]) -> dict[tuple[str, float], float]:
    """Right answers in percent, by selector and budget."""
    return {
        (row["selector"], row["budget"]): 100
        * row["right"].count("1")
        / (row["right"].count("1") + row["right"].count("0"))
        for row in accuracy["raw"]
    }


def joined(latency: dict[str, Any], accuracy: dict[str, Any]) -> list[Row]:
    """Of `hired`, a row for each budget whose time and answers are both known."""
    (times, _), (answers, _) = (
        tuple(found["tables"].values()) for found in (latency, accuracy)
    )
    right = {
        row["budget"]: row["all tasks (%)"]
        for row in answers
        if row["selector"] in ("stock", "hired")
    }
    columns = ("budget", "visual tokens", "first token (s)", "stock / this")
    return [
        {name: row[name] for name in columns}
        | {"right answers (%)": right[row["budget"]]}
        for row in times
        if row["budget"] in right
    ]


def draw(found: dict[tuple[str, float], float], seconds: dict[float, float]) -> Figure:
    """A line a method, a point a budget; all lines begin at stock."""
    figure = Figure(figsize=(7, 4.5))
    axes = figure.subplots()
    axes.set_prop_cycle(color=[colormaps["tab20"](i) for i in range(20)])
    stock = seconds[1.0], found["stock", 1.0]
    for selector in dict.fromkeys(name for name, _ in found if name != "stock"):
        points = [stock]
        points += [
            (seconds[budget], share)
            for (name, budget), share in found.items()
            if name == selector and budget in seconds
        ]
        plot_selector(axes, selector, points)
    axes.annotate("stock", stock)
    for budget, time_s in seconds.items():
        axes.axvline(time_s, color="0.9", zorder=0)
        axes.text(time_s, axes.get_ylim()[0], f" {budget}", color="0.4", rotation=90)
    axes.set(xlabel="time to first token (s)", ylabel="right answers (%)")
    axes.legend(fontsize="small")
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--latency", type=Path, default=RESULTS / "smol-latency.json")
    parser.add_argument("--accuracy", type=Path, default=RESULTS / "smol-accuracy.json")
    args = parser.parse_args()
    latency, accuracy = (
        json.loads(path.read_text()) for path in (args.latency, args.accuracy)
    )
    figure = draw(shares(accuracy), seconds_by_budget(latency))
    figure.savefig(args.out / "smol-tradeoff.png", dpi=120, bbox_inches="tight")
    sources = [
        f"{part['machine']}, vLLM {part['versions']['vllm']}, {part['date']}: "
        f"`{part['command']}`"
        for part in (latency, accuracy)
    ]
    text = [*sources, as_table(joined(latency, accuracy))]
    (args.out / "smol-tradeoff.md").write_text("\n\n".join(text) + "\n")


if __name__ == "__main__":
    main()
