"""Held-out pictures and questions for evaluation, through vLLM or transformers.

A *trial* is one of each task: five questions about one scene, one about a page, one
about a chart.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from training.smol.language import IMAGE_TOKEN, prompt_of
from training.smol.pictures import Picture, make_chart, make_page, make_scene
from training.smol.questions import TASKS, Facts, Question

Generator = np.random.Generator

SEED = 20_261_126
KINDS = {"scene": make_scene, "page": make_page, "chart": make_chart}
"""Of the pictures of a trial."""
NAMES = ("presence", "naming", "place", "counting", "reading", "page", "chart")
"""Of the tasks, in a trial's order."""
MOST_NEW_TOKENS = 16


@dataclass(frozen=True)
class Query:
    """A question about an image."""

    image: Image.Image
    question: Question

    @property
    def prompt(self) -> str:
        """As the chat template has it."""
        return IMAGE_TOKEN.join(prompt_of(self.question.text))

    def request(self, budget: float) -> dict[str, Any]:
        """As `LLM.generate` takes it."""
        return {
            "prompt": self.prompt,
            "multi_modal_data": {"image": self.image},
            "mm_processor_kwargs": {"hired_budget": budget},
        }


Trial = tuple[Query, ...]


def trials(count: int, seed: int = SEED, kinds: Iterable[str] = KINDS) -> list[Trial]:
    """Photographs and words that training never saw; a trial follows from its number.

    Scenes are those to which each task has a question. With some of the `kinds` alone
    a trial has the same pictures and questions of these.
    """
    return [
        tuple(
            query
            for kind in kinds
            for query in _queries(np.random.default_rng((seed, number)), KINDS[kind])
        )
        for number in range(count)
    ]


def _queries(rng: Generator, make: Any) -> list[Query]:
    while True:
        picture: Picture = make(rng, held_out=True)
        asked = [task(rng, Facts.of(picture)) for task in TASKS[picture.kind]]
        questions = [question for question in asked if question is not None]
        if len(questions) == len(asked):
            return [Query(picture.image, question) for question in questions]


def truth(found: Sequence[Trial]) -> list[str]:
    return [query.question.answer for trial in found for query in trial]
