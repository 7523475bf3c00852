"""Trains the small LLaVA-NeXT: first its vision tower, then projector and LLM.

The tower learns two things together: [CLS] says which digits a partition shows (as
CLIP's [CLS] gathers what is in a picture), and each patch says which digit lies on it
and whether it is the middle of a card. All that is the same anywhere in the picture, so
then each patch learns to say where it lies, too, as CLIP's do: without that, order was
lost with the tokens between.
Then projector and LLM answer questions on scenes of all shapes. In most of them
visual tokens are dropped at random, in half of all scenes those on cards less often
than others, never by HiRED: a small model trained at one length does not bear shorter
sequences, as a pre-trained 7B does. `--even-dropping` is the control in which cards
count for nothing.

    python -m training.tiny.train --out out/llava-next-tiny

Stopped, it goes on from its last checkpoint when called again.
"""

import argparse
import json
import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from tqdm import tqdm
from transformers import AutoModelForImageTextToText

from benchmarks.provenance import provenance
from random_checkpoints.llava import (
    make_config,
    make_tokenizer,
    save_weights,
    write_checkpoint,
)
from training.tiny.data import Task, corner, counting, presence, transcription
from training.tiny.losses import TowerHeads, answer_loss, drop_tokens, tower_features
from training.tiny.model import TINY
from training.tiny.samples import Sample, Samples
from vllm_hired.tools.inspect.partitions import inner_tower

QUESTIONS = (transcription, counting, *[corner] * 2, *[presence] * 2)
"""Of each scene: questions are short beside the picture that they share."""


@dataclass
class Stage:
    """A part of the model that learns for a while; the rest stands still.

    Attributes:
        matrices: modules of which the weights of linear layers learn by Muon.
        others: parameters that learn by AdamW, as all else of `matrices` does.
        batch: scenes a step.
        crowded: part of the steps after which no scene is crowded any more.
        easy: part of the steps before scenes are hard.
        places: whether patches say where they lie.
        tasks: of the LLM's questions; none in a stage of the tower.
        done: steps so far.
        seconds: that they took.
    """

    name: str
    matrices: list[nn.Module]
    others: Iterable[nn.Parameter]
    steps: int
    batch: int
    peak: float
    crowded: float = 0
    easy: float = 0
    places: bool = False
    tasks: Sequence[Task] = ()
    done: int = 0
    seconds: float = 0
    optimizers: list[torch.optim.Optimizer] = field(init=False)

    def __post_init__(self) -> None:
        inner = [part for matrix in self.matrices for part in matrix.modules()]
        by_muon = [part.weight for part in inner if isinstance(part, nn.Linear)]
        names = {id(weight) for weight in by_muon}
        every = [p for part in self.matrices for p in part.parameters()]
        rest = [p for p in [*every, *self.others] if id(p) not in names]
        decay = 0.05
        self.optimizers = [
            torch.optim.Muon(
                by_muon, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, weight_decay=decay, betas=(0.9, 0.98)),
        ]

    def update(self, loss: torch.Tensor) -> None:
        groups = [group for o in self.optimizers for group in o.param_groups]
        for group in groups:
            group["lr"] = self.rate()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_([p for group in groups for p in group["params"]], 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
        self.done += 1

    def rate(self) -> float:
        """Warm-up over a twentieth, then a cosine to a hundredth."""
        warm = max(1, self.steps // 20)
        if self.done < warm:
            return self.peak * (self.done + 1) / warm
        part = (self.done - warm) / max(1, self.steps - warm)
        return self.peak * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * part)))


