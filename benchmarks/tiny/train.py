"""Trains the small LLaVA-NeXT: first its vision tower, then projector and LLM.

The tower learns two things together: [CLS] says which digits a partition shows (as
CLIP's [CLS] gathers what is in a picture), and each patch says which digit lies on it.
Then projector and LLM answer questions on scenes of all shapes. In half of them
visual tokens are dropped at random, never by HiRED: a small model trained at one length
does not bear shorter sequences, as a pre-trained 7B does.

    python -m benchmarks.tiny.train --out out/llava-next-tiny

Stopped, it goes on from its last checkpoint when called again.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm
from transformers import AutoModelForImageTextToText

from benchmarks.checkpoints import (
    make_config,
    make_processor,
    make_tokenizer,
    save_weights,
    write_checkpoint,
)
from benchmarks.tiny.data import TASKS, make_scene
from benchmarks.tiny.labels import patch_labels
from benchmarks.tiny.losses import Sample, TowerHeads, answer_loss, tower_features
from benchmarks.tiny.model import PATCH, TILE, TINY
from vllm_hired.geometry import image_geometry
from vllm_hired.inspect.tower import inner_tower


class Scenes(IterableDataset[list[Sample]]):
    """Batches of training scenes from `first` on; each follows from its number."""

    def __init__(self, seed: int, first: int, size: int) -> None:
        self.seed, self.first, self.size = seed, first, size
        self.processor = make_processor(TINY, make_tokenizer()).image_processor

    def __iter__(self) -> Iterator[list[Sample]]:
        torch.set_num_threads(1)
        number = self.first
        while True:
            yield [self.sample(number + i) for i in range(self.size)]
            number += self.size

    def sample(self, number: int) -> Sample:
        rng = np.random.default_rng((self.seed, number))
        scene = make_scene(rng, held_out=False)
        pixels = self.processor([scene.image], return_tensors="pt")["pixel_values"][0]
        width, height = scene.image.size
        return Sample(
            tiles=pixels.to(torch.bfloat16),
            labels=patch_labels(scene, TINY.pinpoints, TILE, PATCH),
            geometry=image_geometry(height, width, TINY.pinpoints, TILE, PATCH),
            questions=[task(rng, scene) for task in TASKS],
        )


def rate(step: int, steps: int, peak: float) -> float:
    """Warm-up over a twentieth, then a cosine to a hundredth."""
    warm = max(1, steps // 20)
    if step < warm:
        return peak * (step + 1) / warm
    part = (step - warm) / max(1, steps - warm)
    return peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(args.seed)
    tokenizer = make_tokenizer()
    model: Any = AutoModelForImageTextToText.from_config(make_config(TINY, tokenizer))
    heads = TowerHeads()
    tower = [*inner_tower(model.model.vision_tower).parameters(), *heads.parameters()]
    language = [
        *model.model.language_model.parameters(),
        *model.model.multi_modal_projector.parameters(),
        *model.lm_head.parameters(),
        model.model.image_newline,
    ]
    stages = {
        "tower": (tower, args.tower_steps, args.tower_batch, 1e-3),
        "language": (language, args.language_steps, args.language_batch, 1e-3),
    }
    state = args.out / "training.pt"
    done = {"tower": 0, "language": 0}
    optimizers = {
        name: torch.optim.AdamW(parameters, weight_decay=0.05, betas=(0.9, 0.98))
        for name, (parameters, *_) in stages.items()
    }
    if state.exists():
        saved = torch.load(state)
        model.load_state_dict(saved["model"])
        heads.load_state_dict(saved["heads"])
        for name, optimizer in optimizers.items():
            optimizer.load_state_dict(saved["optimizers"][name])
        done = saved["done"]

    def save() -> None:
        args.out.mkdir(parents=True, exist_ok=True)
        torch.save(
            {
                "model": model.state_dict(),
                "heads": heads.state_dict(),
                "optimizers": {n: o.state_dict() for n, o in optimizers.items()},
                "done": done,
            },
            state.with_suffix(".new"),
        )
        state.with_suffix(".new").replace(state)

    log = args.out / "training.jsonl"
    for number, (name, (parameters, steps, size, peak)) in enumerate(stages.items()):
        scenes = Scenes(args.seed + number, done[name] * size, size)
        loader = DataLoader(scenes, batch_size=None, num_workers=args.workers)
        bar = tqdm(range(done[name], steps), initial=done[name], total=steps, desc=name)
        for step, samples in zip(bar, loader, strict=False):
            rng = np.random.default_rng((args.seed, number, step))
            for group in optimizers[name].param_groups:
                group["lr"] = rate(step, steps, peak)
            facts: dict[str, float] = {}
            with torch.autocast("cpu", torch.bfloat16):
                if name == "tower":
                    tiles = torch.cat([s.tiles for s in samples])
                    labels = torch.cat([s.labels for s in samples])
                    loss, facts = heads(tower_features(model, tiles), labels)
                else:
                    loss = answer_loss(model, tokenizer, samples, rng)
            optimizers[name].zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizers[name].step()
            done[name] = step + 1
            if done[name] % args.every == 0 or done[name] == steps:
                facts = {"loss": loss.item(), **facts}
                bar.set_postfix({k: f"{v:.3f}" for k, v in facts.items()})
                save()
                with log.open("a") as lines:
                    lines.write(json.dumps({name: done[name], **facts}) + "\n")
    write_checkpoint(args.out, TINY, seed=None)
    save_weights(args.out, model, torch.bfloat16)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/llava-next-tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=12_000)
    parser.add_argument("--tower-batch", type=int, default=24, help="scenes a step")
    parser.add_argument("--language-steps", type=int, default=12_000)
    parser.add_argument("--language-batch", type=int, default=16, help="scenes a step")
    parser.add_argument("--every", type=int, default=200, help="steps between saves")
    parser.add_argument("--workers", type=int, default=1)
    train(parser.parse_args(argv))


if __name__ == "__main__":
    main()
