"""What training learns from, step by step: pictures, tokens dropped at random."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Dataset
from typing_extensions import override

from training.smol.features import Features
from training.smol.questions import TRAINING, ask
from training.smol.sequences import Asked, Batch, Writer, drop_tokens

Generator = np.random.Generator

WHOLE_EVERY = 10
"""Of so many steps on scenes, one drops nothing."""


@dataclass
class Stage:
    """A part of the curriculum.

    Attributes:
        kind: of pictures, as `features` names them.
        steps: in all.
        batch: pictures a step.
        low: share of the tokens that stays, at least.
        high: likewise, at most.
        done: steps so far.
        seconds: that they took, validation and waiting for other programs included.
        cpu_seconds: of all threads, in these steps.
    """

    kind: str
    steps: int
    batch: int
    low: float
    high: float
    done: int = 0
    seconds: float = 0
    cpu_seconds: float = 0


class Steps(Dataset[list[Batch]]):
    """What each step of a stage learns from; it follows from the step's number.

    Attributes:
        stage: of the curriculum.
        seed: of the drawing.
        features: of the stage's pictures.
        writer: of the sequences.
        tokens_at_once: most visual tokens of one batch.
        no_dropping: whether all tokens stay.
    """

    def __init__(
        self,
        stage: Stage,
        seed: tuple[int, int],
        features: Features,
        writer: Writer,
        tokens_at_once: int,
        no_dropping: bool,
    ) -> None:
        self.stage, self.seed, self.features = stage, seed, features
        self.writer, self.tokens_at_once = writer, tokens_at_once
        self.no_dropping = no_dropping

    @override
    def __getitem__(self, step: int) -> list[Batch]:
        """Parts of one update."""
        rng = np.random.default_rng((*self.seed, step))
        parts = at_once(list(self.draw(rng)), self.tokens_at_once)
        return [self.writer.batch(part) for part in parts]

    def draw(self, rng: Generator) -> Iterator[Asked]:
        """Pictures that keep one share, so that lengths are alike."""
        stage, features = self.stage, self.features
        of_scenes = stage.kind == "scenes"
        whole = self.no_dropping or (of_scenes and rng.random() < 1 / WHOLE_EVERY)
        # As many at each order of magnitude.
        share = stage.low * (stage.high / stage.low) ** rng.random()
        chosen = rng.choice(len(features), min(stage.batch, len(features)), False)
        for index in chosen:
            sample = features[int(index)]
            questions = ask(rng, sample.facts, TRAINING[sample.facts.kind])
            keep = drop_tokens(rng, sample, 1.0 if whole else share)
            # A crop has no newline tokens.
            yield Asked(sample, questions, None if whole and of_scenes else keep)


def at_once(batch: Sequence[Asked], tokens: int) -> Iterator[list[Asked]]:
    """Parts of a batch of at most so many visual tokens, or of one picture; short
    first."""
    part: list[Asked] = []
    for asked in sorted(batch, key=lambda asked: asked.num_visual):
        if part and asked.num_visual * (len(part) + 1) > tokens:
            yield part
            part = []
        part.append(asked)
    if part:
        yield part
