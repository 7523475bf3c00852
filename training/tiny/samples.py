"""Training scenes without end, as the model sees them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset

from random_checkpoints.llava import make_processor, make_tokenizer
from training.tiny.data import Question, Scene, Task, make_crowd, make_scene
from training.tiny.labels import Labels, patch_labels
from training.tiny.model import PATCH, TILE, TINY
from vllm_hired.layouts import Layout
from vllm_hired.layouts.llava_next import anyres_layout


@dataclass(frozen=True)
class Sample:
    """One scene as the model sees it: tiles are `[P, 3, H, W]`."""

    tiles: Tensor
    labels: Labels
    layout: Layout
    questions: list[Question]


class Samples(IterableDataset[list[Sample]]):
    """Batches of `size` training scenes from number `first` on.

    A scene follows from its number. Crowds become rarer until `last_crowd`; from
    `first_hard` on all scenes are hard.
    """

    def __init__(
        self,
        seed: int,
        first: int,
        size: int,
        last_crowd: int,
        first_hard: int,
        tasks: Sequence[Task],
    ) -> None:
        self.seed, self.first, self.size, self.tasks = seed, first, size, tasks
        self.last_crowd, self.first_hard = last_crowd, first_hard
        self.processor = make_processor(TINY, make_tokenizer()).image_processor

    def __iter__(self) -> Iterator[list[Sample]]:
        number = self.first
        while True:
            yield [self.sample(number + i) for i in range(self.size)]
            number += self.size

    def sample(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, number))
        scene = self.scene(rng, number)
        pixels = self.processor([scene.image], return_tensors="pt")["pixel_values"][0]
        width, height = scene.image.size
        return Sample(
            tiles=pixels.to(torch.bfloat16),
            labels=patch_labels(scene, TINY.pinpoints, TILE, PATCH),
            layout=anyres_layout(height, width, TINY.pinpoints, TILE, PATCH),
            questions=[task(rng, scene) for task in self.tasks],
        )

    def scene(self, rng: np.random.Generator, number: int) -> Scene:
        crowded = rng.random() * self.last_crowd > number
        hard = number >= self.first_hard
        if crowded:
            return make_crowd(rng, hard)
        return make_scene(rng, False, hard)
