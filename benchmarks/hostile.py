"""A thousand hostile requests against a real `vllm serve`, and the same against stock.

Every JSON type as a budget and as other processor arguments, odd and broken images,
clients that go away, guided output, ready-made embeddings, names used twice, extreme
shapes: four at a time, so that they meet in batches. After each hundred an ordinary
question must be answered as at first, from the prefix cache and anew. A request must
not fare worse than with stock vLLM: no 5xx and no silence where stock says 2xx or 4xx.

    python -m benchmarks.hostile --requests 1040 --seed 0
"""

import http.client
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from random import Random
from urllib.parse import urlsplit

import requests
from tqdm import tqdm
from transformers import AutoConfig

from benchmarks.harness import write_results
from benchmarks.hostile_images import noise
from benchmarks.hostile_requests import KINDS, Attack, attacks
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
    "--trust-request-mm-kwargs --enable-mm-embeds --max-model-len 1024 "
    "--max-num-batched-tokens 1024 --max-num-seqs 8 "
    "--limit-mm-per-prompt.image 3 --num-gpu-blocks-override 256 --block-size 32"
)
OVERRIDES = "hired_budget=0.2,hired_max_budget=0.5"
SILENCE = "no answer"
HUNG_UP = "hung up"
LIMIT_S = 600


@dataclass
class Campaign:
    """What became of the requests sent to one server.

    Attributes:
        statuses: per request its HTTP status, `SILENCE`, or `HUNG_UP`.
        said: beginnings of 5xx answers and errors of silence, by request.
        healthy: after each hundred, whether both answers were as at first.
        lived: whether the engine was there at the end.
    """

    statuses: list[int | str] = field(default_factory=list)
    said: dict[int, str] = field(default_factory=dict)
    healthy: list[bool] = field(default_factory=list)
    lived: bool = False


def run_campaign(
    server: RunningServer, drawn: Sequence[tuple[str, Attack]], title: str = "hostile"
) -> Campaign:
    """Sends all requests, and an ordinary one after each hundred.

    It ends early with an engine that does not answer any more.
    """
    found = Campaign()
    ask = ordinary_question(server)
    first = ask()
    with ThreadPoolExecutor(4) as pool, tqdm(total=len(drawn), desc=title) as bar:
        for start in range(0, len(drawn), 100):
            kinds, hundred = zip(*drawn[start : start + 100], strict=True)
            answers = pool.map(partial(send, server), hundred)
            for kind, (status, text) in zip(kinds, answers, strict=True):
                if is_failure(status):
                    found.said[len(found.statuses)] = text[:300]
                    bar.write(f"{kind}: {status} {text[:300]}")
                found.statuses.append(status)
                bar.update()
            found.lived = server.is_healthy()
            if not found.lived:
                break
            found.healthy.append(ask() == first)
    return found


def ordinary_question(server: RunningServer) -> Callable[[], list[str]]:
    """Asks for two answers about one image: the second time as if the server had never
    seen the prompt."""
    image = as_url(noise(Random(0), 300, 200))
    turn = 0

    def ask() -> list[str]:
        nonlocal turn
        turn += 1
        answers = []
        salts: tuple[dict[str, str], ...] = ({}, {"cache_salt": f"salt {turn}"})
        for extra in salts:
            body = chat_body(image, max_tokens=24, ignore_eos=True, **extra)
            response = requests.post(f"{server.url}{CHAT}", json=body, timeout=LIMIT_S)
            answers.append(
                response.json()["choices"][0]["message"]["content"]
                if response.ok
                else response.text
            )
        return answers

    return ask


def send(server: RunningServer, attack: Attack) -> tuple[int | str, str]:
    """A status and what the answer says; a client that goes away has neither."""
    address = urlsplit(server.url)
    connection = http.client.HTTPConnection(
        address.hostname or "", address.port, timeout=LIMIT_S
    )
    try:
        connection.putrequest("POST", attack.path)
        connection.putheader("Content-Type", "application/json")
        connection.putheader("Content-Length", str(len(attack.body)))
        connection.endheaders()
        if attack.hang_up is not None:
            leave(connection, attack.body, attack.hang_up)
            return HUNG_UP, ""
        connection.send(attack.body)
        response = connection.getresponse()
        return response.status, response.read().decode("utf-8", "replace")
    except (OSError, http.client.HTTPException) as error:
        return SILENCE, repr(error)
    finally:
        connection.close()


def leave(connection: http.client.HTTPConnection, body: bytes, after: int) -> None:
    """Goes away after so many bytes, or after all of them and -`after` milliseconds."""
    connection.send(body if after < 0 else body[:after])
    if after < 0:
        connection.sock.settimeout(-after / 1000)
        with suppress(TimeoutError):
            connection.sock.recv(1)
            time.sleep(-after / 1000)


def is_failure(status: int | str) -> bool:
    return status == SILENCE or (isinstance(status, int) and status >= 500)


def is_worse(status: int | str, stock: int | str) -> bool:
    return is_failure(status) and not is_failure(stock)


def tables_of(
    kinds: Sequence[str], found: Campaign, stock: Campaign
) -> dict[str, list[Row]]:
    """By kind how requests ended, and what the ordinary question shows."""
    rows = []
    for kind in [*KINDS, "all"]:
        own, theirs = (
            [
                s
                for k, s in zip(kinds, each.statuses, strict=False)
                if kind in (k, "all")
            ]
            for each in (found, stock)
        )
        ours_by, stock_by = Counter(map(ending, own)), Counter(map(ending, theirs))
        rows.append(
            {
                "kind": kind,
                "requests": len(own),
                **{name: ours_by[name] for name in ENDINGS},
                **{f"stock {name}": stock_by[name] for name in ENDINGS},
                "worse than stock": sum(map(is_worse, own, theirs)),
            }
        )
    ends = [
        {
            "server": name,
            "same answers after each hundred": f"{sum(each.healthy)} of "
            f"{len(each.healthy)}",
            "engine alive at the end": "yes" if each.lived else "NO",
        }
        for name, each in (("with the plugin", found), ("stock", stock))
    ]
    return {
        "Requests by kind and how they ended": rows,
        "An ordinary question, from the prefix cache and anew": ends,
    }


ENDINGS = ("2xx", "4xx", "5xx", SILENCE, HUNG_UP)


def ending(status: int | str) -> str:
    return status if isinstance(status, str) else f"{status // 100}xx"


def main() -> None:
    parser = campaign_parser(__doc__)
    parser.add_argument("--requests", type=int, default=1040, help="default: 1040")
    parser.add_argument("--seed", type=int, default=0, help="default: 0")
    args = parser.parse_args()
    args.model = campaign_model(args)
    width = AutoConfig.from_pretrained(args.model).get_text_config().hidden_size
    drawn = attacks(args.requests, args.seed, width)
    with campaign_server(args, OPTIONS, OVERRIDES) as server:
        found = run_campaign(server, drawn, "with the plugin")
    with campaign_server(args, OPTIONS, None) as server:
        stock = run_campaign(server, drawn, "stock")
    kinds = [kind for kind, _ in drawn]
    tables = tables_of(kinds, found, stock)
    raw = {
        "requests": [
            " | ".join(map(str, each))
            for each in zip(kinds, found.statuses, stock.statuses, strict=False)
        ],
        "said": found.said,
        "stock said": stock.said,
    }
    write_results(args, "hostile", tables, raw)
    worse = tables["Requests by kind and how they ended"][-1]["worse than stock"]
    if worse or not (found.lived and all(found.healthy)):
        raise SystemExit(f"{worse} requests fared worse than with stock vLLM")


if __name__ == "__main__":
    main()
