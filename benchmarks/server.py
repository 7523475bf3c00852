"""A real `vllm serve`, started, asked and stopped, for campaigns and tests."""

import argparse
import base64
import io
import os
import shlex
import socket
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import requests
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.harness import make_parser
from random_checkpoints.llava import SHAPES, write_checkpoint

CHAT = "/v1/chat/completions"
START_LIMIT_S = 1800
STOP_LIMIT_S = 300


@dataclass
class RunningServer:
    """A running server.

    Attributes:
        url: without a path.
        process: that of the command; API servers and engines are below it.
        log: what it prints.
    """

    url: str
    process: subprocess.Popen[bytes]
    log: Path

    def is_healthy(self) -> bool:
        """Whether it lives and says that its engine does."""
        if self.process.poll() is not None:
            return False
        try:
            return requests.get(f"{self.url}/health", timeout=30).ok
        except requests.RequestException:
            return False

    def metrics(self) -> dict[str, float]:
        """Sums of the samples on `/metrics` by their names."""
        text = requests.get(f"{self.url}/metrics", timeout=60).text
        sums: defaultdict[str, float] = defaultdict(float)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                sums[sample.name] += sample.value
        return dict(sums)


def as_url(image: Image.Image) -> str:
    """An image as the data URL of a PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return data_url(buffer.getvalue())


def data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


def chat_body(
    *images: str,
    prompt: str = "What is this?",
    uuid: str | None = None,
    **extra: Any,
) -> dict[str, Any]:
    """A chat request about images at URLs, with one name for all of them, if any."""
    content: list[dict[str, Any]] = [
        {"type": "image_url", "image_url": {"url": url}, "uuid": uuid} for url in images
    ]
    content.append({"type": "text", "text": prompt})
    return {
        "messages": [{"role": "user", "content": content}],
        "max_tokens": 6,
        "temperature": 0,
        **extra,
    }


@contextmanager
def running_server(
    command: str, folder: Path, **variables: str
) -> Iterator[RunningServer]:
    """A server started by a command as people type it, in a folder, on a free port.

    Args:
        command: may begin with variables of the environment.
        folder: where it runs.
        variables: of the environment.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "VLLM_ENABLE_V1_MULTIPROCESSING": "1",
        "VLLM_LOGGING_LEVEL": "INFO",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        **variables,
    }
    words = ["env", *shlex.split(command), *f"--host 127.0.0.1 --port {port}".split()]
    path = folder / "log"
    with path.open("wb") as log:
        process = subprocess.Popen(
            words, cwd=folder, env=environment, stdout=log, stderr=log
        )
        server = RunningServer(f"http://127.0.0.1:{port}", process, path)
        try:
            _wait_until_healthy(server)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=STOP_LIMIT_S)


def campaign_parser(description: str | None) -> argparse.ArgumentParser:
    """Arguments of every campaign."""
    parser = make_parser(description)
    parser.set_defaults(shape="small", dtype="float32")
    return parser


def campaign_model(args: argparse.Namespace) -> str:
    """The checkpoint to ask. That of a `--shape` is written, with random weights."""
    if args.model is not None:
        return args.model
    return str(write_checkpoint(Path("out") / args.shape, SHAPES[args.shape]))


@contextmanager
def campaign_server(
    args: argparse.Namespace,
    options: str,
    overrides: str | None,
    **variables: str,
) -> Iterator[RunningServer]:
    """A server of `args.model` in a folder that is left behind with nothing.

    Args:
        args: of `campaign_parser`, with the model.
        options: of `vllm serve`.
        overrides: `--hf-overrides`, or None for stock vLLM, without the plugin.
        variables: of the environment.
    """
    command = f"vllm serve {Path(args.model).resolve()} --dtype {args.dtype} {options}"
    variables |= {
        "HF_HUB_OFFLINE": "1",
        # On a busy machine a step may take long; clients notice one that never ends.
        "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS": "3600",
    }
    if args.device == "cpu":
        command += " --enforce-eager"
        variables |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
    if overrides is None:
        variables |= {"VLLM_PLUGINS": ""}
    else:
        command += f" --hf-overrides {overrides}"
    with (
        TemporaryDirectory() as folder,
        running_server(command, Path(folder), **variables) as server,
    ):
        yield server


def _wait_until_healthy(server: RunningServer) -> None:
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline:
        if server.is_healthy():
            return
        if server.process.poll() is not None:
            raise RuntimeError(server.log.read_text()[-3000:])
        time.sleep(0.5)
    raise TimeoutError(server.log.read_text()[-3000:])
