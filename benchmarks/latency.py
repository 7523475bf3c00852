"""Time to first token and between tokens, by budget and image shape.

Every round runs stock (budget 1.0) and each budget in turn, and a text of the same
length, in one engine. *The bound* of a budget is the tower's time in the round's stock
run plus the time to first token of that text: what no selection can be faster than.

    python -m benchmarks.latency --size 672x672 --budgets 1.0 0.2
    python -m benchmarks.latency --shape qwen2.5-vl-3b --size 1176x896

A Qwen-VL's projector is the merger at the end of its tower. Attention is read while the
tower runs, and counts as its time.
"""

from statistics import median
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tqdm import tqdm
from vllm import LLM, SamplingParams, TokensPrompt

from benchmarks.harness import (
    Stopwatch,
    make_parser,
    model_of,
    noise,
    now,
    spread,
    start_engine,
    write_results,
)
from random_checkpoints.llava import SHAPES
from random_checkpoints.qwen_vl_configs import QWEN_SHAPES
from vllm_hired.tools.tables import Row

STAGES = ("image processing", "vision tower", "selection", "projector", "LLM prefill")


class Latency:
    """An engine with its stages under a stopwatch."""

    def __init__(self, llm: LLM, decode_tokens: int) -> None:
        self.llm = llm
        self.watch = Stopwatch()
        self.sampling = SamplingParams(
            max_tokens=1 + decode_tokens, temperature=0, ignore_eos=True
        )
        model = model_of(llm)
        processor = llm.llm_engine.renderer.get_mm_processor()
        self.watch.watch(processor, "apply", "image processing")
        self.has_merger = hasattr(model, "visual")
        tower = model.visual if self.has_merger else model.vision_tower
        projector = tower.merger if self.has_merger else model.multi_modal_projector
        self.watch.watch(tower, "forward", "vision tower")
        self.watch.watch(projector, "forward", "projector")
        self.watch.watch(model, "embed_multimodal", "embedding")
        self.watch.watch(model, "forward", "LLM prefill")
        self.placeholder = model.get_placeholder_str("image", 0)
        hf_config = llm.llm_engine.model_config.hf_config
        names = ("image_token_id", "image_token_index")
        self.image_token = next(
            getattr(hf_config, name) for name in names if hasattr(hf_config, name)
        )

    def run(self, request: Any) -> Row:
        """One request alone. Seconds."""
        self.watch.take()
        start = now()
        (output,) = self.llm.generate([request], self.sampling, use_tqdm=False)
        total = now() - start
        calls = self.watch.take()
        metrics: Any = output.metrics
        decoding = metrics.last_token_ts - metrics.first_token_ts
        ids = output.prompt_token_ids or []
        stages = {name: sum(calls.get(name, [])) for name in (*STAGES, "embedding")}
        if self.has_merger:
            stages["vision tower"] -= stages["projector"]
        stages["selection"] = (
            stages.pop("embedding") - stages["vision tower"] - stages["projector"]
        )
        stages["LLM prefill"] = calls["LLM prefill"][0]
        return {
            "prompt tokens": len(ids),
            "visual tokens": ids.count(self.image_token),
            "first token": total - decoding,
            "between tokens": decoding / max(1, len(output.outputs[0].token_ids) - 1),
            "stages": stages,
        }

    def image(self, width: int, height: int, budget: float, seed: int) -> Row:
        return self.run(
            {
                "prompt": f"USER: {self.placeholder}\nWhat is this? ASSISTANT:",
                "multi_modal_data": {"image": noise(width, height, seed)},
                "mm_processor_kwargs": {"hired_budget": budget},
            }
        )

    def text(self, length: int, seed: int) -> Row:
        ids = np.random.default_rng(seed).integers(0, 256, length)
        return self.run(TokensPrompt(prompt_token_ids=ids.tolist()))


def summarise(size: str, budget: float, rounds: list[Row]) -> tuple[Row, Row]:
    """Rows of the two tables: the whole, and where it goes."""
    first = [r["first token"] for r in rounds]
    whole = {
        "image": size,
        "budget": budget,
        "visual tokens": rounds[0]["visual tokens"],
        "prompt tokens": rounds[0]["prompt tokens"],
        "first token (s)": spread(first),
        "stock / this": spread([r["stock"] / r["first token"] for r in rounds]),
        "bound (s)": spread([r["bound"] for r in rounds]),
        "this / bound": spread([r["first token"] / r["bound"] for r in rounds], 3),
        "between tokens (s)": spread([r["between tokens"] for r in rounds], 3),
    }
    stages = {
        f"{name} (s)": f"{median(r['stages'][name] for r in rounds):.3f}"
        for name in STAGES
    }
    known = [sum(r["stages"].values()) for r in rounds]
    rest = median(f - k for f, k in zip(first, known, strict=True))
    return whole, {
        "image": size,
        "budget": budget,
        **stages,
        "rest (s)": f"{rest:.3f}",
        "first token (s)": f"{median(first):.3f}",
    }


def draw(parts: list[Row]) -> Figure:
    """Stacked stages of the time to first token."""
    figure = Figure(figsize=(9, 0.5 * len(parts) + 1.6))
    axes = figure.subplots()
    labels = [f"{part['image']} at {part['budget']}" for part in parts]
    left = np.zeros(len(parts))
    for name in (*STAGES, "rest"):
        seconds = np.array([float(part[f"{name} (s)"]) for part in parts]).clip(0)
        axes.barh(labels, seconds, left=left, label=name)
        left += seconds
    axes.invert_yaxis()
    axes.set_xlabel("time to first token (s), median")
    axes.legend(fontsize="small")
    return figure


def main() -> None:
    parser = make_parser(__doc__, [*SHAPES, *QWEN_SHAPES])
    parser.add_argument("--size", nargs="+", default=["672x672", "672x336"])
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.4, 0.2, 0.1])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--decode-tokens", type=int, default=4)
    parser.add_argument("--name", default="latency", help="of the result files")
    args = parser.parse_args()
    budgets = [1.0, *(b for b in args.budgets if b != 1)]
    llm = start_engine(
        args,
        # A whole prompt in one step, so that prefill is one call.
        max_num_batched_tokens=4096,
        max_num_seqs=1,
        block_size=128,
        num_gpu_blocks_override=4096 // 128 + 1,
    )
    latency = Latency(llm, args.decode_tokens)
    latency.image(336, 336, 0.2, seed=0)
    latency.text(256, seed=0)

    found: dict[tuple[str, float], list[Row]] = {}
    steps = [
        (turn, size, budget)
        for turn in range(args.rounds)
        for size in args.size
        for budget in budgets
    ]
    for seed, (_, size, budget) in enumerate(tqdm(steps, desc="latency"), start=1):
        width, height = map(int, size.split("x"))
        row = latency.image(width, height, budget, seed)
        stock = row if budget == 1 else found[size, 1.0][-1]
        text = latency.text(row["prompt tokens"], seed)
        row["stock"] = stock["first token"]
        row["bound"] = stock["stages"]["vision tower"] + text["first token"]
        found.setdefault((size, budget), []).append(row)

    rows = [summarise(*key, rounds) for key, rounds in found.items()]
    tables = {
        "Median (min to max) of the rounds; ratios within a round": [
            r[0] for r in rows
        ],
        "Where the time to first token goes (medians)": [r[1] for r in rows],
    }
    raw = [{"size": s, "budget": b, "rounds": r} for (s, b), r in found.items()]
    write_results(args, args.name, tables, raw, draw([r[1] for r in rows]))


if __name__ == "__main__":
    main()
