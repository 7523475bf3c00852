"""Sixteen requests at a time in a KV cache too small for them, hour after hour.

Images of many shapes at many budgets, none to two a request, come again and again in
new order; the scheduler preempts what it cannot hold. Where stock vLLM does so, without
budgets, every answer must be, token for token, the one that the same request got alone.
Beside it the memory of each process.

    python -m benchmarks.soak --requests 64 --rounds 20
"""

import argparse
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import psutil
import requests
from tqdm import tqdm

from benchmarks.harness import now, write_results
from benchmarks.hostile_images import noise
from benchmarks.server import (
    CHAT,
    RunningServer,
    as_url,
    campaign_model,
    campaign_parser,
    campaign_server,
    chat_body,
)
from vllm_hired.layouts import image_layout
from vllm_hired.tools.checkpoint import read_plain_config
from vllm_hired.tools.tables import Row

AT_ONCE = 16
SIZES = ((112, 112), (224, 224), (300, 200), (100, 400), (500, 120), (60, 90))
"""Of images, (width, height) in pixels."""

TEXT_TOKENS = 200
"""More than a question and its answer have."""

BLOCK_SIZE = 32
BUDGETS = (0.05, 0.1, 0.2, 0.4, 1.0)
OVERRIDES = "hired_budget=0.2,hired_max_budget=1.0"

Body = dict[str, Any]


