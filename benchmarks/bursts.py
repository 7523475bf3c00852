"""Requests in bursts: what budgets that give way under load are worth.

Three servers get the same images at the same times: one at the smallest budget, one at
the largest, and one with `hired_adaptive` between them. Arrivals are those of a Poisson
process, at multiples of what the server at the largest budget sustains. Each image is
a new one.

    python -m benchmarks.bursts --shape tiny --dtype float32
"""

import argparse
import math
import re
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from random import Random
from typing import Any

import requests
from matplotlib.figure import Figure
from prometheus_client.parser import text_string_to_metric_families
from tqdm import tqdm

from benchmarks.harness import noise, now, write_results
from benchmarks.server import (
    CHAT,
    RunningServer,
    as_url,
    campaign_model,
    campaign_parser,
    campaign_server,
    chat_body,
)
from vllm_hired.tools.tables import Row

OPTIONS = (
    "--max-num-batched-tokens 4096 --max-num-seqs 32 --limit-mm-per-prompt.image 1"
)
AT_ONCE = 4
"""Requests at a time while it is measured what a server sustains."""

CHOSEN = re.compile(
    r"hired_adaptive: budgets \[([\d.]+)\] for 1 images, at "
    r"Load\(awaiting=(\d+), waiting=(\d+), engines=1\)"
)


def arrivals(count: int, rate: float, seed: int) -> list[float]:
    """When requests come, in seconds from the start: the first at once.

    Args:
        count: of the requests.
        rate: requests per second, on average.
        seed: of the draw. Another rate stretches the same times.
    """
    rng = Random(seed)
    times = [0.0]
    while len(times) < count:
        times.append(times[-1] + rng.expovariate(1) / rate)
    return times


