"""Received attention against all of attention at once."""

import pytest
import torch

from vllm_hired.towers import attention
from vllm_hired.towers.attention import received_attention, summed_keys


@pytest.mark.parametrize("chunk_bytes", [1, 4 * 3 * 50 * 7, 2**25])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_chunks_change_nothing(
    monkeypatch: pytest.MonkeyPatch, chunk_bytes: int, dtype: torch.dtype
) -> None:
    """One query at a time, seven of fifty, and all."""
    monkeypatch.setattr(attention, "CHUNK_BYTES", chunk_bytes)
    generator = torch.Generator().manual_seed(0)
    heads, width = 3, 8
    query, key = (
        3 * torch.randn((2, 50, heads * width), generator=generator).to(dtype)
        for _ in range(2)
    )
    found = received_attention(query, key, heads, width**-0.5)
    by_head = [
        x.double().view(2, 50, heads, width).transpose(1, 2) for x in (query, key)
    ]
    logits = by_head[0] @ by_head[1].transpose(-1, -2) * width**-0.5
    expected = logits.softmax(dim=-1).sum(dim=(1, 2))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    # Each query gives one in all, by head.
    torch.testing.assert_close(found.sum(dim=1), torch.full((2,), 50.0 * heads))


def test_ranks_add_up() -> None:
    """Two halves of the heads give together what all give."""
    generator = torch.Generator().manual_seed(1)
    query, key = torch.randn((2, 2, 10, 4 * 8), generator=generator)
    for measure in (received_attention, summed_keys):
        whole = measure(query, key, 4, 0.3)
        halves = [
            measure(q, k, 2, 0.3)
            for q, k in zip(query.chunk(2, -1), key.chunk(2, -1), strict=True)
        ]
        torch.testing.assert_close(halves[0] + halves[1], whole)
