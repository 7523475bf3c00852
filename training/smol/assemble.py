"""Puts `llava-next-smol` together: two wheels, and the trained part of this repository.

    python -m training.smol.assemble

DINOv2-S/14 becomes the vision tower, SmolLM2-135M-Instruct the LLM of a checkpoint that
transformers and vLLM load as `LlavaNextForConditionalGeneration`. The trained part is
projector, `image_newline` and a LoRA delta, which is merged into the LLM here: serving
needs no adapter. `--untrained` leaves it out; the projector is then random.
"""

import argparse
import math
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    GenerationConfig,
    LlavaNextConfig,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
)

from training.smol.language import (
    VOCABULARY,
    language_config,
    read_smollm2,
    read_tokenizer,
)
from training.smol.lora import merge
from training.smol.tower import (
    CHANNELS,
    HIDDEN,
    PATCH,
    clip_weights,
    read_dino,
    tower_config,
)
from training.smol.wheels import FOLDER, LLM, TOWER, PartsError, weights_of

Weights = dict[str, Tensor]

CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "llava-next-smol"
TRAINED = CHECKPOINT / "trained.safetensors"
"""The committed part."""

TILE = 336
PINPOINTS = tuple(
    (rows * TILE, cols * TILE)
    for rows, cols in ((1, 2), (2, 1), (2, 2), (3, 1), (1, 3))
)
INIT_LAYER, FINAL_LAYER = 7, 11
"""Of HiRED. DINOv2's [CLS] looks at nothing in particular in its first layers."""

END_TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")


def model_config() -> LlavaNextConfig:
    """Of the real geometry: 24 x 24 patches a tile, up to 2,880 visual tokens."""
    return LlavaNextConfig(
        architectures=["LlavaNextForConditionalGeneration"],
        vision_config=tower_config(TILE),
        text_config=language_config(),
        image_token_index=VOCABULARY,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        image_grid_pinpoints=[list(point) for point in PINPOINTS],
        tie_word_embeddings=True,
        hired_init_layer=INIT_LAYER,
        hired_final_layer=FINAL_LAYER,
    )


def make_image_processor() -> LlavaNextImageProcessor:
    """DINOv2's normalisation in LLaVA-NeXT's tiles."""
    return LlavaNextImageProcessor(
        crop_size={"height": TILE, "width": TILE},
        size={"shortest_edge": TILE},
        image_grid_pinpoints=[list(point) for point in PINPOINTS],
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def make_processor(tokenizer: Any) -> LlavaNextProcessor:
    return LlavaNextProcessor(
        image_processor=make_image_processor(),
        tokenizer=tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
    )


def random_projector(embedding: Tensor) -> Weights:
    """An untrained projector and `image_newline`, as wide as words' embeddings."""
    generator = torch.Generator().manual_seed(0)
    wide, std = embedding.shape[1], embedding.std()
    first = torch.randn(wide, HIDDEN, generator=generator) / math.sqrt(CHANNELS)
    second = torch.randn(wide, wide, generator=generator) / math.sqrt(wide)
    return {
        "multi_modal_projector.linear_1.weight": first,
        "multi_modal_projector.linear_1.bias": torch.zeros(wide),
        "multi_modal_projector.linear_2.weight": 1.5 * std * second,
        "multi_modal_projector.linear_2.bias": torch.zeros(wide),
        "image_newline": torch.randn(wide, generator=generator) * std,
    }


def assembled_weights(tower: Path, llm: Path, trained: Path | None) -> Weights:
    """All parameters, float32, under the names of published LLaVA-NeXT checkpoints.

    Raises:
        PartsError: the trained part is damaged.
    """
    language = read_smollm2(llm)
    if trained is None:
        connector = random_projector(language["model.embed_tokens.weight"])
    else:
        try:
            parts = {k: v.float() for k, v in load_file(trained).items()}
        except (OSError, SafetensorError) as error:
            raise PartsError(
                f"{trained} cannot be read ({error}); run `git checkout {trained}`"
            ) from error
        delta = {k: parts.pop(k) for k in list(parts) if k.startswith("model.")}
        language, connector = merge(language, delta), parts
    towers = clip_weights(read_dino(tower), TILE)
    return {
        **{f"vision_tower.vision_model.{k}": v for k, v in towers.items()},
        **{f"language_model.{k}": v for k, v in language.items()},
        **connector,
    }


def assemble(out: Path, wheels: Path = FOLDER, trained: Path | None = TRAINED) -> None:
    """Writes the checkpoint.

    Args:
        out: folder of the checkpoint.
        wheels: folder of the wheels.
        trained: the trained part, or None for a random projector.

    Raises:
        PartsError: a part is missing, of another version, or damaged.
    """
    check_readers()
    tower, llm = (weights_of(wheel, wheels) for wheel in (TOWER, LLM))
    if trained is not None and not trained.exists():
        raise PartsError(f"there is no {trained}; --untrained does without it")
    weights = assembled_weights(tower, llm, trained)
    out.mkdir(parents=True, exist_ok=True)
    config = model_config()
    config.save_pretrained(out)
    ends = {name: getattr(config.text_config, name) for name in END_TOKENS}
    GenerationConfig(**ends).save_pretrained(out)
    make_processor(read_tokenizer(llm)).save_pretrained(out)
    # The tower's large constants need float32; its attention decides what is kept.
    saved = {
        name: tensor.contiguous().to(
            torch.float32 if name.startswith("vision_tower") else torch.bfloat16
        )
        for name, tensor in weights.items()
    }
    save_file(saved, out / "model.safetensors", metadata={"format": "pt"})


def check_readers() -> None:
    """Whether the packages are there that read the wheels' files."""
    for package in ("gguf", "onnx"):
        if find_spec(package) is None:
            raise PartsError(f"{package} is not installed; run `pip install gguf onnx`")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("out/llava-next-smol"))
    parser.add_argument("--wheels", type=Path, default=FOLDER, help="folder of wheels")
    parser.add_argument("--trained", type=Path, default=TRAINED)
    parser.add_argument("--untrained", action="store_true")
    args = parser.parse_args(argv)
    try:
        assemble(args.out, args.wheels, None if args.untrained else args.trained)
    except PartsError as error:
        sys.exit(f"training.smol.assemble: {error}")
    print(f"{os.path.relpath(args.out)}: try `vllm serve {args.out}`")


if __name__ == "__main__":
    main()
