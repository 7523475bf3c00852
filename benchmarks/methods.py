"""Every selection method at every budget: its cost beside the vision tower, and how
many answers are right, through the engine.

    python -m benchmarks.methods --model checkpoints/llava-next-tiny

Costs are those of one 672x672 image at LLaVA-NeXT-7B's tower dimensions (2 x 2 tiles
and a thumbnail, dummy weights), on this machine. Answers are those of `--model`, as in
`benchmarks.accuracy`; without one, costs alone are measured. Costs want a quiet machine
and answers take long, so `--keep-costs` adds answers to the costs of an earlier run.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks import accuracy, harness, overhead
from benchmarks.ablation import selecting_by
from benchmarks.harness import forget, make_parser, now, spread, write_results
from training.tiny.data import TASKS
from vllm_hired.budget import kept_count
from vllm_hired.config import SETTINGS
from vllm_hired.engine.capture import capture
from vllm_hired.layouts import image_layout
from vllm_hired.selectors import SELECTORS, make_selector, read_method
from vllm_hired.selectors.base import kept_rows
from vllm_hired.tools.tables import Row
from vllm_hired.towers.observation import Quantity
from vllm_hired.towers.reading import Reading, observations, readings_for

BUDGETS = (0.4, 0.2, 0.1)
SIDE = 672
"""Of the image whose cost is measured, in pixels."""


class Bench:
    """One image in a running tower, and what each method does with it."""

    def __init__(self, model: Any) -> None:
        self.model, self.hired = model, model.hired
        self.layout = image_layout(model.config, SIDE, SIDE)
        side = model.config.vision_config.image_size
        weight = next(model.vision_tower.parameters())
        shape = (self.layout.num_partitions, 3, side, side)
        self.pixels = torch.rand(shape).to(weight)
        self.entering: dict[int, tuple[Tensor, Tensor]] = {}
        self.features = self.encode_and_keep()

    def encode(self) -> Tensor:
        features: Tensor = self.model._image_pixels_to_features(
            self.model.vision_tower, self.pixels
        )
        return features

    def encode_and_keep(self) -> Tensor:
        """Notes what enters the layers that methods look at."""

        def note(layer: int) -> Callable[..., Tensor]:
            def keep(query: Tensor, key: Tensor, heads: int, scale: float) -> Tensor:
                self.entering[layer] = (query, key)
                return query

            return keep

        names: Iterator[Any] = iter(("init_attention", "final_attention"))
        layers = dict(
            zip(names, (self.hired.init_layer, self.hired.final_layer), strict=True)
        )
        readings: dict[Quantity, Reading] = {
            name: Reading(layer, note(layer)) for name, layer in layers.items()
        }
        with capture(self.model.vision_tower, readings):
            return self.encode()

    def work(self, name: str, budget: float) -> Callable[[], Tensor]:
        """All that a method adds to the tower, up to the projector."""
        selector = make_selector(name, read_method(name, {}, SETTINGS))
        needs = selector.needs_on(self.model.tower_kind)
        readings = readings_for(
            needs, self.hired.attention, self.hired.init_layer, self.hired.final_layer
        )
        kept = kept_count(self.layout, Fraction(str(budget)), None).tokens
        heads = self.model.config.vision_config.num_attention_heads
        layers = self.model.vision_tower.vision_model.encoder.layers

        def run() -> Tensor:
            measured = {
                quantity: reading.measure(
                    *self.entering[reading.layer],
                    heads,
                    layers[reading.layer].self_attn.scale,
                )
                for quantity, reading in readings.items()
            }
            seen = observations(
                self.features, measured, heads, needs, [self.layout.num_partitions]
            )
            selection = selector.select(seen[0], self.layout, kept, self.hired.alpha)
            return kept_rows(self.features, [selection], [self.layout])

        return run


@torch.inference_mode()
def costs(args: argparse.Namespace) -> list[Row]:
    """A row a method and budget: seconds in each round, memory, waits.

    In a round the tower encodes once, then each method selects at each budget, so that
    a method's share of the tower is that of the same minute.
    """
    cost_args = argparse.Namespace(**vars(args) | {"model": None})
    bench = Bench(harness.model_of(overhead.start_engine(cost_args, args.shape)))
    found: list[Row] = []
    works: list[Callable[[], Tensor]] = []
    for name in args.selectors:
        for budget in args.budgets:
            work = bench.work(name, budget)
            rows = work()
            events = overhead.cpu_events(work)
            memory = [e.nbytes() for e in events if e.name() == "[memory]"]
            works.append(work)
            found.append(
                {
                    "selector": name,
                    "budget": budget,
                    "kept": len(rows),
                    "tower seconds": [],
                    "method seconds": [],
                    "peak MiB": round(max(accumulate(memory)) / 2**20, 1),
                    "waits": sum(e.name() in overhead.WAITS for e in events),
                }
            )
    for _ in tqdm(range(args.repeats), desc="costs"):
        tower = seconds_of(bench.encode)
        for cost, work in zip(found, works, strict=True):
            cost["tower seconds"].append(tower)
            cost["method seconds"].append(seconds_of(work))
    return found


def seconds_of(call: Callable[[], object]) -> float:
    start = now()
    call()
    return now() - start


def cost_rows(found: list[Row]) -> list[Row]:
    """Milliseconds are medians; the share is `median (min to max)`."""
    rows = []
    for cost in found:
        tower, method = (cost[f"{part} seconds"] for part in ("tower", "method"))
        shares = [100 * m / t for m, t in zip(method, tower, strict=True)]
        rows.append(
            {
                **{key: cost[key] for key in ("selector", "budget", "kept")},
                "method (ms)": round(1000 * median(method), 2),
                "tower (ms)": round(1000 * median(tower), 1),
                "method (% of tower)": spread(shares),
                "peak (MiB)": cost["peak MiB"],
                "waits": cost["waits"],
            }
        )
    return rows


def answers(args: argparse.Namespace) -> dict[tuple[str, float], Any]:
    """By selector and budget, `[scenes, tasks]` of 0 and 1. One engine serves all."""
    samples = accuracy.held_out(args.scenes)
    llm = accuracy.start_answering(args, "hired")
    model = harness.model_of(llm)
    found = {("stock", 1.0): accuracy.right(llm, samples, 1.0)}
    for name in tqdm(dict.fromkeys(["hired", *args.selectors]), desc="answers"):
        with selecting_by(model, name):
            for budget in args.budgets:
                forget(llm)
                found[name, budget] = accuracy.right(llm, samples, budget)
    return found


def draw(found: list[Row], right: dict[tuple[str, float], Any]) -> Figure:
    """Right answers against the method's cost, a line a method, a point a budget."""
    figure = Figure(figsize=(7, 4))
    axes = figure.subplots()
    names = dict.fromkeys(cost["selector"] for cost in found)
    for number, name in enumerate(names):
        own = [cost for cost in found if cost["selector"] == name]
        across = [1000 * median(cost["method seconds"]) for cost in own]
        up = [
            100 * right[name, cost["budget"]].mean() if right else cost["kept"]
            for cost in own
        ]
        # There are ten colours, and more methods.
        axes.plot(across, up, marker="o^"[number // 10 % 2], label=name)
    axes.set(xlabel="what the method adds to the tower (ms)", xscale="log")
    axes.set_ylabel("right answers (%)" if right else "tokens kept")
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="default: 200")
    parser.add_argument("--repeats", type=int, default=5, help="default: 5")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--selectors", nargs="+", default=[*SELECTORS])
    parser.add_argument(
        "--keep-costs",
        action="store_true",
        help="those of methods.json in --out, instead of measuring them",
    )
    args = parser.parse_args()
    title = f"What a method adds to the tower of {args.shape}, one {SIDE}x{SIDE} image"
    if args.keep_costs:
        known = json.loads((args.out / "methods.json").read_text())
        found = known["raw"]["costs"]
        measured = known["raw"].get("costs measured by", known)
        measured = {key: measured[key] for key in ("command", "commit", "date")}
        title += ", by `{command}` at commit {commit}, {date}".format(**measured)
    else:
        found, measured = costs(args), None
    tables = {title: cost_rows(found)}
    right = answers(args) if args.model else {}
    if right:
        title = f"Right answers of {args.model} on {args.scenes} held-out scenes"
        tables[f"{title}, 95% intervals"] = accuracy.accuracy_rows(
            right, [task.__name__ for task in TASKS]
        )
        tables["Paired differences in percent points, 95% intervals"] = (
            accuracy.difference_rows(right)
        )
    raw = {
        "costs": found,
        **({"costs measured by": measured} if measured else {}),
        "right": [
            {"selector": name, "budget": budget, "right": accuracy.as_digits(values)}
            for (name, budget), values in right.items()
        ],
    }
    write_results(args, "methods", tables, raw, draw(found, right))


if __name__ == "__main__":
    main()
