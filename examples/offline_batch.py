"""One question about every image of a folder, in one batch, without a server.

    python examples/offline_batch.py MODEL FOLDER --question "What is this?"

Prints a line an image: how many tokens its prompt had, and the answer.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vllm import LLM, SamplingParams

from vllm_hired.tools.images import image_files, read_image


def ask_all(
    llm: LLM, paths: Sequence[Path], question: str, budget: float, max_tokens: int
) -> list[tuple[int, str]]:
    """(Prompt tokens, answer) for each image, greedily, at one budget."""
    conversations = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "image_pil", "image_pil": read_image(path)},
                    {"type": "text", "text": question},
                ],
            }
        ]
        for path in paths
    ]
    outputs = llm.chat(
        conversations,
        SamplingParams(temperature=0, max_tokens=max_tokens),
        # At most the engine's hired_max_budget.
        mm_processor_kwargs={"hired_budget": budget},
    )
    return [
        (len(output.prompt_token_ids or []), output.outputs[0].text.strip())
        for output in outputs
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="directory of a checkpoint, or a model id")
    parser.add_argument("folder", type=Path, help="with images, and folders of them")
    parser.add_argument("--question", default="What is in this picture?")
    parser.add_argument("--budget", type=float, default=0.2)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--max-model-len", type=int, help="default: the model's")
    args = parser.parse_args(argv)
    paths = [*image_files([args.folder], parser.error)]
    llm = LLM(
        args.model,
        max_model_len=args.max_model_len,
        hf_overrides={"hired_budget": args.budget},
    )
    answers = ask_all(llm, paths, args.question, args.budget, args.max_tokens)
    for path, (tokens, answer) in zip(paths, answers, strict=True):
        print(f"{path.relative_to(args.folder)}: {tokens} tokens: {answer}")


# The engine runs in a process of its own, which may import this file.
if __name__ == "__main__":
    main()
