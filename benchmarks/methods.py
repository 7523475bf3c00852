"""What every selection method costs beside the vision tower, at every budget.

    python -m benchmarks.methods

Costs are those of one 672x672 image at LLaVA-NeXT-7B's tower dimensions (2 x 2 tiles
and a thumbnail, dummy weights), on this machine, which should be quiet.
"""

import argparse
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks import harness, overhead
from benchmarks.harness import draw_bars, make_parser, now, spread, write_results
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
    bench = Bench(harness.model_of(overhead.start_engine(args, args.shape)))
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


def draw(found: list[Row]) -> Figure:
    """A bar a method and budget."""
    medians = {
        (cost["selector"], cost["budget"]): 1000 * median(cost["method seconds"])
        for cost in found
    }
    label = "what the method adds to the tower (ms)"
    return draw_bars(medians, xlabel=label, xscale="log")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="default: 5")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    parser.add_argument("--selectors", nargs="+", default=[*SELECTORS])
    args = parser.parse_args()
    if args.model is not None:
        parser.error("--model: costs are measured on a --shape")
    title = f"What a method adds to the tower of {args.shape}, one {SIDE}x{SIDE} image"
    found = costs(args)
    write_results(args, "methods", {title: cost_rows(found)}, found, draw(found))


if __name__ == "__main__":
    main()
