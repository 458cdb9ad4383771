import json
import os
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, verses

import sample
import train
from common import checkpoint, gpt2
from common.arguments import architecture_of, load_config
from common.errors import UserError
from prepare import prepare

os.environ["HF_HUB_OFFLINE"] = "1"
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 16, "n_positions": 32}


def save_gpt2(**changes) -> GPT2LMHeadModel:
    """A folder gpt2_here as transformers saves GPT-2, with gains and biases that all differ."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**(SIZES | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained("gpt2_here")
    return model


def change_config(**changes) -> None:
    path = Path("gpt2_here/config.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def assert_same_logits(theirs: GPT2LMHeadModel) -> None:
    ours, _ = checkpoint.build(gpt2.load("gpt2_here"), torch.device("cpu"))
    ids = torch.randint(50257, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(ours(ids), theirs(ids).logits, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", [{}, {"tie_word_embeddings": False}, {"n_inner": 24}])
def test_gpt2_gives_the_logits_that_it_gives_in_transformers(bpe, changes):
    assert_same_logits(save_gpt2(**changes))


def test_names_without_prefix_and_with_masks_are_those_of_the_published_files(bpe):
    theirs = save_gpt2()
    weights = {
        name.removeprefix("transformer."): w
        for name, w in load_file("gpt2_here/model.safetensors").items()
    }
    masks = {f"h.{i}.attn.bias": torch.ones(1, 1, 32, 32).tril() for i in range(2)}
    masks |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(2)}
    save_file(weights | masks, "gpt2_here/model.safetensors")
    assert_same_logits(theirs)


def test_training_and_sampling_go_on_from_gpt2(bpe, capsys):
    save_gpt2()
    Path("verses.txt").write_text(verses(400))
    prepare("verses_bpe", ["verses.txt"])
    prepare("verses_byte", ["verses.txt"])
    Path("none.py").write_text("n_layers = 5\nnorm_type = 'none'\n")
    settings = {
        "dataset": "verses_bpe",
        "init_from": "gpt2_here",
        "max_steps": 1,
        "warmup_steps": 0,
        "device": "cpu",
    }
    config = load_config(["none.py", *(f"--{name}={value}" for name, value in settings.items())])
    assert (config.n_layers, config.norm_type, config.block_size, config.bias) == (
        2,
        "layernorm",
        32,
        True,
    )
    dataset = train.load_dataset("verses_bpe")
    run = train.Run(
        train.replace(config, vocab_size=50257), dataset, torch.device("cpu"), torch.float32
    )
    run.init_from("gpt2_here")
    expected = gpt2.load("gpt2_here")["model"]
    assert all(
        torch.equal(weight, expected[name]) for name, weight in run.model.state_dict().items()
    )
    arguments = [f"--{name}={TINY[name]}" for name in ("run_name", "batch_size", "sample_interval")]
    arguments += [f"--{name}={value}" for name, value in settings.items()]
    assert train.main(["none.py", *arguments]) == 0
    assert "with the weights of gpt2_here" in capsys.readouterr().out
    assert train.main(["none.py", *arguments, "--dataset=verses_byte"]) == 1
    assert "its tokens are those of bpe, not of byte" in capsys.readouterr().err
    assert train.main(["none.py", *arguments, "--n_layers=3"]) == 2
    assert (
        sample.main(
            [
                "--ckpt",
                "gpt2_here",
                "--max_new_tokens",
                "3",
                "--prompt",
                "the king",
                "--device",
                "cpu",
            ]
        )
        == 0
    )
    assert "the king" in capsys.readouterr().out


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, "model_type 'llama'; only GPT-2's 'gpt2'"),
        ({"activation_function": "relu"}, "activation_function 'relu'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx True"),
        ({"vocab_size": 65}, "a vocabulary of 65 tokens"),
        ({"n_embd": 17}, "config.json does not describe a GPT-2: d_model"),
        ({"n_embd": "wide"}, "config.json does not describe a GPT-2"),
        ({"n_embd": 18}, "another shape of transformer.wte.weight than config.json says"),
        ({"n_layer": 3}, "lacks transformer.h.2.ln_1.weight"),
        ({"n_layer": 1}, "has weights that config.json says nothing of, such as h.1."),
    ],
)
def test_what_is_no_gpt2_is_refused_by_name(folder, changes, message):
    save_gpt2()
    change_config(**changes)
    with pytest.raises(UserError) as error:
        architecture_of("gpt2_here")
    assert message in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [None, b"", b"[]", b"\xff" * 100])
def test_missing_and_damaged_files_are_named(folder, name, content):
    save_gpt2()
    path = folder / "gpt2_here" / name
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(UserError, match=name) as error:
        gpt2.load("gpt2_here")
    assert "\n" not in str(error.value)


def test_a_published_name_without_a_network_is_one_clear_line(folder, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(folder))
    hub = gpt2.package("huggingface_hub")
    asked = []

    def refuse(repository, **options):
        asked.append((repository, options["allow_patterns"]))
        raise ConnectionError("a long story\nin two lines")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    with pytest.raises(UserError, match="^can't download gpt2-xl from huggingface.co") as error:
        architecture_of("gpt2-xl")
    assert "\n" not in str(error.value)
    assert asked == [("openai-community/gpt2-xl", ["config.json", "model.safetensors"])]
    with pytest.raises(UserError, match="there is no checkpoint gpt2-huge"):
        architecture_of("gpt2-huge")


def test_a_published_name_takes_what_was_downloaded(bpe, monkeypatch):
    save_gpt2()
    hub = gpt2.package("huggingface_hub")
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(bpe / "gpt2_here"))
    assert architecture_of("gpt2")["d_model"] == 16


def test_missing_packages_are_named(folder, monkeypatch):
    save_gpt2()
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for path in ("gpt2_here", "gpt2"):
        with pytest.raises(
            UserError, match="is not installed: pip install transformers safetensors tokenizers"
        ):
            gpt2.load(path)
