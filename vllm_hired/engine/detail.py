"""`image_url.detail`: OpenAI's own parameter, as the budget of each image.

vLLM takes it and ignores it. A conversation is looked through before vLLM renders it,
and the budgets of its images go along as if the request had asked for them.
"""

import asyncio
from collections.abc import Iterator, Sequence
from functools import cache, wraps
from itertools import chain
from typing import Any

from vllm.exceptions import VLLMValidationError
from vllm.renderers.base import BaseRenderer

from vllm_hired.config import HiredConfig
from vllm_hired.errors import HiredConfigError

IMAGE_KEYS = ("image_url", "image_pil", "image_embeds")
"""By which vLLM knows an image where a part has a uuid, or no type."""

IMAGE_TYPES = (*IMAGE_KEYS, "input_image")

Extras = dict[str, Any]
"""What is added to the prompts of a call: vLLM's `prompt_extras`."""


@cache
def wrap_render_chat() -> None:
    """Wraps `BaseRenderer.render_chat` and `render_chat_async`, once."""
    upstream, upstream_async = BaseRenderer.render_chat, BaseRenderer.render_chat_async

    @wraps(upstream)
    def render_chat(
        self: BaseRenderer,
        conversations: Sequence[Any],
        *args: Any,
        prompt_extras: Extras | None = None,
        **kwargs: Any,
    ) -> Any:
        return _joined(
            [
                upstream(self, some, *args, prompt_extras=extras, **kwargs)
                for some, extras in _by_budget(self, conversations, prompt_extras)
            ]
        )

    @wraps(upstream_async)
    async def render_chat_async(
        self: BaseRenderer,
        conversations: Sequence[Any],
        *args: Any,
        prompt_extras: Extras | None = None,
        **kwargs: Any,
    ) -> Any:
        return _joined(
            await asyncio.gather(
                *(
                    upstream_async(self, some, *args, prompt_extras=extras, **kwargs)
                    for some, extras in _by_budget(self, conversations, prompt_extras)
                )
            )
        )

    BaseRenderer.render_chat = render_chat
    BaseRenderer.render_chat_async = render_chat_async


def _joined(rendered: Sequence[tuple[Sequence[Any], Sequence[Any]]]) -> Any:
    """Of the parts of a call: all conversations, and all prompts."""
    return tuple([*chain.from_iterable(some)] for some in zip(*rendered, strict=True))


def _by_budget(
    renderer: BaseRenderer, conversations: Sequence[Any], prompt_extras: Extras | None
) -> list[tuple[Sequence[Any], Extras | None]]:
    """The conversations of a call in parts, and what is added to the prompts of each.

    vLLM adds the same to all prompts of a call. A budget that the request asks for goes
    before details.
    """
    hired = getattr(getattr(renderer.mm_processor, "info", None), "hired", None)
    asked = (prompt_extras or {}).get("mm_processor_kwargs") or {}
    if hired is None or not hired.has_details or asked.get("hired_budget") is not None:
        return [(conversations, prompt_extras)]
    conversations = [[*map(_with_parts, messages)] for messages in conversations]
    budgets = [detail_budgets(messages, hired) for messages in conversations]
    if not any(budgets):
        return [(conversations, prompt_extras)]
    return [
        (
            [messages],
            {
                **(prompt_extras or {}),
                "mm_processor_kwargs": {**asked, "hired_budget": own},
            }
            if own
            else prompt_extras,
        )
        for messages, own in zip(conversations, budgets, strict=True)
    ]


def _with_parts(message: Any) -> Any:
    """A message whose content can be read more than once, which pydantic's cannot."""
    content = message.get("content") if isinstance(message, dict) else None
    if content is None or isinstance(content, (str, list)):
        return message
    return {**message, "content": [*content]}


def detail_budgets(
    messages: Sequence[Any], hired: HiredConfig
) -> list[float | None] | None:
    """The budget of each image of a conversation, None for the engine's default; None
    where all have that.

    Raises:
        VLLMValidationError: a detail that there is not.
    """
    try:
        budgets = [hired.detail_budget(_detail(part)) for part in _images(messages)]
    except HiredConfigError as error:
        raise VLLMValidationError(
            str(error), parameter=error.setting, value=error.value
        ) from error
    if not any(budget is not None for budget in budgets):
        return None
    return [None if budget is None else float(budget) for budget in budgets]


def _images(messages: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Parts that vLLM takes for images, in the order of the prompt."""
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        for part in content if isinstance(content, list) else ():
            if not isinstance(part, dict):
                continue
            kind = part.get("type")
            if kind is None or part.get("uuid") is not None:
                if any(key in part for key in IMAGE_KEYS):
                    yield part
            elif kind in IMAGE_TYPES:
                yield part


def _detail(part: dict[str, Any]) -> object:
    """Chat completions have it inside `image_url`, responses beside it."""
    image_url = part.get("image_url")
    inside = image_url.get("detail") if isinstance(image_url, dict) else None
    return part.get("detail") if inside is None else inside
