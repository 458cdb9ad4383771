import re
from dataclasses import replace
from pathlib import Path

import pytest

from common.arguments import load_config
from common.errors import UserError
from config import SETTINGS, Config
from model import GPT

ROOT = Path(__file__).parent.parent
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.fixture
def file(tmp_path):
    def write(text: str) -> str:
        (tmp_path / "some.py").write_text(text)
        return str(tmp_path / "some.py")

    return write


def test_command_line_beats_on_cpu_beats_file_beats_default(file, capsys):
    path = file(
        "n_layers = 2\nn_heads = 3\nmax_steps = 500\non_cpu = dict(n_heads=4, max_steps=200)\n"
    )
    config = load_config([path, "--device=cpu", "--max_steps=150"])
    assert (config.n_layers, config.n_heads, config.max_steps, config.d_model) == (
        2,
        4,
        150,
        Config.d_model,
    )
    assert capsys.readouterr().out.count("\n") == 1  # it says so in one line
    config = load_config(
        [path, "--device=cpu", "--d_model=8"]
    )  # fits on_cpu's 4 heads; what it replaces need not fit
    assert (config.n_heads, config.d_model) == (4, 8) and capsys.readouterr().out
    config = load_config([path, "--device=cpu", "--on_cpu=false"])
    assert (config.n_heads, config.max_steps) == (3, 500)
    assert capsys.readouterr().out == ""


def test_values_are_understood_as_people_write_them(file):
    path = file("learning_rate = 1\nmin_lr = None\nmax_steps = 2e3\nqk_norm = False\n")
    config = load_config(
        [path, "--warmup_steps", "1e2", "--tie_embeddings=False", "--compile=true", "--d_ff=none"]
    )
    assert config.learning_rate == 1.0 and isinstance(config.learning_rate, float)
    assert config.max_steps == 2000 and isinstance(config.max_steps, int)
    assert config.warmup_steps == 100 and config.tie_embeddings is False and config.qk_norm is False
    assert config.compile is True and config.d_ff is None and config.final_lr == 0.1


@pytest.mark.parametrize(
    "argument, words",
    [
        ("--learning_rat=1", "did you mean learning_rate"),
        ("--n_layer=4", "did you mean n_layers"),
        ("--n_layers=four", "n_layers must be a whole number, not 'four'"),
        ("--n_layers=2.5", "n_layers must be a whole number"),
        ("--max_steps=nan", "max_steps must be a whole number"),
        ("--dropout=high", "dropout must be a number"),
        ("--bias=1", "bias must be true or false"),
        ("--norm_type=batchnorm", "norm_type must be rmsnorm or layernorm or none"),
        ("--vocab_size=100", "comes from the dataset"),
        ("--n_heads=5", "multiple of n_heads"),
        ("--dropout=1", "dropout must lie in"),
        ("--micro_batch_size=5", "multiple of micro_batch_size"),
        ("--warmup_steps=9999", "must not be above max_steps"),
        ("--learning_rate=0", "learning_rate must be above 0"),
        ("--min_lr=1", "must not be above learning_rate"),
        ("--learning_rate=inf", "learning_rate must be above 0"),
        ("--run_name=a/b", "plain name"),
        ("--device=tpu", "device tpu can't be used here"),
        ("--on_cpu=perhaps", "on_cpu must be true or false"),
        ("stray", "settings are written --name=value"),
    ],
)
def test_bad_settings_are_refused_in_one_line(file, argument, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load_config([file(""), argument])
    assert error.value.status == 2 and "\n" not in str(error.value)


@pytest.mark.parametrize(
    "text, words",
    [
        ("n_layer = 4", "did you mean n_layers"),
        ("n_layers = '4 of them'", "n_layers must be a whole number"),
        ("bias = 1", "bias must be true or false"),
        ("on_cpu = 3", "on_cpu must be a dict"),
        ("on_cpu = dict(n_layer=3)", "did you mean n_layers"),
        ("n_layers = \n", "line 1: SyntaxError"),
        ("n_layers = 4\nx = 1 / 0\n", "line 2: ZeroDivisionError"),
    ],
)
def test_bad_config_files_are_refused_in_one_line(file, text, words):
    with pytest.raises(UserError, match=re.escape(words)) as error:
        load_config([file(text), "--device=cpu"])
    assert error.value.status == 2 and "\n" not in str(error.value)


def test_all_problems_are_said_at_once(file):
    with pytest.raises(UserError) as error:
        load_config([file("n_layers = 0\nbatch_size = 'big'"), "--dropout=2", "--beta1=1.5"])
    assert [
        name in str(error.value) for name in ("n_layers", "batch_size", "dropout", "beta1")
    ] == [True] * 4


def test_a_missing_config_file_is_named():
    with pytest.raises(UserError, match="nowhere.py"):
        load_config(["nowhere.py"])


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
@pytest.mark.parametrize("on_cpu", ["true", "false"])
def test_every_shipped_config_loads_and_teaches(path, on_cpu):
    config = load_config([str(path), "--device=cpu", f"--on_cpu={on_cpu}"])
    assert config.run_name != Config.run_name
    assert path.read_text().startswith(f"# python train.py configs/{path.name}\n")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_parameters_that_a_config_speaks_of_are_those_it_has(path):
    config = load_config([str(path), "--device=cpu", "--on_cpu=false"])
    vocab_size = {"char": 65, "byte": 256, "bpe": 50257}[config.dataset.rpartition("_")[2]]
    groups = GPT(replace(config, vocab_size=vocab_size)).parameter_groups()
    total, embeddings = (
        sum(p.numel() for p in ps) for ps in (sum(groups.values(), []), groups["embeddings"])
    )
    spoken = [
        int(n.replace(",", ""))
        for n in re.findall(r"\d[\d,]*,\d{3}(?= (?:parameters|in))", path.read_text())
    ]
    assert spoken and set(spoken) <= {total, embeddings, total - embeddings}


def test_shipped_configs_have_names_of_their_own():
    names = [
        load_config([str(path), "--device=cpu", "--on_cpu=false"]).run_name for path in CONFIGS
    ]
    assert len(set(names)) == len(names)


def test_help_lists_every_setting_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as end:
        load_config(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS.values():
        if setting.name != "vocab_size":
            assert f"--{setting.name}" in shown and " ".join(setting.help.split()[:3]) in shown


def test_the_readme_has_every_setting_with_its_default():
    rows = dict(
        re.findall(
            r"^\| `(\w+)` \| `?(.*?)`? \|", (ROOT / "README.md").read_text(), flags=re.MULTILINE
        )
    )
    for setting in SETTINGS.values():
        if setting.name != "vocab_size":
            assert rows[setting.name] == str(setting.default).lower(), setting.name
