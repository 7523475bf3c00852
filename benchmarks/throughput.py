"""The paper's Table 4 on this engine: batches of requests in a fixed KV cache.

Each batch is given to the engine at once and run to its end; its own metrics are read
after every step. One image and a short question a request, no two images the same.
*The bound* of a row is the tower's time in the stock run of that batch plus a batch of
texts of the same length in the same KV cache: what no selection can be faster than.

    python -m benchmarks.throughput --kv-tokens 8192 --batches 1 2 4 8
"""

from collections.abc import Sequence
from statistics import mean
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
    start_engine,
    write_results,
)
from vllm_hired.tools.tables import Row


def read_metrics(llm: LLM) -> dict[str, float]:
    """vLLM's counters and gauges by name, and the sums of its histograms."""
    values: dict[str, float] = {}
    for metric in llm.get_metrics():
        value = getattr(metric, "value", getattr(metric, "sum", None))
        if value is not None:
            values[metric.name] = values.get(metric.name, 0.0) + value
    return values


def num_resident(llm: LLM) -> int:
    """Requests whose whole prompt is in the KV cache. Others that the scheduler calls
    running may be in the middle of their prefill, and preempted before its end."""
    core: Any = llm.llm_engine.engine_core
    return sum(
        request.num_computed_tokens >= request.num_prompt_tokens
        for request in core.engine_core.scheduler.running
    )


def image_requests(args: Any, budget: float, batch: int, seed: int) -> list[Any]:
    width, height = map(int, args.size.split("x"))
    return [
        {
            "prompt": "USER: <image>\nWhat is this? ASSISTANT:",
            "multi_modal_data": {"image": noise(width, height, 1000 * seed + i)},
            "mm_processor_kwargs": {"hired_budget": budget},
        }
        for i in range(batch)
    ]


def text_requests(length: int, batch: int, seed: int) -> list[TokensPrompt]:
    ids = np.random.default_rng(seed).integers(0, 256, (batch, length))
    return [TokensPrompt(prompt_token_ids=row) for row in ids.tolist()]


def run_batch(llm: LLM, requests: Sequence[Any], output_tokens: int) -> Row:
    """All requests of one batch, from their submission to the last token."""
    batch = len(requests)
    sampling = SamplingParams(max_tokens=output_tokens, temperature=0, ignore_eos=True)
    engine = llm.llm_engine
    before = read_metrics(llm)
    in_cache: list[int] = []
    used: list[float] = []
    firsts: dict[str, float] = {}
    start = now()
    llm.enqueue(requests, sampling, use_tqdm=False)
    while engine.has_unfinished_requests():
        outputs = engine.step()
        for output in outputs:
            firsts.setdefault(output.request_id, now() - start)
        used.append(read_metrics(llm)["vllm:kv_cache_usage_perc"])
        in_cache.append(num_resident(llm))
    seconds = now() - start
    after = read_metrics(llm)

    def gain(name: str) -> float:
        return after.get(name, 0.0) - before.get(name, 0.0)

    blocks = engine.vllm_config.cache_config.num_gpu_blocks or 0
    return {
        "requests": batch,
        "prompt tokens": round(gain("vllm:prompt_tokens") / batch),
        "seconds": round(seconds, 2),
        "tokens/s": round(gain("vllm:generation_tokens") / seconds, 3),
        "requests/min": round(60 * batch / seconds, 2),
        "mean first token (s)": round(mean(firsts.values()), 2),
        "resident at once": max(in_cache),
        "preemptions": round(gain("vllm:num_preemptions")),
        "mean wait (s)": round(gain("vllm:request_queue_time_seconds") / batch, 2),
        "most KV blocks": f"{round(max(used) * blocks)} of {blocks}",
    }


def measure(llm: LLM, args: Any) -> list[Row]:
    """A row a batch size and budget, with its bound and how many times stock's
    throughput it and the bound are."""
    watch = Stopwatch()
    watch.watch(model_of(llm).vision_tower, "forward", "tower")
    run_batch(llm, image_requests(args, 0.2, 1, seed=0), args.output_tokens)
    budgets = [1.0, *(b for b in args.budgets if b != 1)]
    steps = [(batch, budget) for batch in args.batches for budget in budgets]
    rows: list[Row] = []
    stock: Row = {}
    tower = 0.0
    for seed, (batch, budget) in enumerate(tqdm(steps, desc="throughput"), start=1):
        watch.take()
        requests = image_requests(args, budget, batch, seed)
        row = {"budget": budget, **run_batch(llm, requests, args.output_tokens)}
        bound = "-"
        if budget == 1:
            stock, tower = row, sum(watch.take()["tower"])
        else:
            texts = text_requests(row["prompt tokens"], batch, seed)
            seconds = tower + run_batch(llm, texts, args.output_tokens)["seconds"]
            bound = f"{stock['seconds'] / seconds:.2f}"
        ratio = round(row["tokens/s"] / stock["tokens/s"], 2)
        rows.append(row | {"tokens/s / stock": ratio, "bound / stock": bound})
    return sorted(rows, key=lambda r: (-r["budget"], r["requests"]))


def draw(rows: list[Row]) -> Figure:
    """Throughput and requests at once over the batch size, a line a budget."""
    figure = Figure(figsize=(10, 3.6))
    columns = ("tokens/s", "resident at once", "mean first token (s)")
    for axes, column in zip(figure.subplots(1, len(columns)), columns, strict=True):
        for budget in dict.fromkeys(row["budget"] for row in rows):
            own = [row for row in rows if row["budget"] == budget]
            axes.plot(
                [row["requests"] for row in own],
                [row[column] for row in own],
                marker="o",
                label=f"budget {budget}",
            )
        axes.set_xlabel("requests")
        axes.set_title(column)
        axes.set_ylim(bottom=0)
    axes.legend(fontsize="small")
    figure.tight_layout()
    return figure


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--size", default="672x672")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.4, 0.2])
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 2, 4, 8, 16])
    parser.add_argument("--output-tokens", type=int, default=8)
    parser.add_argument("--kv-tokens", type=int, default=8192)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--name", default="throughput", help="of the result files")
    args = parser.parse_args()
    llm = start_engine(
        args,
        max_model_len=min(4096, args.kv_tokens),
        max_num_batched_tokens=4096,
        max_num_seqs=max(args.batches),
        block_size=args.block_size,
        # One block is vLLM's own, for nothing.
        num_gpu_blocks_override=args.kv_tokens // args.block_size + 1,
    )
    rows = measure(llm, args)
    title = (
        f"{args.size} images, {args.output_tokens} tokens out, a KV cache of "
        f"{args.kv_tokens} tokens"
    )
    write_results(args, args.name, {title: rows}, rows, draw(rows))


if __name__ == "__main__":
    main()
