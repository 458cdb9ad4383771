"""The settings, and the config files in configs/."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import ROOT

from common.arguments import load_config
from config import SETTINGS, Config, convert, make_config, unknown_setting
from model import GPT

SHIPPED = sorted(path.stem for path in (ROOT / "configs").glob("*.py"))
VOCABULARIES = {"char": 65, "byte": 256, "bpe4096": 4096}  # char: Shakespeare's


def shipped(name: str) -> str:
    return str(ROOT / "configs" / f"{name}.py")


# converting values


@pytest.mark.parametrize(
    "name, given, value",
    [
        ("n_layers", "2", 2),
        ("max_steps", "1e3", 1000),
        ("max_steps", 2e3, 2000),
        ("seed", str(2**62 + 1), 2**62 + 1),  # beyond the precision of a float
        ("learning_rate", 1, 1.0),
        ("learning_rate", "3e-4", 3e-4),
        ("min_lr", None, None),
        ("min_lr", "none", None),
        ("d_ff", "None", None),
        ("bias", "True", True),
        ("bias", "false", False),
        ("compile", "auto", "auto"),
        ("compile", "true", True),
        ("save_interval", "10min", "10min"),
        ("save_interval", "500", 500),
        ("norm_type", "none", "none"),  # a choice, not a missing value
        ("run_name", "none", "none"),
    ],
)
def test_values_are_converted_to_the_type_of_their_setting(name, given, value):
    converted = convert(SETTINGS[name], given)
    assert converted == value
    assert type(converted) is type(value)


@pytest.mark.parametrize("value", [np.array([1, 2]), [1], (1,), {}, object()])
@pytest.mark.parametrize("name", ["optimizer", "n_layers", "learning_rate", "bias", "min_lr"])
def test_other_values_are_refused_by_the_name_of_the_setting(name, value):
    with pytest.raises(ValueError, match=f"{name} must be"):
        convert(SETTINGS[name], value)


def test_the_values_of_every_choice_are_accepted():
    for name, setting in SETTINGS.items():
        for choice in setting.choices:
            assert convert(setting, choice) == choice, name
            assert convert(setting, str(choice)) == choice, name


@pytest.mark.parametrize(
    "name, near", [("n_layer", "n_layers"), ("N_LAYERS", "n_layers"), ("bacth_size", "batch_size")]
)
def test_an_unknown_name_is_reported_with_a_similar_one(name, near):
    assert unknown_setting(name) == f"unknown setting {name}: did you mean {near}?"


def test_an_unknown_name_without_a_similar_one_points_to_the_help():
    assert unknown_setting("xyz") == "unknown setting xyz: python train.py --help lists them all"


def test_vocab_size_is_not_a_setting():
    assert "vocab_size" not in SETTINGS
    assert unknown_setting("vocab_size") == "vocab_size comes from the dataset and can't be set"


def test_the_learning_rate_ends_at_a_tenth_by_default():
    assert make_config({"learning_rate": 1}).final_lr == 0.1
    assert make_config({"learning_rate": 1, "min_lr": 0}).final_lr == 0


def test_choices_are_checked_in_python_too():
    for name, setting in SETTINGS.items():
        if len(setting.choices) > 1:
            with pytest.raises(ValueError, match=f"{name} must be"):
                Config(**{name: "other"})


# config files


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("on_cpu", ["true", "false"])
def test_every_config_loads(name, on_cpu):
    load_config([shipped(name), "--device=cpu", f"--on_cpu={on_cpu}"])


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_config_begins_with_its_command(name):
    with open(shipped(name)) as file:
        assert file.readline() == f"# python train.py configs/{name}.py\n"


def test_shipped_configs_have_different_run_names():
    names = {load_config([shipped(name), "--device=cpu"])[0].run_name for name in SHIPPED}
    assert len(names) == len(SHIPPED)
    assert Config.run_name not in names


@pytest.mark.parametrize("name", SHIPPED)
def test_the_number_of_parameters_in_a_shipped_config_is_correct(name):
    config, _ = load_config([shipped(name), "--device=cpu", "--on_cpu=false"])
    vocab_size = VOCABULARIES[config.dataset.rpartition("_")[2]]
    with torch.device("meta"):  # no memory for the weights
        model = GPT(replace(config, vocab_size=vocab_size))
    total = sum(p.numel() for p in model.parameters())
    embeddings = sum(p.numel() for p in model.parameter_groups()["embeddings"])
    with open(shipped(name)) as file:
        numbers = re.findall(r"\d[\d,]*,\d{3}(?= (?:parameters|in))", file.read())
    stated = {int(number.replace(",", "")) for number in numbers}
    assert stated
    assert stated <= {total, embeddings, total - embeddings}
