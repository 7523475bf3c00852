"""HF transformers fed what is to be kept of a Qwen-VL's images."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForImageTextToText
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.vision_utils import get_vision_window_index

from tests.qwen import kept_count
from tests.reference import HFCheckpoint


@dataclass
class Encoded:
    """One image or video.

    Attributes:
        rows: `[cells, D]`, what the LLM gets, that for deeper layers included.
        attention: `[cells]`, what each receives in the last layer.
        grid: frames, rows and columns of cells.
    """

    rows: Tensor
    attention: Tensor
    grid: tuple[int, int, int]


class QwenReference(HFCheckpoint):
    """A checkpoint whose tower notes its attention."""

    @cached_property
    def model(self) -> Any:
        model = AutoModelForImageTextToText.from_pretrained(
            self.checkpoint, dtype=torch.float32
        ).eval()
        self.weights: dict[int, list[Tensor]] = {}
        tower = model.model.visual
        number = {block.attn: layer for layer, block in enumerate(tower.blocks)}

        def attend(
            module: Any, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
        ) -> tuple[Tensor, Tensor]:
            weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(dim=-1)
            self.weights.setdefault(number[module], []).append(weights[0])
            return (weights @ value).transpose(1, 2).contiguous(), weights

        ALL_ATTENTION_FUNCTIONS.register("recorded", attend)
        tower.config._attn_implementation = "recorded"
        return model

    @torch.inference_mode()
    def encode(self, pixels: Tensor, grid: Tensor) -> Encoded:
        """One image, or one video, by HF's tower.

        Args:
            pixels: `[patches, values]`.
            grid: `[3]`, frames, rows and columns of patches.
        """
        tower = self.model.model.visual
        self.weights.clear()
        output = tower(pixels, grid_thw=grid[None])
        deeper = getattr(output, "deepstack_features", None) or []
        vision = self.model.config.vision_config
        last = self.weights[vision.depth - 1]
        by_patch = torch.cat([w.sum(dim=(0, 1)) for w in last])
        cells = by_patch.view(-1, vision.spatial_merge_size**2).sum(dim=1)
        if hasattr(vision, "window_size"):
            order, _ = get_vision_window_index(
                grid[None],
                spatial_merge_size=vision.spatial_merge_size,
                window_size=vision.window_size,
                patch_size=vision.patch_size,
            )
            cells = cells[torch.argsort(order)]
        frames, height, width = grid.tolist()
        merge = vision.spatial_merge_size
        return Encoded(
            torch.cat((output.pooler_output, *deeper), dim=1),
            cells,
            (frames, height // merge, width // merge),
        )

    def kept(self, image: Encoded, rho: str) -> Tensor:
        """`[K]` cells of most attention, in row-major order."""
        _, rows, cols = image.grid
        count = kept_count(rows, cols, rho)
        return image.attention.topk(count).indices.sort().values

    def inputs(self, request: dict[str, Any]) -> Any:
        """HF's processed inputs for prompt and media as a whole."""
        data = request.get("multi_modal_data", {})
        kwargs = {
            key: value
            for key, value in request.get("mm_processor_kwargs", {}).items()
            if key != "hired_budget"
        }
        pixels = {key: kwargs.pop(key) for key in [*kwargs] if key.endswith("_pixels")}
        videos = None
        if "video" in data:
            # With what is known of it, where the model asks for that.
            parts = [v if isinstance(v, tuple) else (v, None) for v in data["video"]]
            videos = [torch.from_numpy(video).movedim(-1, 1) for video, _ in parts]
            kwargs["videos_kwargs"] = {"do_sample_frames": False}
            if parts[0][1] is not None:
                kwargs["videos_kwargs"]["video_metadata"] = [
                    {k: v for k, v in about.items() if k != "do_sample_frames"}
                    for _, about in parts
                ]
        return self.processor(
            text=request["prompt"],
            images=data.get("image"),
            videos=videos,
            images_kwargs=pixels,
            return_tensors="pt",
            **kwargs,
        )

    @torch.inference_mode()
    def generate(
        self,
        request: dict[str, Any],
        rho: str | None,
        max_tokens: int,
        wrong_by: int = 0,
    ) -> list[int]:
        """Greedy tokens for a request, at budget `rho` (None: nothing is dropped).

        HF's position rule for the whole prompt, of which dropped cells are left out.

        Args:
            request: of `qwen_prompt`.
            rho: the budget.
            max_tokens: of the answer.
            wrong_by: what is added to the columns of kept cells, to see it noticed.
        """
        inputs = self.inputs(request)
        config = self.model.config
        (ids,) = inputs["input_ids"]
        is_image, is_video = ids == config.image_token_id, ids == config.video_token_id
        grids = {
            key: inputs[key]
            for key in ("image_grid_thw", "video_grid_thw", "second_per_grid_ts")
            if key in inputs
        }
        positions, _ = self.model.model.get_rope_index(
            ids[None], (is_image + 2 * is_video).int()[None], **grids
        )
        positions = positions[-3:, 0]
        following = int(positions.max()) + 1

        embed = self.model.get_input_embeddings()
        width = embed.weight.shape[1]
        levels = len(getattr(config.vision_config, "deepstack_visual_indexes", ()))
        rows = torch.zeros(len(ids), width * (1 + levels))
        rows[:, :width] = embed(ids)
        stays = torch.ones_like(is_image)
        for kind, is_kind in (("image", is_image), ("video", is_video)):
            if not is_kind.any():
                continue
            places = is_kind.nonzero().flatten()
            pixels = inputs[
                "pixel_values" if kind == "image" else "pixel_values_videos"
            ]
            start = 0
            for grid in inputs[f"{kind}_grid_thw"]:
                patches = int(grid.prod())
                own, pixels = pixels[:patches], pixels[patches:]
                item = self.encode(own, grid)
                mine = places[start : start + len(item.rows)]
                start += len(item.rows)
                rows[mine] = item.rows
                if kind == "image" and rho is not None:
                    stays[mine] = False
                    kept = mine[self.kept(item, rho)]
                    stays[kept] = True
                    positions[2, kept] += wrong_by
        is_media = is_image | is_video
        return self._greedy(
            rows[stays], positions[:, stays], is_media[stays], following, max_tokens
        )

    def _greedy(
        self,
        rows: Tensor,
        positions: Tensor,
        is_media: Tensor,
        following: int,
        max_tokens: int,
    ) -> list[int]:
        embed = self.model.get_input_embeddings()
        width = embed.weight.shape[1]
        answer: list[int] = []
        for _ in range(max_tokens):
            deeper = [*rows[is_media, width:].split(width, dim=1)]
            extra = (
                {"visual_pos_masks": is_media[None], "deepstack_visual_embeds": deeper}
                if deeper and is_media.any()
                else {}
            )
            hidden = self.model.model.language_model(
                inputs_embeds=rows[None, :, :width],
                position_ids=positions[:, None],
                use_cache=False,
                **extra,
            ).last_hidden_state[0, -1]
            token = int(self.model.lm_head(hidden).argmax())
            answer.append(token)
            new = torch.zeros(1, rows.shape[1])
            new[:, :width] = embed(torch.tensor([token]))
            rows = torch.cat((rows, new))
            positions = torch.cat((positions, torch.full((3, 1), following)), dim=1)
            is_media = torch.cat((is_media, torch.tensor([False])))
            following += 1
        return answer