def quantile(values: Sequence[float], share: float) -> float:
    """The least value that at least `share` of all do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def recorded_loads(log: str) -> list[tuple[int, int, float]]:
    """What the server's log says of each choice: `awaiting` and `waiting` of
    `vllm_hired.adaptive.Load`, and the budget."""
    return [
        (int(awaiting), int(waiting), float(budget))
        for budget, awaiting, waiting in CHOSEN.findall(log)
    ]


def burst_row(
    factor: float, name: str, seconds: Sequence[float], budgets: Mapping[float, float]
) -> Row:
    """
    Args:
        factor: arrivals by what the server at the largest budget sustains.
        name: of the server.
        seconds: to the first token, of each request.
        budgets: images by their budget.
    """
    images = sum(budgets.values())
    return {
        "arrivals / sustained": factor,
        "budget": name,
        "TTFT p50 (s)": round(quantile(seconds, 0.5), 2),
        "TTFT p95 (s)": round(quantile(seconds, 0.95), 2),
        "mean budget": round(sum(b * n for b, n in budgets.items()) / images, 3),
    }


def chosen_budgets(server: RunningServer) -> dict[float, float]:
    """Images so far by the budget that the load chose."""
    text = requests.get(f"{server.url}/metrics", timeout=60).text
    return {
        float(sample.labels["budget"]): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "vllm_hired_adaptive_images_total"
    }


def bodies(args: argparse.Namespace, count: int, seed: int) -> list[dict[str, Any]]:
    width, height = args.size
    images = [noise(width, height, seed * 10_000 + place) for place in range(count)]
    return [
        chat_body(
            as_url(image), max_tokens=args.output_tokens, ignore_eos=True, stream=True
        )
        for image in images
    ]


def first_token(server: RunningServer, body: dict[str, Any], due: float) -> float:
    """Seconds from when the request is due to its first token; returns at its last.

    Args:
        server: asked.
        body: of the request.
        due: by `time.perf_counter`.
    """
    time.sleep(max(0.0, due - now()))
    first = None
    with requests.post(
        f"{server.url}{CHAT}", json=body, stream=True, timeout=3600
    ) as response:
        response.raise_for_status()
        for line in response.iter_lines():
            # The first event says who speaks, when there is a first token.
            if first is None and line.startswith(b"data: "):
                first = now() - due
    if first is None:
        raise RuntimeError("an answer without an event")
    return first


def sustained(server: RunningServer, asked: Sequence[dict[str, Any]]) -> float:
    """Requests per second, `AT_ONCE` at a time."""
    first_token(server, asked[0], now())
    start = now()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        [*pool.map(lambda body: first_token(server, body, now()), asked[1:])]
    return (len(asked) - 1) / (now() - start)


def burst(
    server: RunningServer, asked: Sequence[dict[str, Any]], times: Sequence[float]
) -> list[float]:
    """Seconds to the first token of each request, each sent at its time."""
    start = now()
    with ThreadPoolExecutor(len(asked)) as pool:
        return [
            *pool.map(
                lambda body, at: first_token(server, body, start + at), asked, times
            )
        ]


def measure(
    args: argparse.Namespace, name: str, overrides: str, rate: float | None
) -> dict[str, Any]:
    """All bursts of one server.

    Args:
        args: of the command line.
        name: of the server.
        overrides: its settings.
        rate: what the server at the largest budget sustains, or None to measure it.

    Returns:
        `rate`; by factor `seconds` to the first token and images by their `budgets`;
        `loads` at each choice of a budget.
    """
    found: dict[str, Any] = {"seconds": {}, "budgets": {}}
    # The log of the choices; the same for all three, since it costs time.
    with campaign_server(
        args, OPTIONS, overrides, VLLM_LOGGING_LEVEL="DEBUG"
    ) as server:
        warm_up = bodies(args, args.requests, args.seed)
        if rate is None:
            rate = sustained(server, warm_up)
        else:
            first_token(server, warm_up[0], now())
        for place, factor in enumerate(tqdm(args.factors, desc=name)):
            asked = bodies(args, args.requests, args.seed + 1 + place)
            before = chosen_budgets(server)
            times = arrivals(args.requests, factor * rate, args.seed + place)
            found["seconds"][factor] = burst(server, asked, times)
            found["budgets"][factor] = {
                budget: images - before[budget]
                for budget, images in chosen_budgets(server).items()
            }
        loads = recorded_loads(server.log.read_text())
    return {**found, "rate": rate, "loads": loads}


def plot(rows: Sequence[Row]) -> Figure:
    """Time to first token by arrivals, a line a server and quantile."""
    figure = Figure((7, 4))
    axes = figure.subplots()
    for name in dict.fromkeys(row["budget"] for row in rows):
        own = [row for row in rows if row["budget"] == name]
        factors = [row["arrivals / sustained"] for row in own]
        (line,) = axes.plot(
            factors, [row["TTFT p50 (s)"] for row in own], "o-", label=f"{name}, p50"
        )
        axes.plot(
            factors,
            [row["TTFT p95 (s)"] for row in own],
            "^--",
            color=line.get_color(),
            label=f"{name}, p95",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlabel="arrivals / what the largest budget sustains",
        ylabel="time to first token (s)",
    )
    axes.legend(fontsize=8)
    return figure


def main() -> None:
    parser = campaign_parser(__doc__)
    parser.add_argument("--requests", type=int, default=40, help="of a burst: 40")
    parser.add_argument(
        "--factors",
        type=float,
        nargs="+",
        default=[0.5, 1, 2, 4],
        help="arrivals by what is sustained (default: 0.5 1 2 4)",
    )
    parser.add_argument(
        "--size",
        type=lambda text: tuple(map(int, text.split("x"))),
        default=(672, 672),
        help="of images, WIDTHxHEIGHT in pixels (default: 672x672)",
    )
    parser.add_argument("--floor", type=float, default=0.1, help="default: 0.1")
    parser.add_argument("--ceiling", type=float, default=0.8, help="default: 0.8")
    parser.add_argument("--queue", type=int, default=4, help="hired_adaptive_queue: 4")
    parser.add_argument("--output-tokens", type=int, default=4, help="default: 4")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    args.model = campaign_model(args)
    servers = {
        f"{args.ceiling}": f"hired_budget={args.ceiling}",
        f"{args.floor}": f"hired_budget={args.floor}",
        "adaptive": f"hired_budget={args.floor},hired_max_budget={args.ceiling},"
        f"hired_adaptive=true,hired_adaptive_queue={args.queue}",
    }
    rate = None
    found = {}
    for name, overrides in servers.items():
        found[name] = measure(args, name, overrides, rate)
        rate = found[name]["rate"]
    rows = [
        burst_row(
            factor,
            name,
            each["seconds"][factor],
            each["budgets"][factor] or {float(name): args.requests},
        )
        for factor in args.factors
        for name, each in found.items()
    ]
    adaptive = {"floor": args.floor, "ceiling": args.ceiling, "queue": args.queue}
    sustained_rate = f"{args.ceiling} sustains {rate:.3f} requests per second"
    write_results(
        args,
        "bursts",
        {f"Bursts of {args.requests} requests; {sustained_rate}": rows},
        {"adaptive": adaptive, "servers": found},
        plot(rows),
    )


if __name__ == "__main__":
    main()