@dataclass(frozen=True)
class Room:
    """What a server is given, so that its longest request just fits.

    Attributes:
        images: most of a request: two, or one where the model's context is too short.
        context: tokens of the longest request.
    """

    images: int
    context: int

    @classmethod
    def of(cls, model: str) -> "Room":
        """For a checkpoint of any family."""
        hf_config = read_plain_config(model)
        most = max(
            image_layout(hf_config, height, width).num_stock_tokens
            for width, height in SIZES
        )
        longest = getattr(hf_config.text_config, "max_position_embeddings", 4096)
        images = min(2, (longest - TEXT_TOKENS) // most)
        needed = math.ceil((images * most + TEXT_TOKENS) / BLOCK_SIZE) * BLOCK_SIZE
        return cls(images, max(1024, needed))

    @property
    def options(self) -> str:
        """Of `vllm serve`. The KV cache holds the longest request and a quarter."""
        return (
            f"--trust-request-mm-kwargs --max-model-len {self.context} "
            f"--max-num-batched-tokens {self.context} --max-num-seqs {AT_ONCE} "
            f"--limit-mm-per-prompt.image {self.images} --block-size {BLOCK_SIZE} "
            f"--num-gpu-blocks-override {math.ceil(1.28 * self.context / BLOCK_SIZE)}"
        )


def mixture(
    count: int, seed: int, budgets: Sequence[float], most_images: int = 2
) -> list[Body]:
    """Chat requests of many shapes and budgets; of none, without budgets."""
    rng = Random(seed)
    urls = [as_url(noise(rng, *size)) for size in SIZES for _ in range(2)]
    bodies = []
    for _ in range(count):
        images = min(most_images, rng.choice((0, 1, 1, 1, 2)))
        chosen = [rng.choice(urls) for _ in range(images)]
        body = chat_body(
            *chosen,
            prompt="What is this? " * rng.randrange(1, 6),
            max_tokens=rng.randrange(16, 65),
            ignore_eos=True,
            return_token_ids=True,
        )
        if chosen and budgets:
            body["mm_processor_kwargs"] = {"hired_budget": rng.choice(budgets)}
        bodies.append(body)
    return bodies


def answer(server: RunningServer, body: Body) -> list[int]:
    """The tokens of an answer.

    Raises:
        requests.HTTPError: there is none.
    """
    response = requests.post(f"{server.url}{CHAT}", json=body, timeout=600)
    response.raise_for_status()
    tokens: list[int] = response.json()["choices"][0]["token_ids"]
    return tokens


def memory(server: RunningServer) -> dict[str, dict[str, float]]:
    """MB of each of the server's processes: resident now, and at most so far."""
    found = {}
    root = psutil.Process(server.process.pid)
    for process in [root, *root.children(recursive=True)]:
        status = Path(f"/proc/{process.pid}/status").read_text()
        fields = dict(line.split(":", 1) for line in status.splitlines())
        found[f"{process.pid} {fields['Name'].strip()}"] = {
            name: int(fields[key].split()[0]) / 1000
            for name, key in (("resident", "VmRSS"), ("peak", "VmHWM"))
        }
    return found


def soak(
    server: RunningServer,
    bodies: Sequence[Body],
    rounds: int,
    seed: int,
    title: str = "soak",
) -> dict[str, Any]:
    """Each request alone, then all of them, `AT_ONCE` at a time, `rounds` times.

    Returns:
        `equal`: of how many the answer was as alone; `unlike`: which were not, by
        round; `preemptions`; `seconds`; `memory`: after the first part and each round.
    """
    order = Random(seed)
    bar = tqdm(total=len(bodies) * (rounds + 1), desc=title)
    alone = []
    for i, body in enumerate(bodies):
        # Computed whole, and not what the prefix cache holds of others.
        alone.append(answer(server, {**body, "cache_salt": f"alone {i}"}))
        bar.update()
    start = now()
    before = server.metrics()["vllm:num_preemptions_total"]
    memories = [memory(server)]
    unlike: list[list[int]] = []
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for _ in range(rounds):
            shuffled = order.sample(range(len(bodies)), len(bodies))
            found = pool.map(partial(answer, server), [bodies[i] for i in shuffled])
            wrong = []
            for i, tokens in zip(shuffled, found, strict=True):
                if tokens != alone[i]:
                    wrong.append(i)
                bar.update()
            unlike.append(sorted(wrong))
            memories.append(memory(server))
    bar.close()
    return {
        "equal": rounds * len(bodies) - sum(map(len, unlike)),
        "unlike": unlike,
        "preemptions": server.metrics()["vllm:num_preemptions_total"] - before,
        "seconds": now() - start,
        "memory": memories,
    }


def answers_row(name: str, found: dict[str, Any], total: int) -> Row:
    return {
        "server": name,
        "requests at once": AT_ONCE,
        "answers as alone": f"{found['equal']} of {total}",
        "preemptions": round(found["preemptions"]),
        "minutes": round(found["seconds"] / 60, 1),
    }


def memory_rows(name: str, found: dict[str, Any]) -> list[Row]:
    """A row a process: MB before the rounds, after the first, half and all."""
    memories = found["memory"]
    points = {
        "alone": memories[0],
        "first round": memories[1],
        "half": memories[len(memories) // 2],
        "all rounds": memories[-1],
    }
    return [
        {
            "server": name,
            "process": process.partition(" ")[2],
            **{
                f"{when} (MB)": round(at[process]["resident"])
                for when, at in points.items()
            },
            "peak (MB)": round(memories[-1][process]["peak"]),
        }
        for process in memories[-1]
        if all(process in at for at in points.values())
    ]


def serve_and_soak(args: argparse.Namespace, overrides: str | None) -> dict[str, Any]:
    room = Room.of(args.model)
    bodies = mixture(
        args.requests, args.seed, BUDGETS if overrides else (), room.images
    )
    title = "with the plugin" if overrides else "stock"
    with campaign_server(args, room.options, overrides) as server:
        return soak(server, bodies, args.rounds, args.seed, title)


def main() -> None:
    parser = campaign_parser(__doc__)
    parser.add_argument("--requests", type=int, default=64, help="default: 64")
    parser.add_argument("--rounds", type=int, default=20, help="default: 20")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    args.model = campaign_model(args)
    found = {
        name: serve_and_soak(args, overrides)
        for name, overrides in (("with the plugin", OVERRIDES), ("stock", None))
    }
    total = args.requests * args.rounds
    tables = {
        "Answers": [answers_row(name, each, total) for name, each in found.items()],
        "Memory of each process": [
            row for name, each in found.items() for row in memory_rows(name, each)
        ],
    }
    write_results(args, "soak", tables, found)
    # On a GPU a batch may round otherwise than a request alone, in stock vLLM too.
    if found["with the plugin"]["equal"] < found["stock"]["equal"] == total:
        raise SystemExit("not every answer was the one that its request got alone")


if __name__ == "__main__":
    main()
