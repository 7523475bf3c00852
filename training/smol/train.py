"""Trains projector and LLM of `llava-next-smol` on features of its frozen tower.

    python -m training.smol.features crops --count 4000
    python -m training.smol.features scenes --count 800
    python -m training.smol.features scenes --held-out
    python -m training.smol.train

First the projector is fitted to the LLM's own embeddings. Then projector,
`image_newline` and a LoRA delta of the LLM learn from answers: on crops of one
partition with 5 to 20% of their tokens, then on whole scenes with 5 to 100%. Tokens are
dropped uniformly at random, and nothing that drops them knows where the objects are.

Stopped, it goes on from its last checkpoint when called again. `--start` begins with
the committed part instead of the projector's fit.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from benchmarks.provenance import provenance
from training.smol.features import KEPT, Features
from training.smol.learner import Learner
from training.smol.projector import Targets, fit, gather, named_right
from training.smol.questions import TASKS, TRAINING, ask
from training.smol.sequences import Asked, answer_loss, drop_tokens
from training.smol.wheels import FOLDER, LLM, weights_of

Generator = np.random.Generator

TOKENS_AT_ONCE = 2500
"""Of one forward; the activations of more do not fit beside other programs."""
WHOLE_EVERY = 10
"""Of so many steps on scenes, one drops nothing."""
VALIDATION_SHARE = 0.3


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


class Training:
    """All that is learnt, and how far it is."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        torch.manual_seed(args.seed)
        device = torch.device(args.device)
        self.learner = Learner(weights_of(LLM, args.wheels), device)
        self.stages = [
            Stage("crops", args.crop_steps, args.batch, 0.05, 0.2),
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
        targets = Targets.of(self.learner.embedding, self.learner.speaker.tokenizer)
        fitted = fit(known, targets, self.args.projector_steps, seed=self.args.seed)
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
            if stage.done < stage.steps:
                self.learn(number, stage)

    def learn(self, number: int, stage: Stage) -> None:
        features = self.features(stage.kind)
        bar = tqdm(
            range(stage.done, stage.steps),
            initial=stage.done,
            total=stage.steps,
            desc=stage.kind,
        )
        before, begun = stage.seconds, time.monotonic()
        cpu_before, cpu_begun = stage.cpu_seconds, time.process_time()
        saved = begun
        for step in bar:
            rng = np.random.default_rng((self.args.seed, number, step))
            facts = self.step(list(self.draw(stage, features, rng)))
            stage.done += 1
            stage.seconds = before + time.monotonic() - begun
            stage.cpu_seconds = cpu_before + time.process_time() - cpu_begun
            bar.set_postfix({name: f"{value:.2f}" for name, value in facts.items()})
            done = {"stage": stage.kind, "step": stage.done, **facts}
            self.note({**done, "cpu_seconds": round(stage.cpu_seconds)})
            is_late = time.monotonic() - saved > 60 * self.args.every
            if is_late or stage.done == stage.steps:
                self.save()
                self.validate(stage)
                # There may be more by now.
                features = self.features(stage.kind)
                saved = time.monotonic()

    def step(self, batch: Sequence[Asked]) -> dict[str, float]:
        """One update; the loss, and the share of right answers by task."""
        found: dict[str, list[float]] = {}
        total = 0.0
        for part in at_once(batch):
            self.learner.spare_memory(
                sum(asked.num_visual for asked in part) > TOKENS_AT_ONCE // 2
            )
            loss, right = answer_loss(self.learner.speaker, part)
            share = len(part) / len(batch)
            (loss * share).backward()
            total += loss.item() * share
            for task, values in right.items():
                found.setdefault(task, []).extend(values)
        self.learner.update()
        return {"loss": total, **{task: fmean(v) for task, v in found.items()}}

    def draw(self, stage: Stage, features: Features, rng: Generator) -> Iterator[Asked]:
        """A batch of which all pictures keep one share, so that lengths are alike."""
        of_scenes = stage.kind == "scenes"
        whole = self.args.no_dropping or (of_scenes and rng.random() < 1 / WHOLE_EVERY)
        # As many at each order of magnitude.
        share = stage.low * (stage.high / stage.low) ** rng.random()
        chosen = rng.choice(len(features), min(stage.batch, len(features)), False)
        for index in chosen:
            sample = features[int(index)]
            questions = ask(rng, sample.facts, TRAINING[sample.facts.kind])
            keep = drop_tokens(rng, sample, 1.0 if whole else share)
            # A crop has no newline tokens.
            yield Asked(sample, questions, None if whole and of_scenes else keep)

    @torch.no_grad()
    def validate(self, stage: Stage) -> None:
        """A point of the learning curve: held-out scenes, with the averaged weights."""
        folder = self.args.features / "scenes-held-out"
        held_out = Features(folder)
        found: dict[str, list[float]] = {}
        with self.learner.averaged():
            for index in range(min(self.args.validation, len(held_out))):
                rng = np.random.default_rng((7, index))
                sample = held_out[index]
                questions = ask(rng, sample.facts, TASKS[sample.facts.kind])
                keep = drop_tokens(rng, sample, VALIDATION_SHARE)
                batch = [Asked(sample, questions, keep)]
                _, answered = answer_loss(self.learner.speaker, batch)
                for task, right in answered.items():
                    found.setdefault(task, []).extend(right)
        minutes = sum(one.cpu_seconds for one in self.stages) / 60
        point = {"validation": stage.kind, "step": stage.done}
        point |= {task: round(fmean(values), 3) for task, values in found.items()}
        self.note({**point, "cpu_minutes": round(minutes, 1)})
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


def at_once(batch: Sequence[Asked]) -> Iterator[list[Asked]]:
    """Parts of a batch of at most `TOKENS_AT_ONCE`, or of one picture; short first."""
    part: list[Asked] = []
    for asked in sorted(batch, key=lambda asked: asked.num_visual):
        if part and asked.num_visual * (len(part) + 1) > TOKENS_AT_ONCE:
            yield part
            part = []
        part.append(asked)
    yield part


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
