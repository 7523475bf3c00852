"""HF transformers fed what is to be kept of an InternVL's images."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d
from transformers.models.got_ocr2.image_processing_got_ocr2 import (
    get_optimal_tiled_canvas,
)
from vllm.transformers_utils.processors.internvl import (
    image_to_pixel_values_internvl,
    video_to_pixel_values_internvl,
)

from random_checkpoints.internvl import IMAGE_TEXT
from tests import oracle
from tests.internvl import kept_count
from tests.reference import HFCheckpoint


@dataclass
class Encoded:
    """One image or video.

    Attributes:
        rows: `[P, N, D]` features of cells before the projector.
        attention: of each layer `[P, N]`, what [CLS] pays to each cell.
        received: likewise, what each gets from all.
    """

    rows: Tensor
    attention: list[Tensor]
    received: list[Tensor]


@dataclass
class InternVLReference(HFCheckpoint):
    """A checkpoint in HF's format.

    Attributes:
        checkpoint: in HF's format.
        model_type: of the one that is served, which may be the same weights in the
            other format; then pixels are those of vLLM's own processor.
    """

    model_type: str = "internvl"

    @property
    def tile_side(self) -> int:
        return int(self.model.config.vision_config.image_size[0])

    @property
    def most_tiles(self) -> int:
        return int(self.processor.image_processor.max_patches)

    def grid(self, image: Any) -> tuple[int, int]:
        """Rows and columns of tiles, by HF's own rule."""
        tile = (self.tile_side, self.tile_side)
        cols, rows = get_optimal_tiled_canvas(
            (image.height, image.width), tile, 1, self.most_tiles
        )
        return rows, cols

    def pixels(self, image: Any) -> Tensor:
        """`[P, 3, S, S]`, as the tower gets them."""
        if self.model_type == "internvl_chat":
            return image_to_pixel_values_internvl(
                image,
                input_size=self.tile_side,
                min_num=1,
                max_num=self.most_tiles,
                use_thumbnail=True,
            )
        inputs = self.processor(
            text=self.processor.image_token, images=[image], return_tensors="pt"
        )
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    def video_pixels(self, video: Any) -> Tensor:
        """`[frames, 3, S, S]`, likewise."""
        if self.model_type == "internvl_chat":
            return video_to_pixel_values_internvl(
                video,
                input_size=self.tile_side,
                min_num=1,
                max_num=1,
                use_thumbnail=False,
            )
        inputs = self.processor(
            text=self.processor.video_token, videos=[video], return_tensors="pt"
        )
        pixels: Tensor = inputs["pixel_values"]
        return pixels

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Encoded:
        """Partitions `[P, 3, S, S]` by HF's tower."""
        inner = self.model.model
        outputs = inner.vision_tower(pixels, output_attentions=True)
        patches = outputs.last_hidden_state[:, 1:]
        side = int(patches.shape[1] ** 0.5)
        grid = patches.reshape(len(pixels), side, side, -1)
        return Encoded(
            inner.pixel_shuffle(grid, scale_factor=0.5).flatten(1, 2),
            [by_cell(layer[:, :, 0, 1:].sum(dim=1)) for layer in outputs.attentions],
            [by_cell(layer.sum(dim=(1, 2))[:, 1:]) for layer in outputs.attentions],
        )

    def kept(
        self, encoded: Encoded, grid: tuple[int, int], rho: str, final_layer: int = -2
    ) -> list[int]:
        """Flat indices of kept cells in sequence order, by the oracle.

        Args:
            encoded: tiles in row-major order, then the thumbnail.
            grid: of tiles.
            rho: the budget.
            final_layer: whose [CLS] attention ranks.
        """
        partitions, cells = encoded.rows.shape[:2]
        g = int(cells**0.5)
        rows, cols = grid
        tiles = rows * cols if partitions > 1 else 0
        shape = oracle.Layout(g, rows, cols, 0, rows * g, 0, cols * g)
        if not tiles:
            shape = oracle.Layout(g, 0, 0, 0, 0, 0, 0)

        def grids(layer: int) -> list[oracle.Grid]:
            # The oracle has the thumbnail first.
            scores = encoded.attention[layer].roll(1, dims=0)
            return [partition.view(g, g).tolist() for partition in scores]

        kept = oracle.select(
            shape,
            kept_count(partitions * cells, rho),
            "0.5",
            grids(0),
            grids(final_layer),
        )
        return sorted(
            (p - 1 if p else tiles) * cells + row * g + col for p, row, col in kept
        )

    @torch.inference_mode()
    def embeddings(self, image: Any, rho: str | None, final_layer: int = -2) -> Tensor:
        """`[K, hidden]` of an image's kept cells; of all where `rho` is None."""
        encoded = self.encode(self.pixels(image))
        rows = encoded.rows.flatten(0, 1)
        if rho is not None:
            rows = rows[self.kept(encoded, self.grid(image), rho, final_layer)]
        projected: Tensor = self.model.model.multi_modal_projector(rows)
        return projected

    @torch.inference_mode()
    def inputs_embeds(
        self, request: dict[str, Any], rho: str | None, final_layer: int
    ) -> Tensor:
        """`[1, tokens, hidden]` of a prompt with its images and videos."""
        data = request.get("multi_modal_data", {})
        images, videos = iter(data.get("image", [])), iter(data.get("video", []))
        between = "" if self.model_type == "internvl_chat" else "\n"
        image_text = IMAGE_TEXT[self.model_type]
        rows = []
        for part in re.split(f"({image_text}|<video>)", request["prompt"]):
            if part == image_text:
                own = self.embeddings(next(images), rho, final_layer)
                rows += [self.text("<img>"), own, self.text("</img>")]
            elif part == "<video>":
                frames = self.encode(self.video_pixels(next(videos))).rows
                projected = self.model.model.multi_modal_projector(frames)
                for number, frame in enumerate(projected):
                    before = between if number else ""
                    rows.append(self.text(f"{before}Frame{number + 1}: <img>"))
                    rows += [frame, self.text("</img>")]
            elif part:
                rows.append(self.text(part))
        return torch.cat(rows)[None]

    def text(self, text: str) -> Tensor:
        """`[tokens, hidden]`."""
        ids = self.processor.tokenizer(text, return_tensors="pt").input_ids[0]
        embedded: Tensor = self.model.get_input_embeddings()(ids)
        return embedded

    @torch.inference_mode()
    def generate(
        self,
        request: dict[str, Any],
        rho: str | None,
        max_tokens: int,
        final_layer: int = -2,
    ) -> list[int]:
        """Greedy tokens for a request of `internvl_prompt`, at budget `rho` (None:
        nothing is dropped)."""
        embeddings = self.inputs_embeds(request, rho, final_layer)
        answer = self.model.generate(
            inputs_embeds=embeddings,
            attention_mask=torch.ones(embeddings.shape[:2], dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_tokens,
        )
        tokens: list[int] = answer[0].tolist()
        return tokens


def by_cell(patches: Tensor) -> Tensor:
    """`[P, N]`: sums over 2 x 2 of `[P, 4 * N]`."""
    side = int(patches.shape[1] ** 0.5)
    return 4 * avg_pool2d(patches.view(-1, 1, side, side), 2).flatten(1)
