import json
import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import same, verses

import sample
import train
from common import gpt2, run_state
from common.arguments import load_config
from common.cli import optional_package
from common.dataset import load_dataset
from common.errors import UserError
from model import GPT, GPTConfig
from prepare import prepare

os.environ["HF_HUB_OFFLINE"] = "1"
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

SIZES = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 32}


def save_gpt2(folder: Path, **changes) -> GPT2LMHeadModel:
    """A small GPT-2 whose gains and biases all differ, and its folder as transformers saves it."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**(SIZES | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.2)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    """A folder with a small GPT-2, and the model itself."""
    folder = tmp_path_factory.mktemp("gpt2")
    return folder, save_gpt2(folder)


@pytest.fixture
def theirs(saved_once, folder):
    """A small GPT-2 of transformers; the current folder has it in the folder gpt2_here."""
    saved, model = saved_once
    shutil.copytree(saved, "gpt2_here")
    return model


def change_config(**changes) -> None:
    """Changes what gpt2_here/config.json says; None removes it."""
    path = Path("gpt2_here/config.json")
    config = json.loads(path.read_text()) | changes
    kept = {name: value for name, value in config.items() if value is not None}
    path.write_text(json.dumps(kept))


def load_error() -> str:
    """The one-line error of loading gpt2_here."""
    with pytest.raises(UserError) as error:
        gpt2.load_model("gpt2_here")
    assert "\n" not in str(error.value)
    return str(error.value)


# -------------------------------------------------------------------------------------------------
# the weights


def assert_same_predictions(theirs: GPT2LMHeadModel) -> None:
    """Our logits are theirs minus their mean at each position, which changes no probability."""
    saved = gpt2.load_model("gpt2_here")
    ours = GPT(saved.settings()).eval()
    ours.load_state_dict(saved.model)
    ids = torch.randint(50257, (2, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.1
    expected = expected - expected.mean(-1, keepdim=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_gpt2_predicts_the_same_as_in_transformers(theirs):
    assert_same_predictions(theirs)


@pytest.mark.parametrize("changes", [{"tie_word_embeddings": False}, {"n_inner": 24}])
def test_variants_of_gpt2_predict_the_same(folder, changes):
    assert_same_predictions(save_gpt2(folder / "gpt2_here", **changes))


def test_quantized_weights_are_refused(theirs):
    path = "gpt2_here/model.safetensors"
    save_file({name: w.to(torch.int8) for name, w in load_file(path).items()}, path)
    with pytest.raises(UserError, match="is quantized"):
        gpt2.load_model("gpt2_here")


def test_files_with_the_names_and_masks_of_openais_are_read(theirs):
    path = "gpt2_here/model.safetensors"
    weights = {name.removeprefix("transformer."): w for name, w in load_file(path).items()}
    for i in range(2):
        weights[f"h.{i}.attn.bias"] = torch.ones(1, 1, 32, 32).tril()
        weights[f"h.{i}.attn.masked_bias"] = torch.tensor(-1e4)
    save_file(weights, path)
    assert_same_predictions(theirs)


def test_our_names_and_shapes_become_those_of_transformers(theirs):
    sizes = {"vocab_size": 50257, "block_size": 32, "n_layers": 2, "n_heads": 2, "d_model": 8}
    ours = GPT(GPTConfig(**sizes, **gpt2.GPT2_ARCHITECTURE, bias=True))
    converted = gpt2.renamed(ours, gpt2.GPT2_MODULES)
    expected = {name: weight.shape for name, weight in theirs.named_parameters()}
    assert {name: weight.shape for name, weight in converted.items()} == expected


# -------------------------------------------------------------------------------------------------
# training and sampling


@pytest.fixture
def fine_tuning(theirs, bpe):
    """The command line of a run that starts from gpt2_here."""
    Path("verses.txt").write_text(verses(400))
    prepare("verses_bpe", ["verses.txt"])
    prepare("verses_byte", ["verses.txt"])
    Path("other_shape.py").write_text("n_layers = 5\nnorm_type = 'none'\n")
    settings = {"dataset": "verses_bpe", "init_from": "gpt2_here", "max_steps": 1}
    settings |= {"warmup_steps": 0, "sample_interval": 0, "batch_size": 4, "device": "cpu"}
    return ["other_shape.py", *(f"--{name}={value}" for name, value in settings.items())]


def test_a_run_takes_the_architecture_and_the_weights_of_gpt2(fine_tuning):
    config, saved = load_config(fine_tuning)
    assert config.n_layers == 2
    assert config.norm_type == "layernorm"
    assert config.block_size == 32
    assert config.bias
    config = replace(config, vocab_size=50257)
    dataset = load_dataset("verses_bpe")
    run = train.Run(config, dataset, torch.device("cpu"), torch.float32)
    run_state.init_from(run, saved)
    assert same(run.model.state_dict(), saved.model)


def test_training_starts_from_gpt2(fine_tuning, capsys):
    assert train.main(fine_tuning) == 0
    assert "with the weights of gpt2_here" in capsys.readouterr().out


def test_gpt2_needs_a_dataset_with_its_own_tokens(fine_tuning, capsys):
    assert train.main([*fine_tuning, "--dataset=verses_byte"]) == 1
    error = capsys.readouterr().err
    assert "the model uses bpe tokens, the dataset byte tokens" in error


def test_sampling_from_gpt2(theirs, bpe, capsys):
    arguments = ["--ckpt=gpt2_here", "--prompt=the king", "--max_new_tokens=3", "--device=cpu"]
    assert sample.main(arguments) == 0
    assert capsys.readouterr().out.startswith("the king")


# -------------------------------------------------------------------------------------------------
# what can't be loaded


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"model_type": "llama"}, "has model_type 'llama'; GPT-2 has 'gpt2'"),
        ({"activation_function": "relu"}, "has activation_function 'relu'; GPT-2 has 'gelu_new'"),
        ({"scale_attn_by_inverse_layer_idx": True}, "has scale_attn_by_inverse_layer_idx True"),
        ({"vocab_size": 65}, "has 65 tokens; GPT-2 has 50257"),
        ({"n_embd": 17}, "does not describe a GPT-2: d_model (17) must be a multiple"),
        ({"n_embd": "wide"}, "does not describe a GPT-2"),
        ({"n_embd": 8.0}, "does not describe a GPT-2"),
        ({"n_embd": 2**62}, "does not describe a GPT-2"),
        ({"n_layer": None}, "does not describe a GPT-2: it lacks n_layer"),
        ({"n_embd": 10}, "the shape of transformer.wte.weight, (50257, 8), contradicts config"),
        ({"n_layer": 3}, "lacks transformer.h.2.ln_1.weight"),
        ({"n_layer": 1}, "has weights that config.json does not describe: transformer.h.1."),
    ],
)
def test_a_model_that_is_not_gpt2_is_refused(theirs, changes, message):
    change_config(**changes)
    assert message in load_error()


@pytest.mark.parametrize(
    "name, content",
    [
        ("vocab.json", {"other": 0}),
        ("tokenizer.json", {"model": {"vocab": {"other": 0}}}),
        ("tokenizer.json", []),
    ],
)
def test_a_model_with_other_tokens_than_gpt2_is_refused(theirs, bpe, name, content):
    Path("gpt2_here", name).write_text(json.dumps(content))
    assert name in load_error()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("content", [b"", b"[]", b"\xff" * 100])
def test_damaged_files_are_named(theirs, name, content):
    Path("gpt2_here", name).write_bytes(content)
    assert name in load_error()


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_files_are_named(theirs, name):
    Path("gpt2_here", name).unlink()
    assert name in load_error()


@pytest.mark.parametrize(
    "path, package", [("gpt2_here", "safetensors"), ("gpt2", "huggingface_hub")]
)
def test_missing_packages_are_named(theirs, monkeypatch, path, package):
    for name in ("safetensors", "safetensors.torch", "huggingface_hub"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(UserError, match=f"{package} is not installed: pip install transformers"):
        gpt2.load_model(path)


def test_a_package_that_lacks_another_one_is_not_called_missing(folder, monkeypatch):
    Path("half_installed.py").write_text("import yamlish")
    monkeypatch.syspath_prepend(folder)
    with pytest.raises(
        UserError, match=r"half_installed can't be imported \(No module named 'yaml"
    ):
        optional_package("half_installed")


# -------------------------------------------------------------------------------------------------
# published models


@pytest.fixture
def hub(monkeypatch):
    """Calls answer(repository, allow_patterns) instead of downloading from the hub."""

    def set_answer(answer):
        def snapshot_download(repository, allow_patterns):
            return answer(repository, allow_patterns)

        monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)

    return set_answer


def test_a_published_name_is_downloaded_without_files_that_are_not_needed(theirs, hub):
    requests = []

    def answer(*request):
        requests.append(request)
        return "gpt2_here"

    hub(answer)
    assert gpt2.load_model("gpt2-xl").settings().d_model == 8
    assert requests == [("openai-community/gpt2-xl", ["config.json", "model.safetensors"])]


def test_a_download_that_fails_is_one_clear_line(folder, hub):
    def answer(*_):
        raise ConnectionError("a long story\nin two lines")

    hub(answer)
    with pytest.raises(UserError, match="^can't download gpt2 from huggingface.co") as error:
        gpt2.load_model("gpt2")
    assert "\n" not in str(error.value)


def test_any_other_name_is_that_of_a_checkpoint(folder):
    with pytest.raises(UserError, match="checkpoint gpt2-huge not found"):
        gpt2.load_model("gpt2-huge")
