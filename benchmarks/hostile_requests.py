"""Requests that a server should answer or refuse, and survive. All are drawn from a
random generator that the caller seeds.

Left out is what breaks stock vLLM by its own account: embeddings that are not finite,
which `--enable-mm-embeds` trusts, and patterns whose automaton takes minutes to build.
"""

import base64
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

import torch

from benchmarks import hostile_images as images
from benchmarks.server import CHAT, chat_body

Json = dict[str, Any]

VALUES = (
    *("null", "true", "false", "0", "-0.0", "1", "-1", "2", "0.1", "0.2", "1.0"),
    *("1e-300", "5e-324", "1e308", "1e400", "-1e400", "NaN", "Infinity", "-Infinity"),
    *("9" * 30, "-" + "9" * 30, '""', '"0.2"', '"NaN"', '"\\u0000"', '"\\ud800"'),
    *('"💥"', f'"{"x" * 5000}"', "[]", "[0.2]", "[null]", "[[[]]]", "{}", '{"a": 1}'),
    *('{"hired_budget": 0.1}', '["hired_budget"]', "[" * 150 + "]" * 150),
)
"""JSON texts of every type, and what some parsers take for JSON."""

KWARGS = (
    *("size", "crop_size", "image_mean", "image_std", "rescale_factor", "resample"),
    *("do_resize", "do_rescale", "do_normalize", "do_center_crop", "do_convert_rgb"),
    *("do_pad", "image_grid_pinpoints", "data_format", "input_data_format", "device"),
    *("return_tensors", "images_kwargs", "text_kwargs", "common_kwargs", "padding"),
    *("truncation", "max_length", "add_special_tokens", "patch_size", "min_pixels"),
    *("vision_feature_select_strategy", "num_additional_image_tokens", "max_pixels"),
    *("hired_alpha", "hired_max_budget", "hired_selector", "hired_algorithm", "nobody"),
    *("", "__class__", "self", "text", "images", "videos", "num_kept"),
)

