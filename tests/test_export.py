import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import export
from common import checkpoint
from common.tokenizer import ByteTokenizer, CharTokenizer
from config import Config
from model import GPT, GPTConfig

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

GPT2 = {"norm_type": "layernorm", "pos_type": "learned", "mlp_type": "gelu", "qk_norm": False}
KINDS = {
    "Qwen3": {},
    "Qwen3, untied": {"tie_embeddings": False},
    "Llama": {"qk_norm": False},
    "Llama, biases, untied": {"qk_norm": False, "bias": True, "tie_embeddings": False},
    "GPT2": GPT2,
    "GPT2, biases": GPT2 | {"bias": True},
    "GPT2, biases, untied, narrow": GPT2 | {"bias": True, "tie_embeddings": False, "d_ff": 24},
}
TEXTS = [
    "To be, or not\nto be", "a\r\nb\rc\n\n\n\td", "  two  spaces   before .  ,  n't 's  ", "naïve café — “quoted”",
    "\U0001f468\u200d\U0001f469 🏳️‍🌈 e\u0301 \x85\u2028\x00\x7f", "<|endoftext|> <unk> <s></s> [UNK] ##a Ġ ▁", "\n", "",
]  # fmt: skip


def characters(n: int) -> CharTokenizer:
    return CharTokenizer("".join(map(chr, range(ord("0"), ord("0") + n))))


def save(model: GPT, tokenizer, **changes) -> None:
    """A checkpoint run_best.pt of this model."""
    state = {
        "model": model.state_dict(), "raw_model": {}, "optimizers": [], "scaler": {}, "step": 1500, "best_step": 1500,
        "config": asdict(Config(**asdict(model.config))), "best_val_loss": 1.2345, "tokenizer": tokenizer.to_dict(),
        "dataset_fingerprint": "f", "run_id": "r",
    }  # fmt: skip
    checkpoint.save(Path("run_best.pt"), state | changes)


def make(tokenizer=None, noise=0.2, **changes) -> GPT:
    """A model with gains, biases and logits that all differ, and its checkpoint run_best.pt."""
    tokenizer = tokenizer or characters(65)
    sizes = {
        "n_layers": 2,
        "n_heads": 2,
        "d_model": 32,
        "block_size": 64,
        "vocab_size": tokenizer.vocab_size,
    }
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=noise)
    save(model, tokenizer)
    return model


def export_to(out: str = "hf") -> int:
    return export.main(["--ckpt", "run_best.pt", "--out", out])


@pytest.mark.parametrize("kind", KINDS)
def test_transformers_gives_the_same_logits(folder, kind):
    model = make(**KINDS[kind])
    assert export_to() == 0
    theirs, loaded = AutoModelForCausalLM.from_pretrained("hf", output_loading_info=True)
    assert not any(loaded.values()), loaded  # nothing missing, nothing left over
    assert type(theirs).__name__.startswith(kind.split(",")[0]) and theirs.dtype == torch.float32
    assert json.load(open("hf/config.json"))["architectures"] == [type(theirs).__name__]
    assert theirs.config.max_position_embeddings == 64
    ids = torch.randint(65, (3, 64))
    with torch.no_grad():
        expected, found = model(ids), theirs(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "GPT2"])
def test_greedy_text_is_the_same_to_the_end_of_a_long_block(folder, kind):
    model = make(noise=0.6, **(KINDS[kind] | {"block_size": 1200, "tie_embeddings": False}))
    assert export_to() == 0
    start = torch.tensor([[5, 3, 8]])
    theirs = AutoModelForCausalLM.from_pretrained("hf").generate(
        start, max_new_tokens=1100, do_sample=False
    )
    assert theirs.tolist() == model.generate(start, 1100, temperature=0).tolist()
    assert len(set(theirs[0, -500:].tolist())) > 10  # no loop of a few tokens


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "GPT2"])
def test_no_id_of_characters_starts_or_stops_a_text(folder, kind):
    make(**KINDS[kind])
    assert export_to() == 0
    theirs = AutoModelForCausalLM.from_pretrained("hf")
    assert (
        theirs.generation_config.eos_token_id is None
        and theirs.generation_config.bos_token_id is None
    )
    assert theirs.config.eos_token_id is None and theirs.config.bos_token_id is None


@pytest.fixture
def tokenizers(folder, request):
    """tokenizers(kind): ours, with theirs of an export."""

    def make_both(kind):
        if kind == "bpe":
            request.getfixturevalue("bpe")
        ours = checkpoint.tokenizers.from_dict(
            {"kind": kind, "characters": "".join(sorted(set("".join(TEXTS))))}
        )
        make(ours, n_layers=1, n_heads=1, d_model=4)
        assert export_to() == 0
        return ours, AutoTokenizer.from_pretrained("hf")

    return make_both


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_ids_and_texts_are_the_same(tokenizers, kind):
    ours, theirs = tokenizers(kind)
    assert len(theirs) == ours.vocab_size and not theirs.clean_up_tokenization_spaces
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist(), text
        assert theirs.decode(ids) == text == theirs.decode(ids, skip_special_tokens=True)
    for i in (
        range(256) if kind == "byte" else range(0, ours.vocab_size, 97)
    ):  # whole characters or not
        assert theirs.decode([i]) == ours.decode([i])
    assert theirs.eos_token_id == (50256 if kind == "bpe" else None) == theirs.bos_token_id


