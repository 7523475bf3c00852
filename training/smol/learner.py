"""What learns: projector, `image_newline`, a LoRA delta; and how it is kept."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers import LlamaForCausalLM

from training.smol.language import language_config, read_smollm2
from training.smol.lora import LoraLinear, add_lora
from training.smol.projector import Projector
from training.smol.sequences import Speaker
from training.smol.tower import CHANNELS, HIDDEN

Weights = dict[str, Tensor]

PROJECTOR_RATE, LORA_RATE = 5e-4, 1e-3
WARM_UP = 20
"""Steps until these are reached."""
LONGEST_AVERAGE = 0.98
"""The average's memory of itself, once there have been steps enough."""
MOST_KEPT, MOST_KEPT_CUDA = 2500, 30_000
"""Tokens of a batch whose activations fit into memory beside other programs, on a CPU
and on a GPU of 80 GB."""
FIRST = "multi_modal_projector.linear_1.weight"


class Learner:
    """The LLM with what learns in it, its optimiser, and an average of the last steps.

    Attributes:
        speaker: to compute losses with.
        embedding: `[V, T]` float32, the LLM's.
        steps: updates so far.
    """

    def __init__(self, gguf: Path, device: torch.device) -> None:
        weights = read_smollm2(gguf)
        self.embedding = weights["model.embed_tokens.weight"]
        weights["lm_head.weight"] = self.embedding
        self.language: Any = LlamaForCausalLM(language_config())
        self.language.load_state_dict(weights)
        self.language.requires_grad_(False).train()
        lora = add_lora(self.language)
        self.projector = Projector(self.embedding.shape[1])
        newline = self.embedding.mean(dim=0).to(device)
        self.newline = nn.Parameter(newline.clone())
        if device.type == "cuda":
            # As the assembled checkpoint holds them; what learns stays float32.
            for layer in self.language.modules():
                if isinstance(layer, LoraLinear):
                    layer.weight.data = layer.weight.data.bfloat16()
        self.language.to(device)
        self.projector.to(device)
        self.speaker = Speaker(self.language, self.projector, self.newline)
        connector = [*self.projector.parameters(), self.newline]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": connector, "rate": PROJECTOR_RATE},
                {"params": lora, "rate": LORA_RATE},
            ],
            betas=(0.9, 0.98),
            weight_decay=0.01,
        )
        self.steps = 0
        self.average = self.copied()

    def learning(self) -> Weights:
        """What learns, by its name in the trained part."""
        of_llm: Iterator[tuple[str, Tensor]] = self.language.named_parameters()
        delta = {name: tensor for name, tensor in of_llm if tensor.requires_grad}
        connector = {
            f"multi_modal_projector.{name}": tensor
            for name, tensor in self.projector.named_parameters()
        }
        return {**connector, "image_newline": self.newline, **delta}

    def copied(self) -> Weights:
        return {name: t.detach().clone() for name, t in self.learning().items()}

    @torch.no_grad()
    def put(self, weights: Weights) -> None:
        for name, tensor in self.learning().items():
            tensor.copy_(weights[name])

    def update(self, share: float) -> None:
        """One step along the gradients, which are cleared, at a share of the rates."""
        groups = self.optimizer.param_groups
        warm = min(1.0, (self.steps + 1) / WARM_UP)
        for group in groups:
            group["lr"] = group["rate"] * warm * share
        nn.utils.clip_grad_norm_([p for g in groups for p in g["params"]], 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.steps += 1
        memory = min(LONGEST_AVERAGE, self.steps / (self.steps + 5))
        with torch.no_grad():
            for name, tensor in self.learning().items():
                self.average[name].lerp_(tensor, 1 - memory)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in place of the last step."""
        last = self.copied()
        self.put(self.average)
        try:
            yield
        finally:
            self.put(last)

    def spare_memory(self, tokens: int) -> None:
        """Of long batches activations are computed twice rather than kept."""
        if tokens > (MOST_KEPT_CUDA if self.newline.is_cuda else MOST_KEPT):
            self.language.gradient_checkpointing_enable()
        else:
            self.language.gradient_checkpointing_disable()

    def write_part(self, path: Path) -> None:
        """The average as `training.smol.assemble` reads it, float16."""
        padding = (0, HIDDEN - CHANNELS)
        padded = {FIRST: functional.pad(self.average[FIRST], padding)}
        whole = {name: t.half().cpu() for name, t in (self.average | padded).items()}
        save_file(whole, path)

    def read_part(self, path: Path) -> None:
        """Begins with what `write_part` wrote, or with its projector alone."""
        started = self.copied() | load_file(path)
        started[FIRST] = started[FIRST][:, :CHANNELS]
        self.put(started)
        self.average = self.copied()

    def state(self) -> dict[str, Any]:
        """All that a stopped training needs."""
        return {
            "learning": self.learning(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "steps": self.steps,
        }

    def load(self, state: dict[str, Any]) -> None:
        self.put(state["learning"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]
