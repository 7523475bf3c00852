"""HF transformers fed the rows that a method's oracle keeps, merged ones among them."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tests import oracle
from tests.methods.oracle_image import Image
from tests.methods.oracles import Oracle, Seen, in_sequence
from tests.reference import Reference

TOLERANCE = 2e-4
"""Between logits of vLLM and of HF in float32."""

Answer = tuple[list[int], Tensor]
"""Tokens, and the logits of each, `[T, vocabulary]`."""


def as_answer(tokens: Sequence[int], logits: Sequence[Mapping[int, float]]) -> Answer:
    """Of an engine, which gives logits by token."""
    rows = [[step[token] for token in range(len(step))] for step in logits]
    return list(tokens), torch.tensor(rows)


def difference(one: Answer, other: Answer) -> float:
    """Between the logits of two answers; infinite where their tokens differ."""
    if one[0] != other[0]:
        return float("inf")
    return float((one[1] - other[1]).abs().max())


class Images:
    """The images of a prompt, as HF's tower sees them.

    Attributes:
        images: where the cells of each lie.
        seen: what may be looked at of each.
    """

    def __init__(
        self, reference: Reference, request: dict[str, Any], is_pair: bool = False
    ) -> None:
        """`request`: of `tests.engine.prompt`; `is_pair`: for the toy family, whose
        thumbnail comes last, and whose tiles come one after another."""
        self.reference, self.prompt = reference, request["prompt"]
        pictures = request["multi_modal_data"]["image"]
        self.shapes = [reference.layout(picture) for picture in pictures]
        self.images = [
            Image(
                *(shape.g, shape.g, shape.rows, shape.cols, shape.top, shape.left),
                height=shape.bottom - shape.top,
                width=shape.right - shape.left,
                thumbnail="last" if is_pair else "first",
                tile_by_tile=is_pair,
            )
            for shape in self.shapes
        ]
        self.seen = [self._seen(picture, is_pair) for picture in pictures]

    @torch.inference_mode()
    def _seen(self, picture: Any, is_pair: bool) -> Seen:
        vision = self.reference.model.config.vision_config
        # The feature layer is -2: the last layer but one is the last that counts.
        last = vision.num_hidden_layers - 2
        keys: list[Tensor] = []
        (projection,) = (
            module
            for name, module in self.reference.model.model.vision_tower.named_modules()
            if name.endswith(f"layers.{last}.self_attn.k_proj")
        )
        hook = projection.register_forward_hook(lambda *call: keys.append(call[-1]))
        outputs = self.reference.tower(self.reference.tiles(picture))
        hook.remove()
        by_head = keys[0].unflatten(-1, (vision.num_attention_heads, -1))
        quantities = (
            outputs.attentions[0][:, :, 0, 1:].sum(dim=1),
            outputs.attentions[last][:, :, 0, 1:].sum(dim=1),
            self.reference.features(outputs),
            by_head.mean(dim=2)[:, 1:],
        )
        # HF's partitions begin with the thumbnail.
        return Seen(*(values.roll(-is_pair, dims=0).tolist() for values in quantities))

    def kept(self, wanted: Oracle, budget: str, seen: list[Seen]) -> list[list[Any]]:
        """Of each image `[K, D]`, by a method's oracle that looks at `seen`."""
        found = []
        for shape, image, own in zip(self.shapes, self.images, seen, strict=True):
            count = min(oracle.count(shape, budget, None), len(image.sequence()))
            _, rows = in_sequence(image, wanted(image, count, own))
            assert len(rows) == count
            found.append(rows)
        return found

    def answer(self, rows: list[list[Any]], max_tokens: int) -> Answer:
        """HF's, where the tower had given these rows."""
        kept = [self.reference.project(torch.tensor(own)) for own in rows]
        return self.reference.answer_from(self.prompt, kept, max_tokens)