FIELDS = (
    *("max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "min_p"),
    *("seed", "stop", "stop_token_ids", "logprobs", "top_logprobs", "prompt_logprobs"),
    *("logit_bias", "stream", "stream_options", "min_tokens", "repetition_penalty"),
    *("presence_penalty", "echo", "ignore_eos", "chat_template_kwargs", "priority"),
    *("truncate_prompt_tokens", "cache_salt", "mm_processor_kwargs", "messages"),
    *("media_io_kwargs", "model", "user", "tools", "tool_choice", "response_format"),
    *("allowed_token_ids", "bad_words", "vllm_xargs", "request_id", "documents"),
    *("add_generation_prompt", "continue_final_message", "structured_outputs"),
)

GUIDED: tuple[Json, ...] = (
    {"structured_outputs": {"choice": ["cat", "dog"]}},
    {"structured_outputs": {"choice": []}},
    {"structured_outputs": {"regex": "[0-9]{1,3}"}},
    {"structured_outputs": {"regex": "("}},
    {"structured_outputs": {"grammar": 'root ::= "a" | "b" root'}},
    {"structured_outputs": {"grammar": "root ::="}},
    {"structured_outputs": {"json": {"type": "integer"}}},
    {"structured_outputs": {"json": {"type": "nothing"}}},
    {"structured_outputs": {"json": '{"type": "object"'}},
    {"structured_outputs": {"json": {"$ref": "#"}}},
    {"structured_outputs": {"regex": "a", "choice": ["b"]}},
    {"structured_outputs": {"json_object": True}},
    {"structured_outputs": {}},
    {"structured_outputs": {"nothing": 1}},
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
    {"response_format": {"type": "structural_tag"}},
    {"response_format": {"type": "nothing"}},
)

PATHS = (
    *("/v1/completions", "/v1/responses", "/tokenize", "/detokenize", "/v1/messages"),
    *("/v1/chat/completions/render", "/v1/chat/completions/batch", "/v1/embeddings"),
    *("/v1/score", "/pooling", "/inference/v1/generate", "/v1/nothing"),
)


@dataclass(frozen=True)
class Attack:
    """One request.

    Attributes:
        body: as it is sent.
        path: where it is sent.
        hang_up: None, or after how many bytes of the body, or, if negative, how many
            milliseconds after all of them, the client goes away.
    """

    body: bytes
    path: str = CHAT
    hang_up: int | None = None


Draw = Callable[[Random, int], Attack]


def text_of(body: Any, **raw: str) -> bytes:
    """A body's JSON; values called `<name>` are replaced by `raw` texts."""
    text = json.dumps(body)
    for name, value in raw.items():
        text = text.replace(f'"<{name}>"', value)
    return text.encode("utf-8", "surrogatepass")


def budget(rng: Random, _: int) -> Attack:
    body = chat_body(images.ordinary(rng), mm_processor_kwargs={"hired_budget": "<v>"})
    return Attack(text_of(body, v=rng.choice(VALUES)))


def processor_kwargs(rng: Random, _: int) -> Attack:
    kwargs: Any = {
        rng.choice(KWARGS): f"<{place}>" for place in "ab"[: rng.randrange(1, 3)]
    }
    match rng.randrange(4):
        case 0:
            kwargs = {"images_kwargs": kwargs}
        case 1:
            kwargs["hired_budget"] = 0.1
        case 2 if rng.random() < 0.3:
            kwargs = "<a>"
        case _:
            pass
    body = chat_body(images.ordinary(rng), mm_processor_kwargs=kwargs)
    raw = {place: rng.choice(VALUES) for place in "ab"}
    return Attack(text_of(body, **raw))


def odd_image(rng: Random, _: int) -> Attack:
    urls = [images.odd(rng) for _ in range(rng.randrange(1, 4))]
    return Attack(text_of(chat_body(*urls)))


def broken_image(rng: Random, _: int) -> Attack:
    match rng.randrange(4):
        case 0:
            body = text_of(chat_body(rng.choice(images.BAD_URLS)))
        case 1:
            body = text_of(chat_body("<v>"), v=rng.choice(VALUES))
        case 2:
            body = text_of(chat_body(images.ordinary(rng), images.broken(rng)))
        case _:
            body = text_of(chat_body(images.broken(rng)))
    return Attack(body)


def aspect(rng: Random, _: int) -> Attack:
    urls = [images.extreme(rng) for _ in range(rng.randrange(1, 3))]
    return Attack(text_of(chat_body(*urls)))


def disconnect(rng: Random, _: int) -> Attack:
    extra: dict[str, Any] = {
        "max_tokens": 100,
        "ignore_eos": True,
        "stream": rng.random() < 0.5,
    }
    body = text_of(chat_body(images.ordinary(rng), **extra))
    after = rng.choice((rng.randrange(len(body)), -rng.randrange(1, 600)))
    return Attack(body, hang_up=after)


def guided(rng: Random, _: int) -> Attack:
    extra = {**rng.choice(GUIDED), "stream": rng.random() < 0.3}
    return Attack(text_of(chat_body(images.ordinary(rng), **extra)))


def embeddings(rng: Random, width: int) -> Attack:
    def encoded(value: Any) -> str:
        buffer = io.BytesIO()
        torch.save(value, buffer)
        return base64.b64encode(buffer.getvalue()).decode()

    rows = rng.choice((0, 1, 7, 64, 300, 3000))
    good = torch.randn(max(rows, 1), width, generator=_generator(rng))
    values: tuple[Any, ...] = (
        encoded(good),
        encoded(good.bfloat16()),
        encoded(good.unsqueeze(0)),
        encoded(torch.randn(rows, width + 1, generator=_generator(rng))),
        encoded(torch.zeros(0, width)),
        encoded(good[0]),
        encoded(good.expand(2, 2, *good.shape)),
        encoded(good.long()),
        encoded({"image_embeds": good}),
        encoded("no tensor"),
        {"image_embeds": encoded(good)},
        base64.b64encode(rng.randbytes(50)).decode(),
        *("", "@", None, 1, [], {}),
    )
    body = chat_body(*([images.ordinary(rng)] if rng.random() < 0.2 else []))
    part = {"type": "image_embeds", "image_embeds": rng.choice(values)}
    body["messages"][0]["content"][:0] = [part] * rng.choice((1, 1, 1, 2, 4))
    return Attack(text_of(body))


def _generator(rng: Random) -> torch.Generator:
    return torch.Generator().manual_seed(rng.randrange(2**32))


def names(rng: Random, _: int) -> Attack:
    """Few names for many images, and images that are a name alone."""
    body = chat_body(images.ordinary(rng), images.ordinary(rng))
    for part in body["messages"][0]["content"][:-1]:
        part["uuid"] = rng.choice(("a", "b", "<v>"))
        if rng.random() < 0.4:
            part["image_url"] = None
    body["mm_processor_kwargs"] = {"hired_budget": rng.choice((0.1, 0.2))}
    return Attack(text_of(body, v=rng.choice(VALUES)))


def field(rng: Random, _: int) -> Attack:
    body = chat_body(images.ordinary(rng))
    body |= {rng.choice(FIELDS): "<v>"}
    return Attack(text_of(body, v=rng.choice(VALUES)))


def body(rng: Random, _: int) -> Attack:
    """Not the shape of a chat, or not JSON."""
    whole = chat_body(images.ordinary(rng))
    content = whole["messages"][0]["content"]
    match rng.randrange(7):
        case 0:
            return Attack(rng.choice(VALUES).encode("utf-8", "replace"))
        case 1:
            return Attack(text_of(whole)[: rng.randrange(400)])
        case 2:
            content *= rng.randrange(2, 9)
        case 3:
            content[-1]["text"] = "<image>" * rng.randrange(1, 9)
        case 4:
            content[0]["type"] = rng.choice(("video_url", "input_audio", "", "image"))
        case 5:
            whole["messages"][0]["role"] = rng.choice(("", "system", "tool", "nobody"))
        case _:
            content.append("<v>")
    return Attack(text_of(whole, v=rng.choice(VALUES)))


def path(rng: Random, _: int) -> Attack:
    whole = chat_body(images.ordinary(rng), mm_processor_kwargs={"hired_budget": "<v>"})
    content = whole["messages"][0]["content"]
    responses = [
        {"type": "input_text", "text": "What is this?"},
        {"type": "input_image", "image_url": content[0]["image_url"]["url"]},
    ]
    match rng.randrange(3):
        case 0:
            whole |= {"prompt": rng.choice(("Hello", "<image>", [1, 2], "<v>"))}
        case 1:
            whole |= {"input": [{"role": "user", "content": responses}]}
        case _:
            whole |= {"input": "<v>", "prompt": "<v>", "token_ids": "<v>"}
    body = text_of(whole, v=rng.choice(VALUES))
    return Attack(body, path=rng.choice(PATHS))


def ordinary(rng: Random, _: int) -> Attack:
    urls = [images.ordinary(rng) for _ in range(rng.randrange(3))]
    kwargs = {"hired_budget": rng.choice((0.05, 0.1, 0.2))}
    return Attack(text_of(chat_body(*urls, mm_processor_kwargs=kwargs)))


KINDS: dict[str, Draw] = {
    "ordinary": ordinary,
    "hired_budget": budget,
    "mm_processor_kwargs": processor_kwargs,
    "odd images": odd_image,
    "broken images": broken_image,
    "extreme aspect ratios": aspect,
    "disconnects": disconnect,
    "guided output": guided,
    "image_embeds": embeddings,
    "uuids": names,
    "other fields": field,
    "bodies": body,
    "other paths": path,
}


def attacks(count: int, seed: int, width: int) -> list[tuple[str, Attack]]:
    """`count` requests with their kinds, of each kind as many as of any other, in
    random order.

    Args:
        count: how many.
        seed: of all that is drawn.
        width: of the model's embeddings, for `image_embeds`.
    """
    rng = Random(seed)
    kinds = [*KINDS] * (count // len(KINDS) + 1)
    drawn = [(kind, KINDS[kind](rng, width)) for kind in kinds[:count]]
    rng.shuffle(drawn)
    return drawn
