"""The chat template of our checkpoints: images come first within a message, whatever
the client's order, in transformers and in vLLM."""

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoProcessor, AutoTokenizer
from vllm.engine.arg_utils import EngineArgs
from vllm.renderers import ChatParams, renderer_from_config

from random_checkpoints.llava import CHAT_TEMPLATE
from tests.engine import noise_image

IMAGE = {"type": "image"}


def text(words: str) -> dict[str, str]:
    return {"type": "text", "text": words}


def user(*content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": list(content)}]


TURNS = [
    {"role": "system", "content": "Be brief."},
    *user(text("A?"), IMAGE),
    {"role": "assistant", "content": [text("Yes.")]},
    {"role": "user", "content": "And B?"},
]
CASES: dict[str, tuple[list[dict[str, Any]], str]] = {
    "image first": (user(IMAGE, text("A?")), "USER: <image>A?\nASSISTANT:"),
    "text first": (user(text("A?"), IMAGE), "USER: <image>A?\nASSISTANT:"),
    "several": (
        user(text("A"), IMAGE, text(" or B?"), IMAGE),
        "USER: <image><image>A or B?\nASSISTANT:",
    ),
    "no image": (user(text("A?")), "USER: A?\nASSISTANT:"),
    "a string": ([{"role": "user", "content": "A?"}], "USER: A?\nASSISTANT:"),
    "turns": (
        TURNS,
        "SYSTEM: Be brief.\nUSER: <image>A?\nASSISTANT: Yes.\nUSER: And B?\nASSISTANT:",
    ),
}


@pytest.fixture(scope="module")
def renderer(checkpoint: Path) -> Any:
    """vLLM's, without an engine behind it."""
    arguments = EngineArgs(str(checkpoint), max_model_len=1024)
    return renderer_from_config(arguments.create_engine_config())


@pytest.mark.parametrize("case", CASES)
def test_images_come_first_in_transformers(checkpoint: Path, case: str) -> None:
    messages, expected = CASES[case]
    processor = AutoProcessor.from_pretrained(checkpoint)
    chat = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert chat == expected


@pytest.mark.parametrize("case", CASES)
def test_images_come_first_in_vllm(renderer: Any, case: str) -> None:
    messages, expected = CASES[case]
    image = {"type": "image_pil", "image_pil": noise_image(60, 60)}
    sent = [
        message
        if isinstance(message["content"], str)
        else message
        | {"content": [image if part == IMAGE else part for part in message["content"]]}
        for message in messages
    ]
    options = {"add_generation_prompt": True, "tokenize": False}
    _, prompt = renderer.render_messages(sent, ChatParams(chat_template_kwargs=options))
    assert prompt["prompt"] == expected


def test_every_stored_template_is_the_same(checkpoint: Path) -> None:
    assert AutoProcessor.from_pretrained(checkpoint).chat_template == CHAT_TEMPLATE
    assert AutoTokenizer.from_pretrained(checkpoint).chat_template == CHAT_TEMPLATE
