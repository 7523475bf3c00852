"""The projector's first fit: patches onto the LLM's own embeddings of what they show.

It needs no LLM, only its embeddings, and takes minutes. A patch on an object is to
become the embedding of the object's name, a patch on a letter that of the letter, both
with a little of " top", " bottom", " left" and " right" for where it lies; a patch on
nothing becomes the mean of all embeddings. From there the LLM learns at once, from a
random projector it had learnt nothing after as many pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from tqdm import trange

from training.smol.features import CELLS, GRID, Sample
from training.smol.objects import LETTERS, NAMES
from training.smol.tower import CHANNELS

BACKGROUND_CELLS = 40
"""Of a picture; most others look alike."""
PLACE = 0.3
"""How much of the place's embedding is added to the name's."""
CPU = torch.device("cpu")
SHARPNESS = 20.0
"""By which a cosine is multiplied where classes compete."""


@dataclass(frozen=True)
class Patches:
    """What patches show: `[n, 384]` float32, `[n]` classes, `[n]` cells."""

    features: Tensor
    classes: Tensor
    cells: Tensor

    def __len__(self) -> int:
        return len(self.classes)

    def to(self, device: torch.device) -> "Patches":
        return Patches(*(value.to(device) for value in vars(self).values()))


def gather(samples: Sequence[Sample], seed: int = 0) -> Patches:
    """All patches of the first partitions that show something, some others."""
    generator = torch.Generator().manual_seed(seed)
    features, classes, cells = [], [], []
    for sample in samples:
        if sample.facts.kind != "scene":
            continue
        order = torch.randperm(CELLS, generator=generator)
        empty = order[sample.classes[order] == 0][:BACKGROUND_CELLS]
        showing = (sample.classes > 0).nonzero().squeeze(1)
        chosen = torch.cat((showing, empty))
        features.append(sample.features[0, chosen])
        classes.append(sample.classes[chosen])
        cells.append(chosen)
    return Patches(torch.cat(features), torch.cat(classes), torch.cat(cells))


@dataclass(frozen=True)
class Targets:
    """What the LLM's embeddings say.

    Attributes:
        middle: `[T]`, the mean of all tokens.
        classes: `[NUM_CLASSES, T]`, less the mean; 0 for background.
        edges: `[4, T]` of top, bottom, left and right, less their mean.
    """

    middle: Tensor
    classes: Tensor
    edges: Tensor

    @classmethod
    def of(cls, embedding: Tensor, tokenizer: Any) -> "Targets":
        """From the LLM's `[V, T]` table, float32."""

        def look_up(words: Sequence[str]) -> Tensor:
            ids = [tokenizer(f" {word}").input_ids for word in words]
            assert all(len(own) == 1 for own in ids)
            return embedding[torch.tensor(ids).squeeze(1)]

        middle = embedding.mean(dim=0)
        classes = look_up([*NAMES, *LETTERS]) - middle
        edges = look_up(["top", "bottom", "left", "right"])
        nothing = torch.zeros_like(middle)[None]
        return cls(middle, torch.cat((nothing, classes)), edges - edges.mean(dim=0))

    def to(self, device: torch.device) -> "Targets":
        return Targets(*(value.to(device) for value in vars(self).values()))

    def place(self, cells: Tensor) -> Tensor:
        """`[n, T]` of where `[n]` cells lie."""
        row = (cells // GRID + 0.5) / GRID
        col = (cells % GRID + 0.5) / GRID
        return torch.stack((1 - row, row, 1 - col, col), dim=1) @ self.edges

    def embeddings(self, classes: Tensor, cells: Tensor) -> Tensor:
        """`[n, T]`: what `[n]` patches are to become."""
        shown = self.classes[classes]
        placed = shown + PLACE * self.place(cells)
        return self.middle + torch.where(classes[:, None] > 0, placed, 0 * shown)


class Projector(nn.Module):
    """LLaVA's: two linear layers with a GELU between; reads 384 of 432 channels."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(CHANNELS, wide)
        self.linear_2 = nn.Linear(wide, wide)

    def forward(self, features: Tensor) -> Tensor:
        """`[..., 384]` -> `[..., wide]`."""
        return self.linear_2(functional.gelu(self.linear_1(features)))


def fit(
    patches: Patches,
    targets: Targets,
    steps: int,
    batch: int = 2048,
    seed: int = 0,
    device: torch.device = CPU,
) -> Projector:
    """A projector of `targets` from `patches`, by gradient descent; it is on the CPU
    in the end."""
    torch.manual_seed(seed)
    patches, targets = patches.to(device), targets.to(device)
    seen = patches.features[:: max(1, len(patches) // 20_000)].float()
    mean, std = seen.mean(dim=0), seen.std(dim=0) + 1e-3
    wide = len(targets.middle)
    projector = Projector(wide).to(device)
    nn.init.normal_(projector.linear_2.weight, std=0.3 * float(targets.classes.std()))
    learning = torch.optim.AdamW(projector.parameters(), lr=2e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(learning, 2e-3, total_steps=steps)
    rng = np.random.default_rng(seed)
    scale = targets.classes[1:].square().mean()
    bar = trange(steps, desc="projector")
    for _ in bar:
        chosen = torch.from_numpy(rng.integers(0, len(patches), batch)).to(device)
        classes, cells = patches.classes[chosen], patches.cells[chosen]
        said = projector((patches.features[chosen].float() - mean) / std)
        wanted = targets.embeddings(classes, cells)
        logits = class_logits(said, targets)
        shown = classes > 0
        competing = functional.cross_entropy(logits[shown], classes[shown] - 1)
        distance = (said - wanted).square().mean() / scale
        loss = distance + 0.3 * competing
        learning.zero_grad()
        loss.backward()
        learning.step()
        schedule.step()
        right = (logits[shown].argmax(dim=1) == classes[shown] - 1).float().mean()
        bar.set_postfix(loss=f"{loss.item():.3f}", right=f"{right.item():.3f}")
    with torch.no_grad():
        first: Any = projector.linear_1
        first.weight /= std
        first.bias -= first.weight @ mean
    return projector.cpu()


def class_logits(said: Tensor, targets: Targets) -> Tensor:
    """`[n, T]` -> `[n, objects and letters]`: cosines, sharpened."""
    rows = functional.normalize(said - targets.middle, dim=-1)
    return SHARPNESS * rows @ functional.normalize(targets.classes[1:], dim=-1).T


@torch.no_grad()
def named_right(projector: Projector, patches: Patches, targets: Targets) -> float:
    """Of the patches that show something, how many are nearest to its embedding."""
    shown = patches.classes > 0
    logits = class_logits(projector(patches.features[shown].float()), targets)
    right = logits.argmax(dim=1) == patches.classes[shown] - 1
    return float(right.float().mean())
