"""What HiRED itself costs beside the vision tower: scores, selection, merge.

The parts of a repeat run one after another on the same batch, and ratios are taken
within a repeat. The LLM is cut to one layer: nothing here reaches it.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import accumulate
from statistics import median
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor
from tqdm import tqdm
from vllm import LLM

from benchmarks import harness
from benchmarks.harness import now, spread
from vllm_hired.budget import kept_count
from vllm_hired.engine.capture import capture
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.selectors.base import Selection, kept_rows
from vllm_hired.tools.tables import Row
from vllm_hired.towers.attention import cls_attention
from vllm_hired.towers.observation import Observation
from vllm_hired.towers.reading import readings_for

CASES = {"1x1": (1, 1, 1), "1x2": (1, 1, 2), "2x2": (1, 2, 2)}
CASES |= {"2 of 2x2": (2, 2, 2), "4 of 2x2": (4, 2, 2)}
"""Images of one tower forward: how many, and each one's tile grid."""

OWN = ("scores", "selection", "merge")
"""The parts that stock vLLM does not have."""

WAITS = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select")
"""What runs where the host would wait for a device."""


class Batch:
    """The images of a case, and in `parts` the work on them, each part alone."""

    def __init__(self, model: Any, case: str) -> None:
        tower, hired = model.vision_tower, model.hired
        self.selector, self.alpha = model.selector, hired.alpha
        count, *grid = CASES[case]
        vision = model.config.vision_config
        side = vision.image_size
        size = grid[0] * side, grid[1] * side
        self.images = [anyres_layout(*size, (size,), side, vision.patch_size)] * count
        self.counts = [kept_count(i, Fraction("0.2"), None).tokens for i in self.images]
        self.partitions = [image.num_partitions for image in self.images]
        weight = next(tower.parameters())
        pixels = torch.rand(sum(self.partitions), 3, side, side).to(weight)
        layers = tower.vision_model.encoder.layers
        chosen = hired.init_layer, hired.final_layer
        self.attentions = [layers[layer].self_attn for layer in chosen]
        last = layers[hired.final_layer]
        needs = self.selector.needs

        def encode() -> Tensor:
            return model._image_pixels_to_features(tower, pixels)

        def encode_and_score() -> None:
            with capture(tower, readings_for(needs, hired.attention, *chosen)):
                encode()

        def after_attention(hidden: Tensor) -> Tensor:
            hidden = hidden + last.self_attn.out_proj(hidden)[0]
            return hidden + last.mlp(last.layer_norm2(hidden))

        self.entering: list[tuple[Tensor, Tensor]] = []  # query and key, by layer
        hooks = [
            a.attn.register_forward_pre_hook(lambda _, x: self.entering.append(x[:2]))
            for a in self.attentions
        ]
        self.features = encode()
        for hook in hooks:
            hook.remove()
        scores = self.score(self.entering)
        kept = self.select(scores)
        rows = kept_rows(self.features, kept, self.images)
        # Which rows the last layer gets does not change what they cost.
        hidden = torch.randn(self.entering[1][0].shape).to(weight)
        few = torch.randperm(hidden[..., 0].numel())[: len(rows)].to(weight.device)
        self.parts: dict[str, Callable[[], object]] = {
            "tower": encode,
            "tower with capture": encode_and_score,
            "scores": lambda: self.score(self.entering),
            "selection": lambda: self.select(scores),
            "merge": lambda: kept_rows(self.features, kept, self.images),
            "all rows": self.score_fully,
            "projector": lambda: model.multi_modal_projector(self.features),
            "projector, kept": lambda: model.multi_modal_projector(rows),
            "last layer": lambda: after_attention(hidden),
            "last layer, kept": lambda: after_attention(hidden.flatten(0, 1)[few]),
        }

    def score(self, entering: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
        return [
            cls_attention(query, key, layer.num_heads_per_partition, layer.scale)
            for layer, (query, key) in zip(self.attentions, entering, strict=True)
        ]

    def score_fully(self) -> list[Tensor]:
        """As the authors' code does it: attention of all queries, in tower dtype."""
        scores = []
        for layer, inputs in zip(self.attentions, self.entering, strict=True):
            heads = layer.num_heads_per_partition, -1
            query, key = (x.unflatten(-1, heads).transpose(1, 2) for x in inputs)
            attention = (query @ key.transpose(-2, -1) * layer.scale).softmax(dim=-1)
            scores.append(attention[:, :, 0, 1:].sum(dim=1))
        return scores

    def select(self, scores: Sequence[Tensor]) -> list[Selection]:
        init, final = (layer.split(self.partitions) for layer in scores)
        each = zip(init, final, self.images, self.counts, strict=True)
        return [
            self.selector.select(
                Observation(f.device, {"init_attention": i, "final_attention": f}),
                image,
                count,
                self.alpha,
            )
            for i, f, image, count in each
        ]

    def drop(self, device: torch.device) -> None:
        """Scores, selection and merge, each from what the one before gave."""
        entering = [(query.to(device), key.to(device)) for query, key in self.entering]
        kept = self.select(self.score(entering))
        kept_rows(self.features.to(device), kept, self.images)

    def count_waits(self) -> int:
        """How often the host waits for the device; on CUDA, an error where it does."""
        self.drop(torch.device("meta"))  # has no values: reading one would fail
        if self.features.is_cuda:
            torch.cuda.set_sync_debug_mode("error")
        events = cpu_events(lambda: self.drop(self.features.device))
        if self.features.is_cuda:
            torch.cuda.set_sync_debug_mode("default")
        return sum(event.name() in WAITS for event in events)

    def peak(self, part: str) -> float:
        """Most MiB that a part holds at once, its result included."""
        call = self.parts[part]
        if not self.features.is_cuda:
            sizes = [e.nbytes() for e in cpu_events(call) if e.name() == "[memory]"]
            return round(max(accumulate(sizes)) / 2**20, 2)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)


