"""HF transformers fed the oracle's kept embeddings: what generation must give."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText, AutoProcessor

from tests import oracle


def layout_of(hf_config: Any, image: Any) -> oracle.Layout:
    """By the oracle; LLaVA-1.5 has one partition, whatever the image."""
    vision = hf_config.vision_config
    if hf_config.model_type == "llava":
        return oracle.Layout(vision.image_size // vision.patch_size, *[0] * 6)
    layout = oracle.layout(
        image.height,
        image.width,
        [tuple(point) for point in hf_config.image_grid_pinpoints],
        vision.image_size,
        vision.patch_size,
    )
    assert layout is not None
    return layout


@dataclass
class HFCheckpoint:
    """A checkpoint in HF transformers, float32, eager attention."""

    checkpoint: Path

    @cached_property
    def model(self) -> Any:
        model = AutoModelForImageTextToText.from_pretrained(
            self.checkpoint, dtype=torch.float32, attn_implementation="eager"
        )
        # The engine's requests ignore it too; a minimum length would forbid the token.
        model.generation_config.eos_token_id = None
        return model.eval()

    @cached_property
    def processor(self) -> Any:
        return AutoProcessor.from_pretrained(self.checkpoint)


class Reference(HFCheckpoint):
    """One of a LLaVA."""

    @property
    def has_cls(self) -> bool:
        """Where there is no [CLS], cells are ranked by the attention they receive."""
        return self.model.config.vision_config.model_type == "clip_vision_model"

    @torch.inference_mode()
    def tower(self, pixels: Tensor) -> Any:
        """HF's outputs for `[B, 3, H, W]`, attentions and hidden states among them."""
        return self.model.model.vision_tower(
            pixels, output_attentions=True, output_hidden_states=True
        )

    def layout(self, image: Any) -> oracle.Layout:
        return layout_of(self.model.config, image)

    @torch.inference_mode()
    def _kept(self, image: Any, rho: str) -> tuple[Any, list[int]]:
        """The tower's outputs, and which flat patch indices the oracle keeps."""
        outputs = self.tower(self.tiles(image))
        layout = self.layout(image)
        g = layout.g

        def grids(layer: int) -> list[oracle.Grid]:
            attention = outputs.attentions[layer]
            scores = (
                attention[:, :, 0, 1:].sum(dim=1)
                if self.has_cls
                else attention.sum(dim=(1, 2))
            )
            return [partition.view(g, g).tolist() for partition in scores]

        # The feature layer is -2: the last layer but one is the last that counts.
        last = self.model.config.vision_config.num_hidden_layers - 2
        kept = oracle.select(
            layout, oracle.count(layout, rho, None), "0.5", grids(0), grids(last)
        )
        return outputs, [p * g**2 + row * g + col for p, row, col in kept]

    def kept_indices(self, image: Any, rho: str) -> list[int]:
        """The oracle's patches, `partition * N + patch`, in sequence order."""
        return self._kept(image, rho)[1]

    def kept_embeddings(self, image: Any, rho: str) -> Tensor:
        """`[K, hidden]`: the oracle's patches through HF's projector."""
        return self._project(*self._kept(image, rho))

    @torch.inference_mode()
    def embeddings_of(self, image: Any, flat: list[int]) -> Tensor:
        """`[K, hidden]` of given flat patch indices, in their order."""
        return self._project(self.tower(self.tiles(image)), flat)

    def tiles(self, image: Any) -> Tensor:
        """`[P, 3, H, W]`, as the tower gets them."""
        pixels = self.processor.image_processor([image], return_tensors="pt")
        tiles: Tensor = pixels["pixel_values"][0]
        return tiles.view(-1, *tiles.shape[-3:])

    @torch.inference_mode()
    def project(self, rows: Tensor) -> Tensor:
        """`[K, D]` of the tower -> `[K, hidden]`."""
        embeddings: Tensor = self.model.model.multi_modal_projector(rows)
        return embeddings

    def features(self, outputs: Any) -> Tensor:
        """`[P, N, D]`: what the tower gives to the projector."""
        # The feature layer is -2.
        features: Tensor = outputs.hidden_states[-2][:, int(self.has_cls) :]
        return features

    def _project(self, outputs: Any, flat: list[int]) -> Tensor:
        return self.project(self.features(outputs).flatten(0, 1)[flat])

    def generate_whole(self, request: dict[str, Any], max_tokens: int) -> list[int]:
        """Greedy tokens for prompt and pictures by HF alone, nothing dropped."""
        inputs = self.processor(
            text=request["prompt"],
            images=request["multi_modal_data"]["image"],
            return_tensors="pt",
        )
        tokens = self.model.generate(
            **inputs, do_sample=False, max_new_tokens=max_tokens, eos_token_id=None
        )
        new: list[int] = tokens[0, inputs.input_ids.shape[1] :].tolist()
        return new

    @torch.inference_mode()
    def inputs_embeds(self, prompt: str, kept: list[Tensor]) -> Tensor:
        """`[1, tokens, hidden]` for a prompt whose images have these embeddings."""
        ids = self.processor.tokenizer(prompt, return_tensors="pt").input_ids
        images = iter(kept)
        embed = self.model.get_input_embeddings()
        rows = [
            next(images)
            if token == self.model.config.image_token_index
            else embed(token[None])
            for token in ids[0]
        ]
        return torch.cat(rows)[None]

    def kept_of(self, request: dict[str, Any], rho: str) -> tuple[str, list[Tensor]]:
        """Prompt and kept embeddings of a request of `tests.engine.prompt`."""
        images = request["multi_modal_data"]["image"]
        return request["prompt"], [self.kept_embeddings(image, rho) for image in images]

    @torch.inference_mode()
    def last_hidden_state(self, request: dict[str, Any], rho: str) -> Tensor:
        """`[hidden]` of the last token."""
        embeddings = self.inputs_embeds(*self.kept_of(request, rho))
        outputs = self.model.model(inputs_embeds=embeddings)
        last: Tensor = outputs.last_hidden_state[0, -1]
        return last

    @torch.inference_mode()
    def logits(self, request: dict[str, Any], rho: str) -> Tensor:
        """`[vocabulary]` of the first token of the answer."""
        logits: Tensor = self.model.lm_head(self.last_hidden_state(request, rho))
        return logits

    def generate(self, request: dict[str, Any], rho: str, max_tokens: int) -> list[int]:
        """Greedy tokens for a request of `tests.engine.prompt`, at budget `rho`."""
        return self.generate_from(*self.kept_of(request, rho), max_tokens)

    @torch.inference_mode()
    def generate_from(
        self, prompt: str, kept: list[Tensor], max_tokens: int
    ) -> list[int]:
        """Greedy tokens for a prompt whose images have these embeddings."""
        return self.answer_from(prompt, kept, max_tokens)[0]

    @torch.inference_mode()
    def answer_from(
        self, prompt: str, kept: list[Tensor], max_tokens: int
    ) -> tuple[list[int], Tensor]:
        """Likewise, and the logits of each, `[max_tokens, vocabulary]`."""
        embeddings = self.inputs_embeds(prompt, kept)
        answer = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
            return_dict_in_generate=True,
            output_logits=True,
        )
        return answer.sequences[0].tolist(), torch.cat(answer.logits)
