"""Questions about held-out scenes at three budgets, on a CPU, with the small trained
checkpoint of this repository: answers, tokens, times, and which patches were kept.

`make demo`, or `python -m benchmarks.demo --help`.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.accuracy import held_out
from benchmarks.harness import model_of
from benchmarks.provenance import provenance
from benchmarks.tiny.data import Question, Scene
from benchmarks.tiny.model import CHECKPOINT, TILE
from vllm_hired.layouts import Layout, image_layout
from vllm_hired.tools.inspect.picture import draw_kept, stack
from vllm_hired.tools.tables import Row, as_table

BUDGETS = (1.0, 0.4, 0.2)
DRAWN_BUDGETS = (0.4, 0.2)
NOTE = (
    "The model is small and reads digits on photographs, nothing else: it says nothing "
    "about\nLLaVA-7B. Times are this model's on this machine."
)


def large_scenes(count: int) -> list[tuple[Scene, list[Question]]]:
    """The first held-out scenes of 2 x 2 tiles that show more than one digit."""
    scenes = [
        (scene, questions)
        for scene, questions in held_out(20 * count)
        if len(scene.cards) > 1 and min(scene.image.size) > TILE
    ]
    return scenes[:count]


def start_engine(checkpoint: Path) -> LLM:
    return LLM(
        str(checkpoint),
        enforce_eager=True,
        max_num_batched_tokens=4096,
        max_num_seqs=4,
        hf_overrides={"hired_budget": 0.2, "hired_max_budget": 1.0},
        # Each run must do the whole work again.
        enable_prefix_caching=False,
        mm_processor_cache_gb=0,
    )


def ask(llm: LLM, scene: Scene, question: Question, budget: float, repeats: int) -> Row:
    """One row of the table: the answer, counts from the engine, median time."""
    content = [
        {"type": "image_pil", "image_pil": scene.image},
        {"type": "text", "text": question.text},
    ]
    messages: list[Any] = [{"role": "user", "content": content}]
    sampling = SamplingParams(max_tokens=12, temperature=0)
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        (output,) = llm.chat(
            messages,
            sampling,
            use_tqdm=False,
            mm_processor_kwargs={"hired_budget": budget},
        )
        seconds.append(time.perf_counter() - start)
    config = llm.llm_engine.model_config.hf_config
    image, prompt = scene.image, output.prompt_token_ids or []
    stock = image_layout(config, image.height, image.width).num_stock_tokens
    answer = output.outputs[0].text.strip()
    return {
        "size": f"{image.width}x{image.height}",
        "question": question.text,
        "truth": question.answer,
        "budget": budget,
        "answer": answer,
        "right": "yes" if answer == question.answer else "NO",
        "visual tokens": f"{prompt.count(config.image_token_index)} of {stock}",
        "whole answer (ms)": round(1000 * median(seconds)),
    }


def kept_of(
    llm: LLM, image: Image.Image, budget: float
) -> tuple[Tensor, Layout, Tensor]:
    """The engine's own input and choice: pixels, layout, flat cell indices."""
    processor = llm.llm_engine.renderer.get_mm_processor()
    inputs = processor(
        "<image>",
        processor.info.parse_mm_data({"image": image}),
        hf_processor_mm_kwargs={"hired_budget": budget},
    )
    (item,) = inputs["mm_kwargs"]["image"]
    pixels, count = item["pixel_values"].data, int(item["num_kept"].data)
    config = llm.llm_engine.model_config.hf_config
    layout = image_layout(config, image.height, image.width)
    with torch.inference_mode():
        _, (selection,) = model_of(llm).select([pixels], [layout], [count])
    return pixels, layout, selection.cells


def draw(llm: LLM, image: Image.Image, budget: float) -> Image.Image:
    """What was kept, over the picture."""
    pixels, layout, kept = kept_of(llm, image, budget)
    processor = llm.llm_engine.renderer.get_mm_processor()
    normalisation = processor.info.get_hf_processor().image_processor
    mean = torch.tensor(normalisation.image_mean).view(3, 1, 1)
    std = torch.tensor(normalisation.image_std).view(3, 1, 1)
    tokens = f"{len(kept)} of {layout.num_stock_tokens} tokens"
    title = f"hired_budget={budget}: {tokens}"
    return draw_kept(pixels * std + mean, layout, kept, title)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out"), help="default: out")
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        help="a LLaVA-NeXT checkpoint of yours",
    )
    parser.add_argument("--scenes", type=int, default=3, help="default: 3")
    parser.add_argument("--repeats", type=int, default=3, help="runs a row; median")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    llm = start_engine(args.model)
    scenes = large_scenes(args.scenes)
    first, questions = scenes[0]
    ask(llm, first, questions[0], 1.0, repeats=1)  # warm-up
    rows = [
        ask(llm, scene, question, budget, args.repeats)
        for scene, questions in tqdm(scenes, desc="scenes")
        for question in questions
        for budget in BUDGETS
    ]
    picture = stack([draw(llm, first.image, budget) for budget in DRAWN_BUDGETS])
    picture.quantize(256).save(args.out / "kept.png", optimize=True)
    first.image.save(args.out / "scene.png")

    result = {"model": args.model.name, **provenance(), "rows": rows}
    (args.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    (args.out / "demo.md").write_text(as_table(rows) + "\n")
    print(f"\n{as_table(rows)}\n\n{NOTE}")
    print(f"Kept patches: {args.out / 'kept.png'}   Figures: {args.out / 'demo.json'}")


if __name__ == "__main__":
    main()
