"""Kept tokens at their own M-RoPE positions, without vLLM's pruning hooks.

A Qwen-VL gives each token of an image the position `(s, s + row, s + column)`, where
`s` is that of the image, and goes on with text at `s + max(rows, columns)`. Of all
this, only the row and the column of a kept token depend on the image's content. So:

- `get_mrope_input_positions` puts all tokens of a pruned image at `(s, s, s)`;
- `embed_multimodal` hands row and column on as four more columns of the token's row,
  through vLLM's encoder cache;
- `embed_input_ids` takes them off, into a buffer;
- `forward` adds the buffer to the positions.

The sum goes to a buffer, too: neither vLLM's positions, which are not refilled in every
step, may change, nor the address that a captured graph reads.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override
from vllm.config import VllmConfig
from vllm.model_executor.models.interfaces import SupportsMRoPE
from vllm.multimodal.inputs import MultiModalFeatureSpec

from vllm_hired.engine.inputs import item_layout
from vllm_hired.engine.models.base import HiredModelMixin

COLUMNS = 4
"""Of a pruned image's rows: row and column of the cell as two digits each."""

BASE = 256
"""Of the digits: bfloat16, too, has all whole numbers up to it."""


def with_offsets(rows: Tensor, cells: Tensor, grid_columns: int) -> Tensor:
    """`[K, D + 4]`: rows of kept cells, and where in the image these are.

    Args:
        rows: `[K, D]`.
        cells: `[K]` int64, in the grid's row-major order.
        grid_columns: columns of the grid.
    """
    row, column = cells // grid_columns, cells % grid_columns
    digits = (row // BASE, row % BASE, column // BASE, column % BASE)
    return torch.cat((rows, torch.stack(digits, dim=1).to(rows.dtype)), dim=1)


def offsets_of(rows: Tensor) -> Tensor:
    """`[K, 2]` int64: what `with_offsets` put into the last columns of `[K, D + 4]`."""
    digits = rows[:, -COLUMNS:].long()
    return digits[:, ::2] * BASE + digits[:, 1::2]


class MRoPEOffsets(torch.nn.Module):
    """What is added to the positions of one step."""

    offsets: Tensor
    shifted: Tensor

    def __init__(self, max_tokens: int) -> None:
        super().__init__()
        self.register_buffer(
            "offsets", torch.zeros((2, max_tokens), dtype=torch.int64), persistent=False
        )
        # A column more than is used, as vLLM's own positions have it: so that no slice
        # is contiguous, and a compiled graph sees the same strides at every length.
        shape = (3, max_tokens + 1)
        self.register_buffer(
            "shifted", torch.zeros(shape, dtype=torch.int64), persistent=False
        )
        self.is_zero = True

    def take(
        self, embeddings: Sequence[Tensor], width: int, is_multimodal: Tensor | None
    ) -> list[Tensor]:
        """Takes the offsets off a step's rows of media.

        Args:
            embeddings: `[n, width]` of a whole item, `[n, width + 4]` of a pruned one.
            width: of a row.
            is_multimodal: `[tokens]` bool, where the rows go.

        Returns:
            `[n, width]` each.
        """
        if not self.is_zero:
            # Whole, since the next step may be padded, or have no embeddings at all.
            self.offsets.zero_()
            self.is_zero = True
        if all(rows.shape[-1] == width for rows in embeddings):
            return [*embeddings]
        assert is_multimodal is not None
        offsets = [
            rows.new_zeros((len(rows), 2), dtype=torch.int64)
            if rows.shape[-1] == width
            else offsets_of(rows)
            for rows in embeddings
        ]
        by_token = self.offsets[:, : len(is_multimodal)].T
        # With a mask on the CPU, as vLLM has it, this does not wait for the device.
        by_token[is_multimodal] = torch.cat(offsets)
        self.is_zero = False
        return [rows[:, :width] for rows in embeddings]

    def forward(self, positions: Tensor) -> Tensor:
        """`[3, tokens]` int64: positions as they are in the LLM."""
        tokens = positions.shape[1]
        shifted = self.shifted[:, :tokens]
        shifted.copy_(positions)
        shifted[1:] += self.offsets[:, :tokens]
        return shifted


class HiredMRoPEMixin(HiredModelMixin, SupportsMRoPE):
    """Positions of pruned images in a model with M-RoPE."""

    @override
    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        self.hired_positions = MRoPEOffsets(
            vllm_config.scheduler_config.max_num_batched_tokens
        )

    @override
    def get_mrope_input_positions(
        self, input_tokens: list[int], mm_features: list[MultiModalFeatureSpec]
    ) -> tuple[Tensor, int]:
        """Those of the same prompt with its images whole, of which each token of a
        pruned image has the first."""
        tokens: list[int] = []
        features: list[MultiModalFeatureSpec] = []
        # For each token of `input_tokens` the one of `tokens` whose position it has.
        same: list[int] = []
        done = added = 0
        for feature in sorted(mm_features, key=lambda f: f.mm_position.offset):
            place = feature.mm_position
            length = place.length
            if is_pruned(feature):
                unchanged = input_tokens[done : place.offset]
                same += range(len(tokens), len(tokens) + len(unchanged))
                tokens += unchanged
                same += [len(tokens)] * place.length
                length = item_layout(self.config, feature.data).num_cells
                tokens += input_tokens[place.offset : place.offset + 1] * length
                done = place.offset + place.length
            moved = replace(place, offset=place.offset + added, length=length)
            features.append(replace(feature, mm_position=moved))
            added += length - place.length
        same += range(len(tokens), len(tokens) + len(input_tokens) - done)
        tokens += input_tokens[done:]
        positions, delta = super().get_mrope_input_positions(tokens, features)
        # A delta leads from the number of tokens to the position after them.
        return positions[:, torch.tensor(same, dtype=torch.int64)], delta + added

    @override
    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Any = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Takes the offsets off the rows of media."""
        if multimodal_embeddings is None:
            multimodal_embeddings = []
        return super().embed_input_ids(
            input_ids,
            self.hired_positions.take(
                multimodal_embeddings, self.visual.out_hidden_size, is_multimodal
            ),
            is_multimodal=is_multimodal,
        )

    @override
    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **kwargs: object,
    ) -> Any:
        """Adds the offsets to the positions, unless this engine refuses to drop: then
        it may run two halves of a batch at once, for which there is one buffer."""
        if self.hired.unsupported is None and positions.ndim == 2:
            positions = self.hired_positions(positions)
        return super().forward(
            input_ids, positions, intermediate_tensors, inputs_embeds, **kwargs
        )


def is_pruned(feature: MultiModalFeatureSpec) -> bool:
    """Whether an item of a request is an image that tokens were dropped from."""
    data = feature.data
    return (
        data is not None and "num_kept" in data and not bool(data["is_undropped"].data)
    )
