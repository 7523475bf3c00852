"""The learning curve of a training and of its control, as a table and a picture.

    python -m training.smol.curve --trained out/smol/training --control out/smol/control

Shares of right answers about held-out pictures, with all tokens and with 30% of them
drawn at random, by the minutes of training before them.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from training.smol.evaluate import NAMES
from vllm_hired.tools.tables import Row, as_table

RESULTS = Path("benchmarks/results")


def points_of(folder: Path) -> list[dict[str, Any]]:
    """What `train.validate` noted, each point once."""
    lines = [json.loads(line) for line in (folder / "training.jsonl").open()]
    points = {
        (line["validation"], line["step"], line["kept"]): line
        for line in lines
        if "validation" in line
    }
    return list(points.values())


def rows_of(run: str, points: Sequence[dict[str, Any]]) -> list[Row]:
    return [
        {
            "training": run,
            "pictures": point["validation"],
            "step": point["step"],
            "minutes": point["minutes"],
            "tokens kept": f"{100 * point['kept']:.0f}%",
            **{f"{name} (%)": f"{100 * point[name]:.0f}" for name in NAMES},
        }
        for point in points
    ]


def draw(points: Sequence[dict[str, Any]]) -> Figure:
    """A line a task, with all tokens."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    whole = [point for point in points if point["kept"] == 1]
    minutes = [point["minutes"] for point in whole]
    for name in NAMES:
        axes.plot(minutes, [100 * p[name] for p in whole], marker="o", label=name)
    axes.set(xlabel="minutes of training", ylabel="right answers (%)", ylim=(0, 100))
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trained", type=Path, default=Path("out/smol/training"))
    parser.add_argument("--control", type=Path, help="trained with --no-dropping")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args(argv)
    runs = {"with dropping": args.trained}
    if args.control is not None:
        runs["without dropping"] = args.control
    points = {run: points_of(folder) for run, folder in runs.items()}
    rows = [row for run, found in points.items() for row in rows_of(run, found)]
    facts = {
        run: json.loads((folder / "training.json").read_text())
        for run, folder in runs.items()
    }
    machines = {f"{one['accelerator']}, {one['machine']}" for one in facts.values()}
    commands = [f"`{one['command']}`" for one in facts.values()]
    text = "\n\n".join([*sorted(machines), *commands, as_table(rows)])
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "smol-training.md").write_text(text + "\n")
    result = {run: {**facts[run], "points": points[run]} for run in runs}
    (args.out / "smol-training.json").write_text(json.dumps(result, indent=1) + "\n")
    draw(points["with dropping"]).savefig(args.out / "smol-training.png", dpi=110)


if __name__ == "__main__":
    main()