def cpu_events(call: Callable[[], object]) -> list[Any]:
    """Operators, allocations and releases of a call, in order."""
    os.environ["KINETO_LOG_LEVEL"] = "99"
    with torch.autograd.profiler.profile(profile_memory=True) as run:
        call()
    assert run.kineto_results is not None
    return sorted(run.kineto_results.events(), key=lambda event: event.start_ns())


@torch.inference_mode()
def measure(engine: LLM, shape: str, case: str, repeats: int) -> Row:
    """Seconds of each part, by repeat; memory and waits of one run."""
    torch.manual_seed(0)
    batch = Batch(harness.model_of(engine), case)
    facts: Row = {"shape": shape, "images": case, "tiles": len(batch.features)}
    facts |= {"kept": sum(batch.counts), "waits": batch.count_waits()}
    facts["peak MiB"] = {part: batch.peak(part) for part in (*OWN, "all rows")}
    seconds: dict[str, list[float]] = {part: [] for part in batch.parts}
    for repeat in tqdm(range(repeats + 1), desc=case):
        for part, call in batch.parts.items():
            start = now()
            call()
            if repeat > 0:  # the first is the warm-up
                seconds[part].append(now() - start)
    own = zip(*(seconds[part] for part in ("tower", *OWN)), strict=True)
    shares = [100 * sum(parts) / tower for tower, *parts in own]
    return facts | {"seconds": seconds, "% of tower": shares}


def make_tables(results: Sequence[Row]) -> dict[str, Sequence[Row]]:
    """Milliseconds are medians; the rest is `median (min to max)`."""
    costs, scores, kept_only = [], [], []
    for result in results:
        seconds, tower = result["seconds"], result["seconds"]["tower"]
        ms = {part: round(1000 * median(each), 2) for part, each in seconds.items()}
        head = {key: result[key] for key in ("shape", "images", "tiles")}
        costs.append(head | {
            "kept": result["kept"], "tower (ms)": ms["tower"],
            "capture / without": ratio(seconds["tower with capture"], tower, 3),
            **{f"{part} (ms)": ms[part] for part in OWN},
            "sum per tile (ms)": round(sum(ms[p] for p in OWN) / head["tiles"], 2),
            "sum (% of tower)": spread(result["% of tower"]),
            "waits": result["waits"],
        })  # fmt: skip
        scores.append(head | {
            "row (ms)": ms["scores"], "all rows (ms)": ms["all rows"],
            "all / row": ratio(seconds["all rows"], seconds["scores"], 1),
            **{f"peak of {p} (MiB)": m for p, m in result["peak MiB"].items()},
        })  # fmt: skip
        for part in ("projector", "last layer"):
            whole, kept = seconds[part], seconds[f"{part}, kept"]
            saved = [100 * (a - b) for a, b in zip(whole, kept, strict=True)]
            kept_only.append(head | {
                "part": part, "all tokens (ms)": ms[part],
                "kept (ms)": ms[f"{part}, kept"], "all / kept": ratio(whole, kept, 1),
                "saved (% of tower)": ratio(saved, tower, 1),
            })  # fmt: skip
    return {
        "What HiRED adds to the tower, hired_budget=0.2": costs,
        "Scores: [CLS] rows of both layers, or all rows as the authors' code": scores,
        "Kept tokens only (last layer: after its attention, upper bound)": kept_only,
    }


def ratio(above: Sequence[float], below: Sequence[float], digits: int) -> str:
    return spread([a / b for a, b in zip(above, below, strict=True)], digits)


def draw(results: Sequence[Row]) -> Figure:
    """HiRED's own time, by tiles: level lines are linear growth."""
    figure = Figure(figsize=(6, 4))
    axes = figure.subplots()
    tiles = [result["tiles"] for result in results]
    shares = [result["% of tower"] for result in results]
    axes.plot(tiles, [median(each) for each in shares])
    axes.plot(tiles, shares, ".", color="grey")
    axes.set(xlabel="tiles in one forward", xticks=tiles, ylim=(0, None))
    axes.set_ylabel("scores + selection + merge (% of the tower's time)")
    return figure


def start_engine(args: argparse.Namespace, shape: str) -> LLM:
    if args.model is not None:
        return harness.start_engine(args, enforce_eager=True)
    return harness.start_engine(
        argparse.Namespace(**vars(args) | {"shape": shape}),
        enforce_eager=True,
        hf_overrides={"text_config": {"num_hidden_layers": 1}},
        gpu_memory_utilization=0.4,  # leaves room for another, and for the batches
    )


def main() -> None:
    parser = harness.make_parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="default: 7")
    args = parser.parse_args()
    batches = [(args.model or args.shape, case) for case in CASES]
    if batches[0][0] == "llava-next-7b":
        batches += [("llava-next-13b", "2x2")]  # same tower, wider projector
    engines = {shape: start_engine(args, shape) for shape in dict(batches)}
    results = [measure(engines[of], of, case, args.repeats) for of, case in batches]
    tables, figure = make_tables(results), draw(results[: len(CASES)])
    harness.write_results(args, "overhead", tables, results, figure)


if __name__ == "__main__":
    main()
