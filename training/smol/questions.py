"""What is asked about pictures: each task mirrors one of the paper's benchmarks.

Answers of the closed tasks are balanced where the pictures allow it, so that one
answer for all of a task's questions is right as seldom as can be.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from training.smol.objects import NAMES, with_article
from training.smol.pictures import Box, Picture, Thing

Generator = np.random.Generator

QUARTERS = ("top left", "top right", "bottom left", "bottom right")


@dataclass(frozen=True)
class Question:
    """A question and its only right answer."""

    task: str
    text: str
    answer: str


@dataclass(frozen=True)
class Facts:
    """What a picture shows, without its pixels; see `Picture`."""

    kind: str
    width: int
    height: int
    things: tuple[Thing, ...]
    sign: str
    fields: dict[str, str]

    @classmethod
    def of(cls, picture: Picture) -> "Facts":
        things = tuple(picture.things)
        size = picture.image.size
        return cls(picture.kind, *size, things, picture.sign, picture.fields)

    @classmethod
    def from_json(cls, saved: dict[str, Any]) -> "Facts":
        things = tuple(Thing(t["name"], tuple(t["box"])) for t in saved["things"])
        return cls(**{**saved, "things": things})

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def quarter(self, box: Box) -> int:
        """In which of `QUARTERS` the middle of a box lies."""
        right = box[0] + box[2] > self.width
        low = box[1] + box[3] > self.height
        return 2 * low + right


Task = Callable[[Generator, Facts], Question | None]
"""None where the picture has nothing to ask for."""


def presence(rng: Generator, facts: Facts) -> Question:
    """POPE: yes or no, as often."""
    there = [thing.name for thing in facts.things]
    absent = [name for name in NAMES if name not in there]
    is_there = bool(there) and rng.random() < 0.5
    name = _one(rng, there if is_there else absent)
    text = f"Is there {with_article(name)}?"
    return Question("presence", text, "yes" if is_there else "no")


def naming(rng: Generator, facts: Facts) -> Question | None:
    """VQAv2: the only object in a quarter of the picture."""
    found: list[list[str]] = [[], [], [], []]
    for thing in facts.things:
        found[facts.quarter(thing.box)].append(thing.name)
    alone = [i for i in range(4) if len(found[i]) == 1]
    if not alone:
        return None
    quarter = alone[int(rng.integers(len(alone)))]
    answer = with_article(found[quarter][0])
    return Question("naming", f"What is in the {QUARTERS[quarter]}?", answer)


def place(rng: Generator, facts: Facts) -> Question | None:
    """GQA: in which quarter an object lies."""
    if not facts.things:
        return None
    thing = facts.things[int(rng.integers(len(facts.things)))]
    answer = QUARTERS[facts.quarter(thing.box)]
    return Question("place", f"Where is the {thing.name}?", answer)


def counting(rng: Generator, facts: Facts) -> Question:
    count = str(len(facts.things))
    return Question("counting", "How many objects are there?", count)


def reading(rng: Generator, facts: Facts) -> Question | None:
    """TextVQA: a sign, letter by letter."""
    if not facts.sign:
        return None
    return Question("reading", "Spell the sign.", " ".join(facts.sign))


def page(rng: Generator, facts: Facts) -> Question:
    """DocVQA: the number behind a word."""
    name = _one(rng, list(facts.fields))
    return Question("page", f"What number is behind {name}?", facts.fields[name])


def chart(rng: Generator, facts: Facts) -> Question:
    """ChartQA: the height of a bar."""
    name = _one(rng, list(facts.fields))
    return Question("chart", f"How high is bar {name}?", facts.fields[name])


TASKS: dict[str, tuple[Task, ...]] = {
    "scene": (presence, naming, place, counting, reading),
    "page": (page,),
    "chart": (chart,),
}
"""By the picture's kind; what evaluation asks."""

TRAINING: dict[str, tuple[Task, ...]] = {
    "scene": (*[presence] * 3, *[naming] * 2, place, counting, reading),
    "page": (page,) * 4,
    "chart": (chart,) * 4,
}
"""Likewise in training: several questions share one picture's tokens."""


def ask(rng: Generator, facts: Facts, tasks: tuple[Task, ...]) -> list[Question]:
    """Distinct questions, those that the picture has an answer to."""
    asked = [task(rng, facts) for task in tasks]
    return list(dict.fromkeys(question for question in asked if question is not None))


def _one(rng: Generator, of: list[str]) -> str:
    return of[int(rng.integers(len(of)))]
