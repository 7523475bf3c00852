"""`vllm-hired`: tools beside the server. Wrong input is one line and exit status 2;
where some of the files could not be used and others could, or `doctor` found something
wrong, the status is 1."""

import argparse
import gc
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module

from vllm_hired import __version__

COMMANDS = {
    "plan": "what a budget saves on given images: tokens, memory, requests, FLOPs",
    "inspect": "what is kept of an image, and why: a picture or a web page",
    "doctor": "whether this environment, and a model, can drop tokens",
}


def script() -> int:
    """Console script: `main` in a process of its own."""
    # Collecting garbage takes a fifth of the imports' time, and finds little.
    gc.disable()
    # Unwinds as Ctrl-C does, so that a stopped command leaves no half-written file.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        return main()
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; 1 where some of the files could not be used, each named in a line, or a check
        failed; 2 where none could, or the arguments cannot be used.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(prog="vllm-hired", description=__doc__)
    parser.add_argument(
        "--version", action="version", version=f"vllm-hired {__version__}"
    )
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, what in COMMANDS.items():
        command = subparsers.add_parser(name, help=what, description=what)
        # Each is imported when asked for.
        if argv[:1] == [name]:
            import_module(f"vllm_hired.tools.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    try:
        text, skipped = args.run(args)
    except (ValueError, OSError) as error:
        complain(str(error))
        return 2
    for line in skipped:
        complain(line)
    if text:
        sys.stdout.write(f"{text}\n")
    return (1 if text else 2) if skipped else 0


def complain(text: str) -> None:
    """One line on stderr, whatever the text."""
    lines = filter(None, map(str.strip, text.splitlines()))
    sys.stderr.write(f"vllm-hired: {' '.join(lines)}\n")


if __name__ == "__main__":
    sys.exit(script())
