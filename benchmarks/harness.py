"""What the measurements share: arguments, an engine, a stopwatch, result files."""

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import wraps
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from vllm import LLM

from benchmarks.provenance import provenance
from random_checkpoints.llava import SHAPES, write_checkpoint
from random_checkpoints.qwen_vl import write_qwen_checkpoint
from random_checkpoints.qwen_vl_configs import QWEN_SHAPES
from vllm_hired.tools.tables import Row, as_table

RESULTS = Path(__file__).parent / "results"


def make_parser(
    description: str | None, shapes: Collection[str] = SHAPES.keys()
) -> argparse.ArgumentParser:
    """Arguments of every measurement.

    Args:
        description: of the measurement.
        shapes: those that it can measure, of `SHAPES` and `QWEN_SHAPES`.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    model = parser.add_mutually_exclusive_group()
    model.add_argument(
        "--shape",
        choices=shapes,
        default="llava-next-7b",
        help="dimensions of a model with dummy weights (default: %(default)s)",
    )
    model.add_argument("--model", help="directory or id of a real checkpoint")
    parser.add_argument("--dtype", default="bfloat16", help="default: %(default)s")
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cpu",
        help="what vLLM was installed for (default: cpu)",
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="default: benchmarks/results"
    )
    return parser


_engines: list[LLM] = []
"""They live until the end: shutting one down takes the process groups of the others
with it."""


def start_engine(args: argparse.Namespace, **options: Any) -> LLM:
    """An engine on the model of `args`; nothing is reused between requests."""
    check_device(args)
    model = args.model
    if model is None:
        folder = Path("out") / args.shape
        if args.shape in SHAPES:
            write_checkpoint(folder, SHAPES[args.shape], seed=None)
        else:
            write_qwen_checkpoint(folder, QWEN_SHAPES[args.shape], seed=None)
        options["load_format"] = "dummy"
        model = str(folder)
    defaults: dict[str, Any] = {
        "dtype": args.dtype,
        "enforce_eager": args.device == "cpu",
        "max_model_len": 4096,
        "enable_prefix_caching": False,
        "mm_processor_cache_gb": 0,
        "disable_log_stats": False,
        "hf_overrides": {"hired_max_budget": 1.0},
    }
    _engines.append(LLM(model, **(defaults | options)))
    return _engines[-1]


def check_device(args: argparse.Namespace) -> None:
    """Exits where `--device cuda` was asked for and there is none."""
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch sees no CUDA device")


def model_of(llm: LLM) -> Any:
    """The model inside an engine that runs in this process."""
    (model,) = llm.apply_model(lambda model: model)
    return model


def forget(llm: LLM) -> None:
    """Empties the caches, whose keys know nothing of what a benchmark changes."""
    llm.llm_engine.reset_encoder_cache()
    assert llm.reset_prefix_cache()


class Stopwatch:
    """Seconds of each of chosen calls, by name. Waits for the device around each."""

    def __init__(self) -> None:
        self.calls: defaultdict[str, list[float]] = defaultdict(list)

    def watch(self, owner: Any, attribute: str, name: str) -> None:
        """Times `owner.attribute` from now on."""
        call: Callable[..., Any] = getattr(owner, attribute)

        @wraps(call)
        def timed(*args: Any, **kwargs: Any) -> Any:
            start = now()
            try:
                return call(*args, **kwargs)
            finally:
                self.calls[name].append(now() - start)

        setattr(owner, attribute, timed)

    def take(self) -> dict[str, list[float]]:
        """The calls since the last time, in order; starts anew."""
        taken = dict(self.calls)
        self.calls.clear()
        return taken


def now() -> float:
    """Seconds, after all that the device was given to do."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def noise(width: int, height: int, seed: int) -> Image.Image:
    """An image that no cache has seen."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3))
    return Image.fromarray(pixels.astype(np.uint8))


def spread(values: Sequence[float], digits: int = 2) -> str:
    """`median (min to max)`."""
    low, middle, high = min(values), median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def draw_bars(values: Mapping[tuple[str, float], float], **axis: Any) -> Figure:
    """A bar for each name and budget, the names one below the other.

    Args:
        values: by name and budget.
        axis: what matplotlib's `Axes.set` takes.
    """
    names, budgets = (list(dict.fromkeys(each)) for each in zip(*values, strict=True))
    figure = Figure(figsize=(7, 0.4 * len(names) + 1))
    axes = figure.subplots()
    height = 0.8 / len(budgets)
    for part, budget in enumerate(budgets):
        own = {name: value for (name, of), value in values.items() if of == budget}
        axes.barh(
            [names.index(name) + height * part for name in own],
            [*own.values()],
            height=height,
            label=f"hired_budget={budget}",
        )
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(**axis)
    axes.legend(fontsize="small")
    return figure


def write_results(
    args: argparse.Namespace,
    name: str,
    tables: Mapping[str, Sequence[Row]],
    raw: Any,
    figure: Figure | None = None,
) -> None:
    """Writes `name.json`, `name.md` and, of a figure, `name.png`; prints the tables."""
    args.out.mkdir(parents=True, exist_ok=True)
    facts = provenance()
    model = args.model or f"{args.shape}, dummy weights"
    text = "\n\n".join(f"{title}\n\n{as_table(rows)}" for title, rows in tables.items())
    head = (
        f"{model}, {args.dtype}, {args.device}; {facts['machine']}, accelerator "
        f"{facts['accelerator']}; vLLM {facts['versions']['vllm']}; commit "
        f"{facts['commit']}, {facts['date']}\n\n`{facts['command']}`"
    )
    (args.out / f"{name}.md").write_text(f"{head}\n\n{text}\n")
    result = {"model": model, "dtype": args.dtype, "device": args.device}
    result |= {**facts, "tables": tables, "raw": raw}
    (args.out / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"\n{text}\n\n{args.out / name}.json, .md", end="")
    if figure is not None:
        figure.savefig(args.out / f"{name}.png", dpi=120, bbox_inches="tight")
        print(", .png", end="")
    print()
