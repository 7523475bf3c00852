"""Whether vLLM and transformers answer alike on `llava-next-smol`, nothing dropped.

Each reads a picture once, and the questions about it after that.

    python -m benchmarks.smol_agreement --model out/llava-next-smol --questions 200
"""

import json
from collections.abc import Iterator, Sequence
from copy import deepcopy
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm import LLM, SamplingParams

from benchmarks.harness import make_parser, start_engine
from benchmarks.provenance import provenance
from training.smol.evaluate import KINDS, MOST_NEW_TOKENS, Query, trials


def transformers_answers(
    model: Any, processor: Any, queries: Sequence[Query]
) -> Iterator[str]:
    """Greedy answers to questions about one image."""
    asked = [
        processor(text=query.prompt, images=query.image, return_tensors="pt")
        for query in queries
    ]
    ids = asked[0].input_ids
    end = 1 + (ids[0] == model.config.image_token_id).nonzero().max()
    shared = {
        "input_ids": ids[:, :end],
        "attention_mask": torch.ones_like(ids[:, :end]),
    }
    with torch.inference_mode():
        read = model(**{**asked[0], **shared}, use_cache=True, logits_to_keep=1)
    for inputs in asked:
        new = model.generate(
            input_ids=inputs.input_ids,
            attention_mask=inputs.attention_mask,
            past_key_values=deepcopy(read.past_key_values),
            do_sample=False,
            max_new_tokens=MOST_NEW_TOKENS,
        )
        answer = new[0, inputs.input_ids.shape[1] :]
        yield processor.tokenizer.decode(answer, skip_special_tokens=True)


def differences(llm: LLM, checkpoint: Path, queries: list[Query]) -> list[Any]:
    """The questions that the two answer differently, greedy, float32."""
    sampling = SamplingParams(temperature=0, max_tokens=MOST_NEW_TOKENS)
    requests: list[Any] = [query.request(1.0) for query in queries]
    outputs = llm.generate(requests, sampling)
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32
    ).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    said = [
        answer
        for _, same in groupby(
            tqdm(queries, desc="transformers"), lambda q: id(q.image)
        )
        for answer in transformers_answers(model, processor, [*same])
    ]
    return [
        [query.question.text, query.question.answer, output.outputs[0].text, answer]
        for query, output, answer in zip(queries, outputs, said, strict=True)
        if answer != output.outputs[0].text
    ]


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(dtype="float32")
    parser.add_argument("--questions", type=int, default=200, help="default: 200")
    parser.add_argument(
        "--kinds", nargs="+", choices=KINDS, default=[*KINDS], help="of pictures"
    )
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: run `python -m training.smol.assemble` for one")
    (first,) = trials(1, kinds=args.kinds)
    found = trials(-(-args.questions // len(first)), kinds=args.kinds)
    queries = [query for trial in found for query in trial][: args.questions]
    llm = start_engine(args, max_num_seqs=1, enable_prefix_caching=True)
    found = differences(llm, Path(args.model), queries)
    result = {"questions": len(queries), "different": found, **provenance()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "smol-agreement.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(queries) - len(found)} of {len(queries)} alike; different: {found}")


if __name__ == "__main__":
    main()