def test_bytes_that_are_no_text_are_decoded_as_ours_are(tokenizers):
    ours, theirs = tokenizers("byte")
    for _ in range(50):
        ids = torch.randint(256, (40,)).tolist()
        assert theirs.decode(ids) == ours.decode(ids)


@pytest.mark.parametrize("kind", ["Qwen3", "Llama", "GPT2"])
def test_a_pipeline_that_is_told_nothing_stays_within_the_block(folder, kind):
    make(ByteTokenizer(), **KINDS[kind])
    assert export_to() == 0
    [result] = pipeline("text-generation", "hf")("The king")
    assert result["generated_text"].startswith("The king")
    assert len(AutoTokenizer.from_pretrained("hf")(result["generated_text"])["input_ids"]) >= 8 + 32


def test_an_unknown_character_is_an_error_and_not_left_out(tokenizers):
    _, theirs = tokenizers("char")
    for text in ("ß", "to ß be", "日本"):
        with pytest.raises(Exception, match="not found in the vocabulary"):
            theirs(text)
    assert "raises an error" in open("hf/README.md").read()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"norm_position": "post"}, "norm_position=post"),
        ({"norm_type": "none"}, "norm_type=none"),
        ({"pos_type": "none"}, "pos_type=none"),
        ({"mlp_type": "relu2"}, "mlp_type=relu2"),
        ({"bias": True}, "bias=true"),
        (GPT2 | {"qk_norm": True}, "qk_norm=true"),
        (GPT2 | {"norm_type": "rmsnorm"}, "norm_type=rmsnorm"),
    ],
)
def test_what_has_no_counterpart_is_refused_by_name(folder, capsys, changes, named):
    make(**changes)
    assert export_to() == 1
    error = capsys.readouterr().err
    assert f"transformers has no counterpart of {named}:" in error and error.count("\n") == 1
    assert not os.path.exists("hf")


def test_the_card_says_what_was_measured(folder):
    model = make(ByteTokenizer())
    assert export_to() == 0
    card = open("hf/README.md").read()
    count = sum(parameter.numel() for parameter in model.parameters())
    for figure in (
        f"{count:,}",
        "1,500 steps",
        "1.2345",
        "shakespeare_char",
        "64 tokens",
        "random weights",
        "'hf'",
    ):
        assert figure in card, figure
    save(model, ByteTokenizer(), step=1700)
    assert export_to() == 0
    assert (
        "the lowest of the run, at step 1,500, not that of these weights"
        in open("hf/README.md").read()
    )
    save(model, ByteTokenizer(), best_val_loss=float("inf"))
    assert export_to() == 0
    assert "not measured" in open("hf/README.md").read()


def test_only_an_earlier_export_is_replaced(folder, capsys):
    make()
    (folder / "hf").mkdir()
    assert export_to() == 0
    make(n_layers=1)
    assert export_to() == 0 and json.load(open("hf/config.json"))["num_hidden_layers"] == 1
    for out, name, text in (
        ("hf", "notes.txt", "mine"),
        ("a", "config.json", "{}"),
        ("b", "README.md", "mine"),
    ):
        (folder / out).mkdir(exist_ok=True)
        (folder / out / name).write_text(text)
        before = {path.name: path.read_bytes() for path in (folder / out).iterdir()}
        assert export_to(out) == 1 and "not an earlier export" in capsys.readouterr().err
        assert {path.name: path.read_bytes() for path in (folder / out).iterdir()} == before
    assert export_to("run_best.pt") == 1 and "not an earlier export" in capsys.readouterr().err


def test_an_export_that_fails_leaves_what_was_there(folder, monkeypatch, capsys):
    make()
    assert export_to() == 0
    before = (folder / "hf" / "model.safetensors").read_bytes()
    make(n_layers=1)
    write = type(folder).write_text

    def full(path, *text, **options):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        return write(path, *text, **options)

    monkeypatch.setattr(type(folder), "write_text", full)
    assert export_to() == 1 and export_to("new") == 1
    assert capsys.readouterr().err.count("error: No space left on device\n") == 2
    assert sorted(path.name for path in folder.iterdir()) == ["hf", "run_best.pt"]
    assert (folder / "hf" / "model.safetensors").read_bytes() == before


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    make()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    assert export_to() == 1
    assert (
        "safetensors is not installed: pip install transformers safetensors tokenizers"
        in capsys.readouterr().err
    )
    assert not os.path.exists("hf")
