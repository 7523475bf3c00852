"""What each part of HiRED is worth: the paper's Table 5, on a checkpoint that answers.

One setting is changed at a time, in a running engine: the thumbnail's share, the layers
that attention is read from, one head instead of the sum over heads, and an even split
among tiles. Scenes, questions and intervals are those of `benchmarks.accuracy`;
differences are paired with HiRED as it is by default.

    python -m benchmarks.ablation --model checkpoints/llava-next-tiny
"""

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any
from unittest import mock

from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm

from benchmarks.accuracy import (
    Array,
    as_digits,
    held_out,
    interval,
    right,
    start_answering,
)
from benchmarks.harness import forget, make_parser, model_of, write_results
from vllm_hired.config import SETTINGS, HiredConfig
from vllm_hired.selectors import make_selector, read_method
from vllm_hired.tools.tables import Row
from vllm_hired.towers.attention import Measure, cls_attention
from vllm_hired.towers.reading import ATTENTIONS

BUDGETS = (0.2, 0.1)
ALPHAS = (0, 0.25, 0.5, 0.75, 1)
Variant = tuple[str, Any]
"""What is changed, and to what."""
DEFAULT: Variant = ("nothing", "-")


def variants(model: Any) -> list[Variant]:
    """Of every layer and head of a running model with a CLIP tower."""
    layers = range(len(model.vision_tower.vision_model.encoder.layers))
    heads = range(model.config.vision_config.num_attention_heads)
    return one_changed(model.hired, layers, layers, heads)


def one_changed(
    hired: HiredConfig,
    init_layers: Iterable[int],
    final_layers: Iterable[int],
    heads: Iterable[int] = (),
) -> list[Variant]:
    """The default first, then all that differs from it in one thing."""
    return [
        DEFAULT,
        ("split among tiles", "even"),
        *(("alpha", a) for a in ALPHAS if a != hired.alpha),
        *(("init layer", layer) for layer in init_layers if layer != hired.init_layer),
        *(
            ("final layer", layer)
            for layer in final_layers
            if layer != hired.final_layer
        ),
        *(("one head", head) for head in heads),
    ]


@contextmanager
def changed(model: Any, variant: Variant) -> Iterator[None]:
    """The running model with one thing changed."""
    what, value = variant
    hired, selector = model.hired, model.selector
    scores: Measure = cls_attention
    if what == "split among tiles":
        selector = make_selector(value)
    elif what == "one head":
        scores = of_one_head(value)
    elif what == "alpha":
        hired = replace(hired, alpha=Fraction(value))
    elif what == "init layer":
        hired = replace(hired, init_layer=value)
    elif what == "final layer":
        hired = replace(hired, final_layer=value)
    with (
        mock.patch.dict(ATTENTIONS, cls=scores),
        mock.patch.multiple(model, hired=hired, selector=selector),
    ):
        yield


def of_one_head(head: int) -> Measure:
    """`cls_attention` of one head; at both layers."""

    def scores(query: Tensor, key: Tensor, num_heads: int, scale: float) -> Tensor:
        query, key = (x.chunk(num_heads, dim=-1)[head] for x in (query, key))
        return cls_attention(query, key, 1, scale)

    return scores


@contextmanager
def selecting_by(model: Any, name: str) -> Iterator[None]:
    """The running model with another method."""
    method = read_method(name, {}, SETTINGS)
    hired = replace(model.hired, selector=name, method=method)
    selector = make_selector(name, method)
    with mock.patch.multiple(model, hired=hired, selector=selector):
        yield


def rows_of(found: dict[tuple[Variant, float], Array]) -> list[Row]:
    budgets = list(dict.fromkeys(budget for _, budget in found))
    return [
        {
            "changed": what,
            "to": value,
            **{
                heading: text
                for budget in budgets
                for heading, text in (
                    (f"right at {budget} (%)", interval(found[variant, budget])),
                    (
                        f"less the default at {budget}",
                        interval(found[variant, budget] - found[DEFAULT, budget]),
                    ),
                )
            },
        }
        for variant in dict.fromkeys(variant for variant, _ in found)
        for what, value in [variant]
    ]


def draw(found: dict[tuple[Variant, float], Array]) -> Figure:
    """A bar a variant and budget."""
    names = list(dict.fromkeys(variant for variant, _ in found))
    budgets = list(dict.fromkeys(budget for _, budget in found))
    figure = Figure(figsize=(7, 0.3 * len(names) + 1))
    axes = figure.subplots()
    for part, budget in enumerate(budgets):
        axes.barh(
            [row + 0.35 * part for row in range(len(names))],
            [100 * found[name, budget].mean() for name in names],
            height=0.35,
            label=f"hired_budget={budget}",
        )
    axes.set_yticks(range(len(names)), [f"{what} {value}" for what, value in names])
    axes.invert_yaxis()
    axes.set(xlabel="right answers (%)")
    axes.legend()
    return figure


def write_found(
    args: argparse.Namespace,
    name: str,
    title: str,
    found: dict[tuple[Variant, float], Array],
) -> None:
    """Writes the result files of a name."""
    raw = [
        {"changed": what, "to": value, "budget": budget, "right": as_digits(values)}
        for ((what, value), budget), values in found.items()
    ]
    write_results(args, name, {title: rows_of(found)}, raw, draw(found))


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--scenes", type=int, default=200, help="default: 200")
    parser.add_argument("--budgets", nargs="+", type=float, default=BUDGETS)
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: a checkpoint that can answer is needed")
    samples = held_out(args.scenes)
    llm = start_answering(args, "hired")
    model = model_of(llm)
    found = {}
    for variant in tqdm(variants(model), desc="ablation"):
        for budget in args.budgets:
            with changed(model, variant):
                forget(llm)
                found[variant, budget] = right(llm, samples, budget)
    title = f"Right answers on {args.scenes} held-out scenes, 95% intervals"
    write_found(args, "ablation", title, found)


if __name__ == "__main__":
    main()
