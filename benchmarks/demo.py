"""What HiRED does to real photographs, on a CPU, with a checkpoint made on the spot.

`make demo`, or `python -m benchmarks.demo --help`.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import skimage.data
import torch
from PIL import Image
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.checkpoints import SHAPES, write_checkpoint
from benchmarks.harness import model_of
from benchmarks.provenance import provenance
from vllm_hired.geometry import model_geometry
from vllm_hired.inspect.picture import draw_kept, stack
from vllm_hired.tables import as_table

PHOTOGRAPHS = ("astronaut", "coffee", "chelsea", "rocket", "retina", "text")
BUDGETS = (1.0, 0.4, 0.2)
DRAWN, DRAWN_BUDGETS = "coffee", (0.4, 0.2)
PROMPT = "USER: <image>\nWhat is in this picture? ASSISTANT:"
NOTE = (
    "The checkpoint has LLaVA-NeXT's vision geometry and RANDOM weights, far smaller "
    "than a\nreal model: counts are a real model's, times are this small model's, and "
    "which patches\nare kept means nothing."
)


def photograph(name: str) -> Image.Image:
    """One of scikit-image's photographs."""
    return Image.fromarray(getattr(skimage.data, name)()).convert("RGB")


def start_engine(checkpoint: Path) -> LLM:
    return LLM(
        str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=4,
        hf_overrides={"hired_budget": 0.2, "hired_max_budget": 1.0},
        # Each run must do the whole work again.
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
    )


def measure(
    llm: LLM, name: str, image: Image.Image, budget: float, repeats: int
) -> dict[str, Any]:
    """One row of the table: counts from the engine, time to first token."""
    request: Any = {
        "prompt": PROMPT,
        "multi_modal_data": {"image": image},
        "mm_processor_kwargs": {"hired_budget": budget},
    }
    sampling = SamplingParams(max_tokens=1, temperature=0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        (output,) = llm.generate([request], sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    config = llm.llm_engine.model_config.hf_config
    prompt_ids = output.prompt_token_ids or []
    geometry = model_geometry(config, image.height, image.width)
    block_size = llm.llm_engine.vllm_config.cache_config.block_size
    return {
        "image": name,
        "size": f"{image.width}x{image.height}",
        "tile grid": f"{geometry.tile_rows}x{geometry.tile_cols}",
        "budget": budget,
        "stock tokens": geometry.num_stock_tokens,
        "kept tokens": prompt_ids.count(config.image_token_index),
        "prompt tokens": len(prompt_ids),
        "KV blocks": -(-len(prompt_ids) // block_size),
        "first token (ms)": round(1000 * median(seconds)),
    }


def draw(llm: LLM, image: Image.Image, budget: float) -> Image.Image:
    """The engine's own choice of patches, over the picture."""
    processor = llm.llm_engine.renderer.get_mm_processor()
    inputs = processor(
        "<image>",
        processor.info.parse_mm_data({"image": image}),
        hf_processor_mm_kwargs={"hired_budget": budget},
    )
    (item,) = inputs["mm_kwargs"]["image"]
    pixels, count = item["pixel_values"].data, int(item["num_kept"].data)
    hf_config = llm.llm_engine.model_config.hf_config
    geometry = model_geometry(hf_config, image.height, image.width)
    with torch.inference_mode():
        _, (kept,) = model_of(llm).select([pixels], [geometry], [count])
    normalisation = processor.info.get_hf_processor().image_processor
    mean = torch.tensor(normalisation.image_mean).view(3, 1, 1)
    std = torch.tensor(normalisation.image_std).view(3, 1, 1)
    title = f"hired_budget={budget}: {count} of {geometry.num_stock_tokens} tokens"
    return draw_kept(pixels * std + mean, geometry, kept, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="default: out")
    parser.add_argument("--model", type=Path, help="a LLaVA-NeXT checkpoint of yours")
    parser.add_argument("--repeats", type=int, default=3, help="runs a row; median")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.model or write_checkpoint(
        args.out / "llava-next-random", SHAPES["tiny"]
    )
    llm = start_engine(checkpoint)
    measure(llm, "warm-up", photograph("astronaut"), 1.0, repeats=1)
    rows = [
        measure(llm, name, photograph(name), budget, args.repeats)
        for name in tqdm(PHOTOGRAPHS, desc="photographs")
        for budget in BUDGETS
    ]
    picture = stack([draw(llm, photograph(DRAWN), budget) for budget in DRAWN_BUDGETS])
    picture.quantize(256).save(args.out / "kept.png", optimize=True)

    facts = {"random_weights": args.model is None, **provenance()}
    result = {**facts, "rows": rows}
    (args.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "demo.md").write_text(as_table(rows) + "\n")
    print(f"\n{as_table(rows)}\n")
    if args.model is None:
        print(NOTE)
    print(f"Kept patches: {args.out / 'kept.png'}   Figures: {args.out / 'demo.json'}")


if __name__ == "__main__":
    main()
