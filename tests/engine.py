"""How tests start an engine and what they ask it, in their process or in another."""

from collections.abc import Sequence
from typing import Any

# Before vLLM, whose model runner it picks.
from tests.runners import RUNNER, check_runner  # isort: skip

import numpy as np
import torch
from PIL import Image
from torch import nn
from vllm import LLM, SamplingParams
from vllm.multimodal.inputs import MultiModalKwargsItem

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


_engines: list[LLM] = []
"""They live until the end: shutting one down takes the process groups of the others
with it."""


def start_engine(model: str, **changes: Any) -> LLM:
    """An engine in this process, checked to run as this process's engines do."""
    llm = LLM(model, **(ENGINE_OPTIONS | changes))
    check_runner(llm)
    _engines.append(llm)
    return llm


def chat_request(
    content: str,
    data: dict[str, list[Any]],
    budget: float | None,
    processor_kwargs: dict[str, Any],
) -> dict[str, Any]:
    """A request in the form that Qwen's and InternVL's chat templates give."""
    if budget is not None:
        processor_kwargs = {**processor_kwargs, "hired_budget": budget}
    request: dict[str, Any] = {
        "prompt": f"<|im_start|>user\n{content}\nWhat is this?<|im_end|>\n"
        "<|im_start|>assistant\n",
    }
    if data:
        request["multi_modal_data"] = data
    if processor_kwargs:
        request["mm_processor_kwargs"] = processor_kwargs
    return request


def check_lora_token_counts(
    model: Any,
    tower_layer: nn.Module,
    projector: nn.Module,
    items: Sequence[tuple[MultiModalKwargsItem, dict[str, Any]]],
) -> None:
    """A model tells vLLM's LoRA how many rows tower and projector really get.

    Args:
        model: of a running engine.
        tower_layer: a module that each row of the tower passes once.
        projector: likewise.
        items: images, and what the model's worker makes of each.
    """
    seen = {"tower": 0, "projector": 0}

    def count(name: str) -> Any:
        def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            seen[name] += inputs[0].flatten(0, -2).shape[0]

        return hook

    handles = [
        tower_layer.register_forward_pre_hook(count("tower")),
        projector.register_forward_pre_hook(count("projector")),
    ]
    for item, inputs in items:
        seen.update(tower=0, projector=0)
        with torch.inference_mode():
            (rows,) = model.embed_multimodal(**inputs)
        counts = model.get_mm_lora_token_counts(
            modality="image", mm_kwargs=item, num_mm_embeds=len(rows)
        )
        assert counts == (seen["tower"], seen["projector"])
        bound = model.get_mm_lora_token_counts(
            modality="image", mm_kwargs=None, num_mm_embeds=len(rows)
        )
        assert bound[0] >= counts[0]
        assert bound[1] >= counts[1]
    for handle in handles:
        handle.remove()


def processed(llm: LLM, request: dict[str, Any]) -> Any:
    """What an engine's front end makes of a request."""
    processor = llm.llm_engine.renderer.get_mm_processor()
    return processor(
        request["prompt"],
        processor.info.parse_mm_data(request.get("multi_modal_data", {})),
        hf_processor_mm_kwargs=request.get("mm_processor_kwargs"),
    )


def answers(
    llm: LLM, requests: list[dict[str, Any]], max_tokens: int
) -> dict[str, list[Any]]:
    """All that can be told apart of what an engine makes of requests.

    Returns:
        `inputs`: hashes and placeholders; `outputs`: completions with all logits, or
        the embeddings of a pooling engine.
    """
    inputs = [processed(llm, request) for request in requests]
    found: dict[str, list[Any]] = {
        "inputs": [(each["mm_hashes"], each["mm_placeholders"]) for each in inputs]
    }
    if llm.llm_engine.model_config.runner_type == "pooling":
        embedded = llm.embed(requests, use_tqdm=False)
        return {**found, "outputs": [each.outputs.embedding for each in embedded]}
    sampling = SamplingParams(
        max_tokens=max_tokens, temperature=0, logprobs=-1, ignore_eos=True
    )
    outputs = []
    for output in llm.generate(requests, sampling, use_tqdm=False):
        (completion,) = output.outputs
        assert completion.logprobs is not None
        outputs.append(
            {
                "prompt_token_ids": list(output.prompt_token_ids or []),
                "token_ids": list(completion.token_ids),
                "logits": [
                    {token: value.logprob for token, value in step.items()}
                    for step in completion.logprobs
                ],
            }
        )
    return {**found, "outputs": outputs}
