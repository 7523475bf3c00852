"""What `llava-next-smol` is trained on is what transformers and a chat make of it."""

from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from random_checkpoints.llava import make_config, make_tokenizer, small
from training.smol.language import CHAT_TEMPLATE, IMAGE_TOKEN, prompt_of
from training.smol.sequences import visual_rows
from vllm_hired.layouts.llava_next import anyres_layout

SIZES = ((112, 112), (100, 95), (50, 165), (165, 50), (30, 30))
"""Height and width in pixels."""


@pytest.mark.parametrize("size", SIZES)
def test_the_stock_sequence_is_transformers(size: tuple[int, int]) -> None:
    """Newline tokens included, by its own packing; what is dropped leaves no trace."""
    shape = small()
    model: Any = AutoModelForImageTextToText.from_config(
        make_config(shape, make_tokenizer())
    )
    tile, patch = shape.tile_size, shape.patch_size
    layout = anyres_layout(*size, shape.pinpoints, tile, patch)
    cells = (tile // patch) ** 2
    features = torch.randn(layout.num_partitions, cells, shape.text_hidden)
    newline = torch.randn(shape.text_hidden)
    (packed,), _ = model.model.pack_image_features(
        [features], torch.tensor([size]), "default", newline
    )
    rows = features.flatten(0, 1)
    assert torch.equal(visual_rows(rows, layout, newline, None), packed)
    patches = packed[~(packed == newline).all(dim=1)]
    keep = torch.rand(layout.num_selectable) < 0.5
    assert torch.equal(visual_rows(rows, layout, newline, keep), patches[keep])


@pytest.mark.parametrize("image_first", [True, False])
def test_a_chat_asks_as_the_training_does(image_first: bool) -> None:
    """The image comes before the text, wherever the client has it."""
    question = "What is in the top left?"
    content = [{"type": "image"}, {"type": "text", "text": question}]
    chat = make_tokenizer().apply_chat_template(
        [{"role": "user", "content": content if image_first else content[::-1]}],
        chat_template=CHAT_TEMPLATE,
        add_generation_prompt=True,
        tokenize=False,
    )
    assert chat == IMAGE_TOKEN.join(prompt_of(question))
