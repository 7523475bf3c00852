"""lmms-eval's vLLM backend with answers of the tasks' own length."""

from typing import Any

from lmms_eval.models.chat.vllm import VLLM

ANSWERS_WITHOUT_LENGTH = 1024
"""Most tokens of an answer where a task states none, as lmms-eval's HF backends have
it."""


class TaskLengthVLLM(VLLM):
    """lmms-eval's vLLM backend, which cuts answers where the task says.

    Upstream's takes the larger of the task's length and its own `max_new_tokens`, 4,096
    by default. With 1 the task's length counts; but of a task that states none, such as
    textvqa_val, only one token would be left.
    """

    def _select_max_new_tokens(self, request_max_new_tokens: Any) -> int:
        if request_max_new_tokens is None:
            return ANSWERS_WITHOUT_LENGTH
        length: int = super()._select_max_new_tokens(request_max_new_tokens)
        return length
