"""Task files for lmms-eval over photographs of `llava-next-smol`: no hub, no download.

`main` writes what `benchmarks.paper --include` takes.

    python -m tests.paper_tasks out/paper-tasks --scenes 100
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from training.smol.evaluate import MOST_NEW_TOKENS, Trial, trials

UTILS = '''"""What lmms-eval calls for each question."""


def doc_to_visual(doc):
    return [doc["image"].convert("RGB")]


def doc_to_text(doc, lmms_eval_specific_kwargs=None):
    return doc["question"]


def process_results(doc, results):
    return {"exact_match": float(results[0].strip() == doc["answer"])}
'''

LENGTHS = {"scenes": MOST_NEW_TOKENS, "scenes_cut": 1, "scenes_open": None}
"""Task -> `max_new_tokens` in its file; None leaves it out."""


def write_tasks(folder: Path, asked: Sequence[Trial]) -> Path:
    """The tasks of `LENGTHS`, of the same questions, and `scenes_lost`, without data.

    Returns:
        `folder`, for `--include`.
    """
    data = folder / "data/test"
    data.mkdir(parents=True)
    lines = []
    for number, trial in enumerate(asked):
        for query in trial:
            question = query.question
            name = f"{number:04}-{question.task}.png"
            query.image.save(data / name)
            doc = {"question": question.text, "answer": question.answer}
            lines.append(json.dumps({"file_name": name, **doc}))
    (data / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "utils.py").write_text(UTILS)
    for task, length in LENGTHS.items():
        write_task(folder, task, data.parent, length)
    write_task(folder, "scenes_lost", folder / "nowhere", MOST_NEW_TOKENS)
    return folder


def write_task(folder: Path, task: str, data: Path, length: int | None) -> None:
    plain = {
        "task": task,
        "dataset_path": "imagefolder",
        "dataset_kwargs": {"data_dir": str(data)},
        "test_split": "test",
        "output_type": "generate_until",
        "doc_to_target": "answer",
        "generation_kwargs": {"until": ["\n\n"]}
        | ({} if length is None else {"max_new_tokens": length}),
        "metric_list": [
            {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
        ],
    }
    functions = "".join(
        f"{name}: !function utils.{name}\n"
        for name in ("doc_to_visual", "doc_to_text", "process_results")
    )
    (folder / f"{task}.yaml").write_text(yaml.safe_dump(plain) + functions)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="for --include of benchmarks.paper")
    parser.add_argument(
        "--scenes", type=int, default=100, help="of five questions each; default: 100"
    )
    args = parser.parse_args()
    write_tasks(args.folder, trials(args.scenes, kinds=["scene"]))


if __name__ == "__main__":
    main()
