"""What the plugin costs where nothing is dropped: stock vLLM's class against ours.

Two engines in one process, without a budget, answer the same requests in turn. The
tower and the LLM's width are the model's; its layers are few, so that both fit, which
only makes a difference easier to see.

    python -m benchmarks.unused --shape llava-next-7b --rounds 15
"""

from dataclasses import replace
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm
from vllm import LLM, ModelRegistry, SamplingParams

from benchmarks.harness import make_parser, noise, now, spread, write_results
from random_checkpoints.llava import SHAPES, write_checkpoint

STOCK = "StockLlavaNextForConditionalGeneration"


def first_token(llm: LLM, seed: int) -> float:
    """Seconds from the request to its only token."""
    request = {
        "prompt": "USER: <image>\nWhat is this? ASSISTANT:",
        "multi_modal_data": {"image": noise(672, 672, seed)},
    }
    start = now()
    llm.generate([request], SamplingParams(max_tokens=1), use_tqdm=False)
    return now() - start


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--text-layers", type=int, default=2)
    args = parser.parse_args()
    if args.model:
        parser.error("two of a real checkpoint would have to fit; use --shape")
    folder = Path("out") / f"{args.shape}-{args.text_layers}-layers"
    shape = replace(SHAPES[args.shape], text_layers=args.text_layers)
    write_checkpoint(folder, shape, seed=None)
    ModelRegistry.register_model(
        STOCK,
        "vllm.model_executor.models.llava_next:LlavaNextForConditionalGeneration",
    )
    stock, plugin = (
        LLM(
            str(folder),
            load_format="dummy",
            dtype=args.dtype,
            enforce_eager=args.device == "cpu",
            max_model_len=4096,
            max_num_batched_tokens=4096,
            max_num_seqs=2,
            gpu_memory_utilization=0.4,
            enable_prefix_caching=False,
            mm_processor_cache_gb=0,
            hf_overrides=overrides,
        )
        for overrides in ({"architectures": [STOCK]}, {})
    )
    pairs = []
    for seed in tqdm(range(args.rounds + 1), desc="rounds"):
        # Which goes first alternates; the first round warms up.
        order = (stock, plugin) if seed % 2 else (plugin, stock)
        seconds = {id(llm): first_token(llm, seed) for llm in order}
        pairs.append((seconds[id(stock)], seconds[id(plugin)]))
    pairs = pairs[1:]
    ratios = [ours / theirs for theirs, ours in pairs]
    row = {
        "rounds": len(pairs),
        "stock (s)": spread([theirs for theirs, _ in pairs], 3),
        "plugin, no budget (s)": spread([ours for _, ours in pairs], 3),
        "plugin / stock": spread(ratios, 3),
    }
    figure = Figure(figsize=(6, 2.4))
    axes = figure.subplots()
    axes.plot(ratios, marker="o", linestyle="none")
    axes.axhline(1, color="grey", linewidth=1)
    axes.set_xlabel("round")
    axes.set_ylabel("plugin / stock")
    title = f"Time to first token, LLM of {args.text_layers} layers"
    write_results(args, "unused", {title: [row]}, pairs, figure)


if __name__ == "__main__":
    main()