class Training:
    """The model, its three stages and where they stand."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.manual_seed(args.seed)
        self.args, self.device = args, torch.device(args.device)
        self.tokenizer = make_tokenizer()
        self.model: Any = AutoModelForImageTextToText.from_config(
            make_config(TINY, self.tokenizer),
            # Of 65 tokens, backward is much faster than torch's fused attention on CPU.
            attn_implementation={"vision_config": "eager"},
        ).to(self.device)
        self.heads = TowerHeads().to(self.device)
        inner = self.model.model
        tower = inner_tower(inner.vision_tower)
        of_tower = [
            *tower.embeddings.parameters(),
            *tower.pre_layrnorm.parameters(),
            *self.heads.parameters(),
        ]
        self.stages = [
            Stage(
                name="tower",
                matrices=[tower.encoder],
                others=of_tower,
                steps=args.tower_steps,
                batch=args.tower_batch,
                peak=4e-3,
                crowded=0.9,
                easy=0.56,
            ),
            Stage(
                name="places",
                matrices=[tower.encoder],
                others=of_tower,
                steps=args.places_steps,
                batch=args.tower_batch,
                peak=4e-3,
                places=True,
            ),
            Stage(
                name="language",
                matrices=[inner.language_model, inner.multi_modal_projector],
                others=[*self.model.lm_head.parameters(), inner.image_newline],
                steps=args.language_steps,
                batch=args.language_batch,
                peak=3e-3,
                tasks=QUESTIONS,
            ),
        ]
        self.state = args.out / "training.pt"
        if self.state.exists():
            self.load()

    def load(self) -> None:
        saved = torch.load(self.state, map_location=self.device)
        self.model.load_state_dict(saved["model"])
        self.heads.load_state_dict(saved["heads"])
        for stage in self.stages:
            kept = saved["stages"].get(stage.name)
            if kept is None:
                continue
            stage.done, stage.seconds = kept["done"], kept["seconds"]
            for optimizer, state in zip(
                stage.optimizers, kept["optimizers"], strict=True
            ):
                optimizer.load_state_dict(state)

    def save(self) -> None:
        self.args.out.mkdir(parents=True, exist_ok=True)
        new = self.state.with_suffix(".new")
        stages = {
            stage.name: {
                "done": stage.done,
                "seconds": stage.seconds,
                "optimizers": [o.state_dict() for o in stage.optimizers],
            }
            for stage in self.stages
        }
        torch.save(
            {
                "model": self.model.state_dict(),
                "heads": self.heads.state_dict(),
                "stages": stages,
            },
            new,
        )
        new.replace(self.state)

    def run(self) -> None:
        for number, stage in enumerate(self.stages):
            if stage.done < stage.steps:
                self.learn(number, stage)
        write_checkpoint(self.args.out, TINY, seed=None)
        save_weights(self.args.out, self.model, torch.bfloat16)
        facts_of_all = {
            stage.name: {
                "steps": stage.done,
                "scenes": stage.done * stage.batch,
                "minutes": round(stage.seconds / 60, 1),
            }
            for stage in self.stages
        }
        text = json.dumps({**provenance(), "stages": facts_of_all}, indent=1)
        (self.args.out / "training.json").write_text(text + "\n")

    def learn(self, number: int, stage: Stage) -> None:
        samples = Samples(
            self.args.seed + number,
            stage.done * stage.batch,
            stage.batch,
            int(stage.crowded * stage.steps * stage.batch),
            int(stage.easy * stage.steps * stage.batch),
            stage.tasks,
        )
        # A worker forked beside an engine's threads waits for them for ever.
        batches = DataLoader(
            samples, batch_size=None, num_workers=1, multiprocessing_context="spawn"
        )
        left = range(stage.done, stage.steps)
        bar = tqdm(left, initial=stage.done, total=stage.steps, desc=stage.name)
        begun = time.monotonic() - stage.seconds
        for step, batch in zip(bar, batches, strict=False):
            rng = np.random.default_rng((self.args.seed, number, step))
            with torch.autocast(
                self.device.type,
                torch.bfloat16,
                enabled=self.args.products == "bfloat16",
            ):
                loss, facts = self.loss(stage, batch, rng)
            stage.update(loss)
            stage.seconds = time.monotonic() - begun
            if stage.done % self.args.every == 0 or stage.done == stage.steps:
                facts = {"loss": loss.item(), **facts}
                bar.set_postfix({k: f"{v:.3f}" for k, v in facts.items()})
                self.save()
                self.note({stage.name: stage.done, **facts})

    def note(self, facts: dict[str, float]) -> None:
        with (self.args.out / "training.jsonl").open("a") as lines:
            lines.write(json.dumps(facts) + "\n")

    def loss(
        self, stage: Stage, batch: Sequence[Sample], rng: np.random.Generator
    ) -> tuple[torch.Tensor, dict[str, float]]:
        if stage.tasks:
            even = self.args.even_dropping
            keeps = [drop_tokens(sample, rng, even) for sample in batch]
            return answer_loss(self.model, self.tokenizer, batch, keeps)
        tiles = torch.cat([sample.tiles for sample in batch]).to(self.device)
        digits = torch.cat([sample.labels.digits for sample in batch])
        middles = torch.cat([sample.labels.middles for sample in batch])
        hidden = tower_features(self.model, tiles)
        loss, facts = self.heads(
            hidden, digits.to(self.device), middles.to(self.device)
        )
        if stage.places:
            of_places, where = self.heads.places(hidden)
            loss, facts = loss + 0.5 * of_places, {**facts, **where}
        return loss, facts


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/llava-next-tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=6_500)
    parser.add_argument("--tower-batch", type=int, default=12, help="scenes a step")
    parser.add_argument("--places-steps", type=int, default=3_000)
    parser.add_argument("--language-steps", type=int, default=6_000)
    parser.add_argument("--language-batch", type=int, default=8, help="scenes a step")
    parser.add_argument(
        "--even-dropping",
        action="store_true",
        help="a control: tokens on cards are dropped as often as others",
    )
    parser.add_argument("--every", type=int, default=200, help="steps between saves")
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--products",
        choices=["bfloat16", "float32"],
        default="bfloat16",
        help="type of matrix products (default: bfloat16, which is slow on a processor "
        "without AVX-512)",
    )
    Training(parser.parse_args(argv)).run()


if __name__ == "__main__":
    main()
