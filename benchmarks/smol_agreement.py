"""Whether vLLM and transformers answer alike on `llava-next-smol`, nothing dropped.

python -m benchmarks.smol_agreement --model out/llava-next-smol --questions 200
"""

import json
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import AutoModelForImageTextToText, AutoProcessor
from vllm import LLM, SamplingParams

from benchmarks.harness import make_parser, start_engine
from benchmarks.provenance import provenance
from training.smol.evaluate import MOST_NEW_TOKENS, NAMES, Query, trials


def differences(llm: LLM, checkpoint: Path, queries: list[Query]) -> list[Any]:
    """The questions that the two answer differently, greedy, float32."""
    sampling = SamplingParams(temperature=0, max_tokens=MOST_NEW_TOKENS)
    requests: list[Any] = [query.request(1.0) for query in queries]
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    model = AutoModelForImageTextToText.from_pretrained(
        checkpoint, dtype=torch.float32
    ).eval()
    processor = AutoProcessor.from_pretrained(checkpoint)
    found = []
    for query, output in zip(tqdm(queries, desc="transformers"), outputs, strict=True):
        inputs = processor(text=query.prompt, images=query.image, return_tensors="pt")
        new = model.generate(**inputs, do_sample=False, max_new_tokens=MOST_NEW_TOKENS)
        ids = new[0, inputs.input_ids.shape[1] :]
        said = processor.tokenizer.decode(ids, skip_special_tokens=True)
        if said != output.outputs[0].text:
            question = query.question
            found.append([question.text, question.answer, output.outputs[0].text, said])
    return found


def main() -> None:
    parser = make_parser(__doc__)
    parser.set_defaults(dtype="float32")
    parser.add_argument("--questions", type=int, default=200, help="default: 200")
    args = parser.parse_args()
    if args.model is None:
        parser.error("--model: run `python -m training.smol.assemble` for one")
    queries = [q for trial in trials(-(-args.questions // len(NAMES))) for q in trial]
    queries = queries[: args.questions]
    llm = start_engine(args, max_num_seqs=1, enable_prefix_caching=True)
    found = differences(llm, Path(args.model), queries)
    result = {"questions": len(queries), "different": found, **provenance()}
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "smol-agreement.json").write_text(json.dumps(result, indent=1) + "\n")
    print(f"{len(queries) - len(found)} of {len(queries)} alike; different: {found}")


if __name__ == "__main__":
    main()
