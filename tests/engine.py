"""How tests start an engine and what they ask it; also run as a script.

`python -m tests.engine job.json result.pt` answers a job in a process of its own,
where the plugin may be missing, the ranks may be two, or the start may fail.
"""

import json
import sys
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.runners import RUNNER, check_runner
from vllm_hired.engine.inputs import input_layouts
from vllm_hired.layouts import image_layout

ENGINE_OPTIONS: dict[str, Any] = {
    "dtype": "float32",
    "enforce_eager": not RUNNER.is_compiled,
    "max_model_len": 1024,
    "max_num_batched_tokens": 1024,
    "max_num_seqs": 8,
    "limit_mm_per_prompt": {"image": 3},
    # Engines live side by side; a whole GiB of KV cache each would fill the machine.
    "num_gpu_blocks_override": 256,
    # So small that a prompt of LLaVA-1.5 fills one, to be found in the prefix cache.
    "block_size": 32,
    "logprobs_mode": "raw_logits",
    "max_logprobs": -1,
}


def noise_image(width: int, height: int, seed: int = 0) -> Image.Image:
    """Smooth noise, so that patches differ and attention has something to rank."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (max(height // 9, 1), max(width // 9, 1), 3))
    return Image.fromarray(cells.astype(np.uint8)).resize((width, height))


def prompt(
    *sizes: tuple[int, int], budget: float | None = None, seed: int = 0
) -> dict[str, Any]:
    """A prompt with one noise image for each (width, height)."""
    request: dict[str, Any] = {
        "prompt": "USER: " + "<image>" * len(sizes) + "\nWhat is this? ASSISTANT:",
        "multi_modal_data": {
            "image": [noise_image(*size, seed + i) for i, size in enumerate(sizes)]
        },
    }
    if budget is not None:
        request["mm_processor_kwargs"] = {"hired_budget": budget}
    return request


def kept_digest(model: Any) -> list[int]:
    """The patches that this worker keeps of one image, at a budget of 0.2."""
    generator = torch.Generator().manual_seed(1)
    side = model.config.vision_config.image_size
    layout = image_layout(model.config, 2 * side, 2 * side)
    shape = (layout.num_partitions, 3, side, side)
    pixels = torch.rand(shape, generator=generator)
    tokens = layout.num_partitions * layout.cells_per_partition
    _, (selection,) = model.select([pixels], [layout], [tokens // 5])
    indices: list[int] = selection.cells.tolist()
    return indices


def qwen_kept_digest(model: Any) -> list[int]:
    """The cells that this worker keeps of one image, at a budget of 0.2."""
    generator = torch.Generator().manual_seed(1)
    vision = model.config.vision_config
    grid = torch.tensor([[1, 28, 36]])
    values = 3 * vision.temporal_patch_size * vision.patch_size**2
    inputs = {
        "pixel_values": torch.rand((28 * 36, values), generator=generator),
        "image_grid_thw": grid,
    }
    layouts = input_layouts(model.config, inputs)
    _, (selection,) = model.select(inputs, layouts, [14 * 18 // 5])
    indices: list[int] = selection.cells.tolist()
    return indices


def main(job_path: str, result_path: str) -> None:
    """Job: engine options, requests as arguments of `prompt`, or of `qwen_prompt` where
    `is_qwen`, max_tokens, digest.

    Outputs are completions with logits, or the embeddings of a pooling engine.
    """
    from vllm import LLM, SamplingParams

    from tests.qwen import qwen_prompt

    with open(job_path) as file:
        job = json.load(file)
    llm = LLM(**(ENGINE_OPTIONS | job["engine"]))
    check_runner(llm)
    sampling = SamplingParams(
        max_tokens=job["max_tokens"], temperature=0, logprobs=-1, ignore_eos=True
    )
    is_qwen = job.get("is_qwen", False)
    make = qwen_prompt if is_qwen else prompt
    prompts = [make(*media, budget=budget) for media, budget in job["requests"]]
    processor = llm.llm_engine.renderer.get_mm_processor()
    result: dict[str, Any] = {"outputs": [], "inputs": []}
    for request in prompts:
        inputs = processor(
            request["prompt"],
            processor.info.parse_mm_data(request.get("multi_modal_data", {})),
            hf_processor_mm_kwargs=request.get("mm_processor_kwargs"),
        )
        result["inputs"].append((inputs["mm_hashes"], inputs["mm_placeholders"]))
    if job["engine"].get("runner") == "pooling":
        for embedded in llm.embed(prompts, use_tqdm=False):
            result["outputs"].append(embedded.outputs.embedding)
        torch.save(result, result_path)
        return
    for output in llm.generate(prompts, sampling, use_tqdm=False):
        (completion,) = output.outputs
        assert completion.logprobs is not None
        result["outputs"].append(
            {
                "prompt_token_ids": list(output.prompt_token_ids or []),
                "token_ids": list(completion.token_ids),
                "logits": [
                    {token: value.logprob for token, value in step.items()}
                    for step in completion.logprobs
                ],
            }
        )
    if job.get("digest"):
        digest = qwen_kept_digest if is_qwen else kept_digest
        result["digests"] = llm.apply_model(digest)
    torch.save(result, result_path)


if __name__ == "__main__":
    main(*sys.argv[1:])
