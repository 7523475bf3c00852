"""The same question about an image at several budgets, by the OpenAI client.

    vllm serve MODEL --trust-request-mm-kwargs \\
      --hf-overrides hired_budget=0.2,hired_max_budget=1.0
    python examples/client_budgets.py photo.jpg --question "What is this?" \\
      --budgets 1.0 0.4 0.2 0.1

A budget is in a field of the request, `mm_processor_kwargs`, that the client does not
know; it goes into `extra_body`. The server refuses more than its `hired_max_budget`.
"""

import argparse
from base64 import b64encode
from collections.abc import Sequence
from mimetypes import guess_type
from pathlib import Path
from typing import Any

from openai import BadRequestError, OpenAI


def message_of(image: Path, question: str) -> dict[str, Any]:
    """A user's message with the image inside it."""
    kind = guess_type(image.name)[0] or "image/png"
    url = f"data:{kind};base64,{b64encode(image.read_bytes()).decode()}"
    return {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": question},
        ],
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("image", type=Path)
    parser.add_argument("--question", default="What is in this picture?")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.2, 0.1, 0.05])
    parser.add_argument("--url", default="http://localhost:8000/v1")
    parser.add_argument("--max-tokens", type=int, default=64)
    args = parser.parse_args(argv)
    client = OpenAI(base_url=args.url, api_key="none")
    model = client.models.list().data[0].id
    messages: Any = [message_of(args.image, args.question)]
    for budget in args.budgets:
        try:
            completion = client.chat.completions.create(
                model=model,
                messages=messages,
                temperature=0,
                max_tokens=args.max_tokens,
                extra_body={"mm_processor_kwargs": {"hired_budget": budget}},
            )
        except BadRequestError as error:
            print(f"{budget}: refused: {error.message}")
            continue
        tokens = completion.usage.prompt_tokens if completion.usage else "?"
        answer = (completion.choices[0].message.content or "").strip()
        print(f"{budget}: {tokens} tokens: {answer}")


if __name__ == "__main__":
    main()
