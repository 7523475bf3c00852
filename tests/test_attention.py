"""Captured [CLS] attention against HF's eager attention."""

from collections.abc import Iterable
from typing import Any, cast

import pytest
import torch
from vllm import LLM

from tests.reference import Reference
from vllm_hired.engine.capture import capture
from vllm_hired.towers.attention import cls_attention
from vllm_hired.towers.reading import Reading


def cls_readings(layers: Iterable[int]) -> dict[Any, Reading]:
    """[CLS] attention of layers, by their numbers."""
    return {layer: Reading(layer, cls_attention) for layer in layers}


@pytest.fixture
def model(any_engine: LLM) -> Any:
    (model,) = any_engine.apply_model(lambda model: model)
    return model


@pytest.fixture
def pixels(model: Any) -> torch.Tensor:
    side = model.config.vision_config.image_size
    return torch.randn((3, 3, side, side), generator=torch.Generator().manual_seed(0))


def test_equals_hf_at_every_layer(
    model: Any, pixels: torch.Tensor, reference: Reference
) -> None:
    layers = range(len(model.vision_tower.vision_model.encoder.layers))
    assert len(layers) == 3
    with (
        torch.inference_mode(),
        capture(model.vision_tower, cls_readings(layers)) as captured,
    ):
        model.vision_tower(pixels)
    attentions = reference.tower(pixels).attentions
    for layer in layers:
        scores = captured[cast(Any, layer)]
        assert scores.dtype == torch.float32
        expected = attentions[layer][:, :, 0, 1:].sum(dim=1)
        torch.testing.assert_close(scores, expected, rtol=1e-5, atol=1e-6)
        # Peaked enough that a ranking means something.
        assert (expected.amax(dim=1) > 2 * expected.mean(dim=1)).all()


def test_images_in_several_forwards_give_the_same(
    engine: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each forward whole images, of at most so many tiles; the last one too large."""
    (model,) = engine.apply_model(lambda model: model)
    pixels = torch.randn((3, 3, 56, 56), generator=torch.Generator().manual_seed(0))
    sizes = torch.tensor([(56, 112), (56, 112), (56, 112), (112, 112)])
    images = [pixels, pixels + 1, pixels - 1, torch.cat((pixels, pixels[:2]))]
    inputs = {
        "image_sizes": sizes,
        "num_kept": torch.tensor([50, 40, 30, 20]),
        "is_undropped": torch.zeros(4, dtype=torch.bool),
    }
    with torch.inference_mode():
        together = model.embed_multimodal(pixel_values=images, **inputs)
        monkeypatch.setattr(
            model, "max_cells_per_forward", 6 * model.cells_per_partition
        )
        forwards: list[int] = []
        handle = model.vision_tower.register_forward_pre_hook(
            lambda _, args: forwards.append(len(args[0]))
        )
        apart = model.embed_multimodal(pixel_values=images, **inputs)
        monkeypatch.setattr(model, "max_cells_per_forward", 0)
        model.embed_multimodal(pixel_values=images, **inputs)
        handle.remove()
    assert forwards == [6, 3, 5, 3, 3, 3, 5]
    assert [len(rows) for rows in apart] == [50, 40, 30, 20]
    for one, other in zip(together, apart, strict=True):
        torch.testing.assert_close(one, other)


def test_a_failed_forward_leaves_nothing_behind(
    model: Any, pixels: torch.Tensor
) -> None:
    attention = model.vision_tower.vision_model.encoder.layers[0].self_attn.attn
    hooks = len(attention._forward_pre_hooks)
    with (
        pytest.raises(RuntimeError),
        capture(model.vision_tower, cls_readings([0])) as captured,
    ):
        # The hook has fired when the second of these two inputs turns out too small.
        [model.vision_tower(tiles) for tiles in (pixels, pixels[:, :, 1:])]
    assert {*map(str, captured)} == {"0"}
    assert len(attention._forward_pre_hooks) == hooks
