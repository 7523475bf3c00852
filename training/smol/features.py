"""Features of the frozen tower, computed once and kept on disk.

    python -m training.smol.features crops --count 4000
    python -m training.smol.features scenes --count 800

Shards of 20 pictures are made one by one; what is there is not made again.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import CLIPVisionModel

from training.smol.assemble import PINPOINTS, TILE, make_image_processor
from training.smol.pictures import (
    NUM_CLASSES,
    Picture,
    make_chart,
    make_crop,
    make_page,
    make_scene,
)
from training.smol.questions import Facts
from training.smol.tower import CHANNELS, PATCH, clip_weights, read_dino, tower_config
from training.smol.wheels import FOLDER, TOWER, weights_of
from vllm_hired.layouts import Layout
from vllm_hired.layouts.llava_next import anyres_layout
from vllm_hired.tools.inspect.partitions import inner_tower

Generator = np.random.Generator

KEPT = Path("out/smol/features")
SHARD = 20
GRID = TILE // PATCH
CELLS = GRID * GRID
IGNORE = -100
SEEN, UNSEEN = 0.4, 0.1
"""Of a patch: from here on it shows a class, up to here it is background."""


def draw_scene(rng: Generator, held_out: bool) -> Picture:
    """Mostly scenes; a page or a chart now and then."""
    make = rng.choice(np.array([make_scene, make_page, make_chart]), p=[0.8, 0.1, 0.1])
    picture: Picture = make(rng, held_out)
    return picture


DRAWN: dict[str, Callable[[Generator, bool], Picture]] = {
    "crops": make_crop,
    "scenes": draw_scene,
}
SEEDS = {"crops": 1, "scenes": 2}


@dataclass(frozen=True)
class Sample:
    """One picture as training sees it.

    Attributes:
        facts: what it shows.
        features: `[P, N, 384]` float16.
        classes: `[N]` int64 of the first partition; see `patch_classes`.
        whole: whether there are tiles beside the first partition.
    """

    facts: Facts
    features: Tensor
    classes: Tensor
    whole: bool

    @cached_property
    def layout(self) -> Layout:
        if not self.whole:
            return Layout(rows=GRID, cols=GRID)
        facts = self.facts
        return anyres_layout(facts.height, facts.width, PINPOINTS, TILE, PATCH)


@cache
def make_tower(wheels: Path = FOLDER, device: str = "cpu") -> Any:
    """DINOv2 as the assembled checkpoint has it, frozen, float32."""
    tower = CLIPVisionModel(tower_config(TILE)).eval().requires_grad_(False)
    weights = clip_weights(read_dino(weights_of(TOWER, wheels)), TILE)
    missing = inner_tower(tower).load_state_dict(weights, strict=False)
    assert not missing.unexpected_keys
    return tower.to(device)


@torch.inference_mode()
def features_of(tower: Any, pixels: Tensor) -> Tensor:
    """`[P, 3, H, W]` -> `[P, N, 384]`: the layer that the projector reads.

    The other 48 channels are 0.
    """
    hidden = tower(pixels, output_hidden_states=True).hidden_states[-1]
    return hidden[:, 1:, :CHANNELS]


def patch_classes(picture: Picture) -> Tensor:
    """`[N]` int64: what each patch shows of a picture that fills one partition.

    0 is background, `IGNORE` a patch that shows too little of a thing.
    """
    height, width = picture.classes.shape
    pixels = torch.from_numpy(picture.classes)
    rows = torch.arange(TILE) * height // TILE
    cols = torch.arange(TILE) * width // TILE
    patches = pixels[rows][:, cols].view(GRID, PATCH, GRID, PATCH)
    patches = patches.transpose(1, 2).reshape(CELLS, -1).long()
    counts = torch.zeros(CELLS, NUM_CLASSES, dtype=torch.long)
    counts.scatter_add_(1, patches, torch.ones_like(patches))
    most, shown = counts[:, 1:].max(dim=1)
    classes = torch.where(most < SEEN * PATCH**2, IGNORE, shown + 1)
    return torch.where(counts[:, 0] > (1 - UNSEEN) * PATCH**2, 0, classes)


def make_shard(
    kind: str,
    number: int,
    held_out: bool,
    folder: Path,
    size: int = SHARD,
    device: str = "cpu",
) -> None:
    """Pictures `size * number` and on, in three files named by the number."""
    torch.set_num_threads(1)
    seed = SEEDS[kind] + 100 * held_out
    tower, images = make_tower(device=device), make_image_processor()
    features, lines, classes = [], [], []
    for index in range(size * number, size * (number + 1)):
        rng = np.random.default_rng((seed, index))
        picture = DRAWN[kind](rng, held_out)
        pixels = images([picture.image], return_tensors="pt")["pixel_values"][0]
        # The thumbnail of a crop is the crop.
        pixels = (pixels[:1] if kind == "crops" else pixels).to(device)
        shown = features_of(tower, pixels)
        features.append(shown.half().cpu().numpy())
        lines.append({"partitions": len(shown), **Facts.of(picture).as_json()})
        classes.append(patch_classes(picture).numpy().astype(np.int16))
    path = folder / f"{number:04}"
    np.save(path.with_suffix(".features.npy"), np.concatenate(features))
    np.save(path.with_suffix(".classes.npy"), np.stack(classes))
    text = "\n".join(json.dumps(line) for line in lines)
    # Last, since it says that the shard is whole.
    path.with_suffix(".jsonl").write_text(text + "\n")


class Features:
    """All samples of a folder of shards, read from disk when asked for."""

    def __init__(self, folder: Path) -> None:
        self.whole = folder.name.startswith("scenes")
        self.samples: list[tuple[Facts, Any, Any, int, int]] = []
        for path in sorted(folder.glob("*.jsonl")):
            features = np.load(path.with_suffix(".features.npy"), mmap_mode="r")
            classes = np.load(path.with_suffix(".classes.npy"))
            first = 0
            for row, line in enumerate(path.read_text().splitlines()):
                saved = json.loads(line)
                end = first + saved.pop("partitions")
                facts = Facts.from_json(saved)
                self.samples.append((facts, features, classes[row], first, end))
                first = end

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Sample:
        facts, features, classes, first, end = self.samples[index]
        return Sample(
            facts=facts,
            features=torch.from_numpy(np.array(features[first:end])),
            classes=torch.from_numpy(classes).long(),
            whole=self.whole,
        )


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=DRAWN)
    parser.add_argument("--count", type=int, default=SHARD, help="of pictures")
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=KEPT)
    args = parser.parse_args(argv)
    folder = args.out / f"{args.kind}{'-held-out' if args.held_out else ''}"
    folder.mkdir(parents=True, exist_ok=True)
    numbers = [
        number
        for number in range(-(-args.count // SHARD))
        if not (folder / f"{number:04}.jsonl").exists()
    ]
    with ProcessPoolExecutor(args.workers, get_context("spawn")) as pool:
        jobs = [
            pool.submit(
                make_shard,
                *(args.kind, number, args.held_out, folder),
                device=args.device,
            )
            for number in numbers
        ]
        for job in tqdm(jobs, desc=folder.name, unit="shard"):
            job.result()


if __name__ == "__main__":
    main()
