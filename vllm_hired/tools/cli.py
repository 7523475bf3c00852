"""`vllm-hired`: tools beside the server. Wrong input is one line and exit status 2."""

import argparse
import gc
import os
import sys
from collections.abc import Sequence
from importlib import import_module

COMMANDS = {
    "plan": "what a budget saves on given images: tokens, memory, requests, FLOPs",
    "inspect": "what is kept of an image, and why: a picture or a web page",
}


def script() -> int:
    """Console script: `main` in a process of its own."""
    # Collecting garbage takes a fifth of the imports' time, and finds little.
    gc.disable()
    return main()


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0, or 2 where the arguments or the files that they name cannot be used.
    """
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(prog="vllm-hired", description=__doc__)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND")
    argv = sys.argv[1:] if argv is None else argv
    for name, what in COMMANDS.items():
        command = subparsers.add_parser(name, help=what, description=what)
        # Each is imported when asked for.
        if argv[:1] == [name]:
            import_module(f"vllm_hired.{name}").add_arguments(command)
    args = parser.parse_args(argv)
    try:
        sys.stdout.write(f"{args.run(args)}\n")
    except (ValueError, OSError) as error:
        sys.stderr.write(f"vllm-hired: {' '.join(str(error).split())}\n")
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(script())
