"""What the small model learns from: the tower's two objectives, and the answers."""

from collections.abc import Sequence
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.tiny.labels import BACKGROUND, IGNORE
from benchmarks.tiny.model import TINY, prompt_of, visual_rows
from benchmarks.tiny.samples import Sample
from vllm_hired.geometry import index_tables
from vllm_hired.inspect.tower import inner_tower

Generator = np.random.Generator


class TowerHeads(nn.Module):
    """What the tower is trained through, and thrown away with."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(TINY.vision_hidden)
        self.present = nn.Linear(TINY.vision_hidden, 10)
        self.digit = nn.Linear(TINY.vision_hidden, BACKGROUND + 1)
        self.middle = nn.Linear(TINY.vision_hidden, 1)

    def forward(
        self, hidden: Tensor, digits: Tensor, middles: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss and accuracies; `[B, 1 + N, hidden]` and `[B, N]` of `Labels`."""
        hidden = self.norm(hidden.float())
        there = torch.stack([(digits == d).any(dim=1) for d in range(10)], dim=1)
        present = self.present(hidden[:, 0])
        whole = functional.binary_cross_entropy_with_logits(present, there.float())

        # Nearly all patches are background.
        weights = torch.where(digits == BACKGROUND, 0.1, 1.0)
        weights = weights.masked_fill(digits == IGNORE, 0).masked_fill(middles, 1)
        digit = self.digit(hidden[:, 1:])
        middle = self.middle(hidden[:, 1:]).squeeze(-1)
        dense = functional.cross_entropy(
            digit.flatten(0, 1),
            digits.flatten(),
            reduction="none",
            ignore_index=IGNORE,
        ).view_as(weights) + functional.binary_cross_entropy_with_logits(
            middle, middles.float(), reduction="none"
        )
        on_card = (digits >= 0) & (digits < BACKGROUND)
        facts = {
            "patch": (digit.argmax(dim=-1) == digits)[on_card].float().mean().item(),
            "middle": (middle > 0)[middles].float().mean().item(),
            "cls": ((present > 0) == there).all(dim=1).float().mean().item(),
        }
        return (dense * weights).sum() / weights.sum() + 2 * whole, facts


def tower_features(model: Any, tiles: Tensor) -> Tensor:
    """`[B, 1 + N, hidden]` of the feature layer, the last but one."""
    tower = inner_tower(model.model.vision_tower)
    hidden = tower.pre_layrnorm(tower.embeddings(tiles))
    for layer in tower.encoder.layers[:-1]:
        hidden = layer(hidden, None)
        hidden = hidden[0] if isinstance(hidden, tuple) else hidden
    return hidden


def drop_evenly(sample: Sample, rng: Generator) -> Tensor | None:
    """In half of the scenes, all patches stay with one chance, drawn for the scene.

    Returns:
        `[N + V_sub]` bool over the sequence, or None where nothing is dropped.
    """
    if rng.random() >= 0.5:
        return None
    chance = rng.uniform(0.05, 1.0)
    return torch.from_numpy(rng.random(sample.geometry.num_selectable) < chance)


def drop_unevenly(sample: Sample, rng: Generator) -> Tensor | None:
    """In three quarters of the scenes; in half of those, patches on cards stay with a
    higher chance of their own. So sequences differ in what they are full of, not in
    length alone, as they do after any selection by content. Returns as `drop_evenly`.
    """
    if rng.random() >= 0.75:
        return None
    chance = rng.uniform(0.05, 1.0)
    of_cards = rng.uniform(chance, 1.0) if rng.random() < 0.5 else chance
    tables = index_tables(sample.geometry, torch.device("cpu"))
    on_card = (sample.labels.digits.flatten() != BACKGROUND)[tables.sequence]
    chances = torch.where(on_card, of_cards, chance)
    return torch.from_numpy(rng.random(len(chances))) < chances


def answer_loss(
    model: Any,
    tokenizer: Any,
    samples: Sequence[Sample],
    keeps: Sequence[Tensor | None],
) -> tuple[Tensor, dict[str, float]]:
    """Cross entropy of the answers' tokens, and the share that is right by task.

    All questions of a scene are in one sequence: each attends to the picture and to
    itself, and stands right behind the picture. `keeps` says what stays of each
    picture, as `visual_rows` takes it.
    """
    device = model.device
    with torch.no_grad():
        tiles = torch.cat([sample.tiles for sample in samples]).to(device)
        features = tower_features(model, tiles)[:, 1:]
    projected = model.model.multi_modal_projector(features)
    counts = [len(sample.tiles) for sample in samples]
    embed = model.get_input_embeddings()
    rows, positions, turns, targets = [], [], [], []
    tasks: list[str] = []
    pictures = zip(samples, projected.split(counts), keeps, strict=True)
    for sample, own, keep in pictures:
        visual = visual_rows(
            own.flatten(0, 1), sample.geometry, model.model.image_newline, keep
        )
        before = torch.tensor(tokenizer(prompt_of("")[0]).input_ids, device=device)
        prefix = torch.cat((embed(before), visual.to(embed.weight.dtype)))
        row, position = [prefix], [*range(len(prefix))]
        turn, target = [0] * len(prefix), [IGNORE] * len(prefix)
        for number, question in enumerate(sample.questions, start=1):
            asked = tokenizer(prompt_of(question.text)[1]).input_ids
            said = tokenizer(f" {question.answer}").input_ids
            said = [*said, tokenizer.eos_token_id]
            tasks.extend([question.task] * len(said))
            ids = [*asked, *said]
            row.append(embed(torch.tensor(ids, device=device)))
            position.extend(range(len(prefix), len(prefix) + len(ids)))
            turn.extend([number] * len(ids))
            target.extend([IGNORE] * len(asked) + said)
        rows.append(torch.cat(row))
        positions.append(torch.tensor(position))
        turns.append(torch.tensor(turn))
        targets.append(torch.tensor(target))
    pad = partial(nn.utils.rnn.pad_sequence, batch_first=True)
    of_turn = pad(turns, padding_value=-1)
    causal = torch.ones(of_turn.shape[1], of_turn.shape[1], dtype=torch.bool).tril()
    same = of_turn[:, :, None] == of_turn[:, None, :]
    seen = causal & (same | (of_turn == 0)[:, None, :])
    hidden = model.model.language_model(
        inputs_embeds=pad(rows),
        attention_mask=seen[:, None].to(device),
        position_ids=pad(positions).to(device),
        use_cache=False,
    ).last_hidden_state
    following = pad(targets, padding_value=IGNORE)[:, 1:].to(device)
    chosen = following != IGNORE
    answers = following[chosen]
    logits = model.lm_head(hidden[:, :-1][chosen]).float()
    right = (logits.argmax(dim=-1) == answers).tolist()
    facts = {
        task: fmean(r for r, of in zip(right, tasks, strict=True) if of == task)
        for task in dict.fromkeys(tasks)
    }
    return functional.cross_entropy(logits, answers), facts
