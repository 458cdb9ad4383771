"""Where the values of the settings come from."""

import re
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from common import checkpoint
from common.arguments import load_config, parse_arguments, read_file, resumed_config
from common.checkpoint import Checkpoint
from common.errors import UserError
from config import SETTINGS, Config
from train import train

LAST, BEST = "out/tiny_last.pt", "out/tiny_best.pt"


@pytest.fixture
def config_file(folder):
    """config_file(text): the path of a config file with this text."""

    def write(text: str) -> str:
        Path("some.py").write_text(text)
        return "some.py"

    return write


# a new run


def test_the_command_line_overrides_on_cpu_the_file_and_the_defaults(config_file):
    path = config_file(
        "n_layers = 2\nn_heads = 3\nmax_steps = 500\non_cpu = dict(n_heads=4, max_steps=200)\n"
    )
    config, saved = load_config([path, "--device=cpu", "--max_steps=150"])
    assert saved is None
    assert config.max_steps == 150
    assert config.n_heads == 4
    assert config.n_layers == 2
    assert config.d_model == Config.d_model


def test_on_cpu_does_not_apply_on_a_gpu(config_file, monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr("common.arguments.pick_device", lambda name: (gpu, ""))
    path = config_file("n_heads = 3\non_cpu = dict(n_heads=4)\n")
    assert load_config([path])[0].n_heads == 3


def test_on_cpu_reports_every_value_and_what_it_overrides(config_file, capsys):
    path = config_file("n_heads = 3\non_cpu = dict(n_heads=4, batch_size=8, max_steps=200)\n")
    load_config([path, "--device=cpu", "--max_steps=150"])
    printed = capsys.readouterr().out
    assert "config   some.py\non_cpu   on a CPU, the config's on_cpu block applies" in printed
    assert "n_heads=4 instead of 3, batch_size=8\n" in printed
    assert "max_steps" not in printed


def test_on_cpu_false_ignores_the_block(config_file, capsys):
    path = config_file("n_heads = 3\non_cpu = dict(n_heads=4)\n")
    config, _ = load_config([path, "--device=cpu", "--on_cpu=false"])
    assert config.n_heads == 3
    assert capsys.readouterr().out == "config   some.py\n"


def test_values_that_on_cpu_replaces_need_not_fit_the_command_line(config_file):
    path = config_file("n_heads = 3\non_cpu = dict(n_heads=4)\n")
    config, _ = load_config([path, "--device=cpu", "--d_model=8"])
    assert config.n_heads == 4


def test_settings_can_be_written_with_a_space_and_booleans_without_a_value():
    path, given, _ = parse_arguments(["a.py", "--max_steps", "5", "--resume", "--bias", "false"])
    assert path == "a.py"
    assert given == {"max_steps": "5", "resume": "true", "bias": "false"}


def test_a_config_file_can_import_and_compute(config_file):
    path = config_file("import math\n_width = 16\nd_model = int(math.sqrt(_width)) * 8\n")
    assert read_file(path) == ({"d_model": 32}, {})


def test_all_problems_are_reported_at_once(config_file):
    path = config_file("n_layers = 0\nbatch_size = 'big'\n")
    with pytest.raises(UserError) as error:
        load_config([path, "--dropout=2", "--beta1=1.5"])
    for name in ("n_layers", "batch_size", "dropout", "beta1"):
        assert name in str(error.value)


def test_help_lists_every_setting_with_its_meaning(capsys):
    with pytest.raises(SystemExit) as end:
        load_config(["--help"])
    assert end.value.code == 0
    shown = " ".join(capsys.readouterr().out.split())
    for setting in SETTINGS.values():
        assert f"--{setting.name}" in shown
        assert " ".join(setting.help.split()[:3]) in shown


def test_imports_functions_and_helper_variables_are_not_settings(config_file):
    text = (
        "from math import sqrt\nhours = 8\ndef half(x): return x / 2\n"
        "d_model = int(sqrt(64)) * hours\n"
    )
    assert read_file(config_file(text)) == ({"d_model": 64}, {})


@pytest.mark.parametrize(
    "line, problem",
    [
        ("n_layer = 4", "unknown setting n_layer: did you mean n_layers?"),
        ("lr = 4", "unknown setting lr: did you mean learning_rate?"),
        ("n_layer = 2,", "unknown setting n_layer: did you mean n_layers?"),
        ("epochs = 2", "a helper variable needs a name like _epochs"),
        ("oncpu = dict(n_layers=2)", "unknown setting oncpu: did you mean on_cpu?"),
        ("on_gpu = dict(n_layers=2)", "unknown setting on_gpu: did you mean on_cpu?"),
        ("on_cpu = dict(n_layer=2)", "unknown setting n_layer: did you mean n_layers?"),
        ("on_cpu = dict(resume=True)", "on_cpu can't set resume"),
        ("learning_rate: 1e-2", "line 1 sets nothing; write name = value"),
        ("max_steps = 12\nmax_steps == 3", "line 2 sets nothing; write name = value"),
        ("max_steps = 12\n'note'\n{'n_layers': 4}", "line 3 sets nothing; write name = value"),
        ("if True:\n    n_layers: 8", "line 2 sets nothing; write name = value"),
        ("n_layers, n_heads = 4, 4\nn_layers = 2", "n_layers is set more than once, in lines 1"),
        ("on_cpu = {'seed': 1, 'seed': 2}", "'seed' is set more than once, in line 1"),
        ("warmup = 10", "unknown setting warmup"),
        ("plans = dict(n_layers=2)", "unknown setting plans"),
        ("on_cpu = dict(on_cpu=1)", "unknown setting on_cpu: python train.py --help"),
        (
            "class Config:\n    n_layers = 3",
            "line 2 sets nothing: n_layers is inside class Config:",
        ),
        ("def f():\n    seed = 3\nf()", "line 2 sets nothing: seed is inside def f():"),
        (
            "if __name__ == '__main__':\n    seed = 3",
            "line 2 sets nothing: seed is inside if __name__ == '__main__':",
        ),
    ],
)
def test_a_line_that_sets_nothing_is_an_error(config_file, line, problem):
    for argv in ([], ["--resume"]):
        with pytest.raises(UserError, match=re.escape(problem)):
            load_config([config_file(f"{line}\n"), *argv])


def test_a_syntax_error_in_an_imported_module_is_not_called_one_of_the_config(
    config_file, folder, monkeypatch
):
    monkeypatch.syspath_prepend(folder)
    Path("base_settings.py").write_text("\n" * 36 + "seed = = 3\n")
    with pytest.raises(UserError, match=r"some.py, line 2: .*\(base_settings.py, line 37\)"):
        load_config([config_file("\nfrom base_settings import *\n")])


def test_a_setting_that_is_set_twice_is_an_error(config_file):
    path = config_file("n_layers = 2\nseed = 1\nif seed:\n    seed = 2\n\nn_layers = 3")
    with pytest.raises(UserError, match="n_layers is set more than once, in lines 1 and 6$"):
        load_config([path])
    with pytest.raises(UserError, match="seed is set more than once, in lines 1 and 2$"):
        load_config([config_file("seed: int = 2\nseed: int = 3")])


def test_a_config_file_is_a_python_file(folder):
    Path("tiny.json").write_text('{"n_layers": 1}')
    with pytest.raises(UserError, match="a config file is a Python file, not tiny.json"):
        load_config(["tiny.json"])


def test_a_wrong_value_causes_no_second_error(config_file):
    with pytest.raises(UserError) as error:
        load_config([config_file("n_heads = 'x'\n"), "--d_model=128", "--max_steps=-5"])
    assert str(error.value) == (
        "n_heads must be a whole number, not 'x'; max_steps must be at least 1, not -5"
    )


def test_a_warmup_longer_than_the_run_is_shortened_unless_it_was_asked_for(config_file, capsys):
    path = config_file("warmup_steps = 50\n")
    config, _ = load_config([path, "--max_steps=40"])
    assert config.warmup_steps == 4
    assert "4 steps instead of 50, because the run has only 40" in capsys.readouterr().out
    with pytest.raises(UserError, match="must not be above max_steps"):
        load_config([path, "--max_steps=40", "--warmup_steps=50"])


def test_fine_tuning_has_a_lower_learning_rate_unless_one_is_given(finished_run, config_file):
    path = config_file("learning_rate = 1e-2\nmin_lr = 1e-3\n")
    config, _ = load_config([path, f"--init_from={BEST}"])
    assert config.learning_rate == pytest.approx(1e-3)
    assert config.min_lr == pytest.approx(1e-4)
    config, _ = load_config([path, f"--init_from={BEST}", "--min_lr=2e-4"])
    assert config.min_lr == 2e-4
    with pytest.raises(UserError, match="min_lr=0.005 is above the learning rate for fine-tuning"):
        load_config([path, f"--init_from={BEST}", "--min_lr=5e-3"])
    config, _ = load_config([path, f"--init_from={BEST}", "--learning_rate=5e-3"])
    assert config.learning_rate == 5e-3
    config, _ = load_config([path])
    assert config.learning_rate == 1e-2
    path = config_file(f"init_from = {BEST!r}\nlearning_rate = 1e-4\n")
    assert load_config([path])[0].learning_rate == 1e-4
    path = config_file("init_from = None\nlearning_rate = 1e-2\n")  # not for fine-tuning
    assert load_config([path, f"--init_from={BEST}"])[0].learning_rate == pytest.approx(1e-3)
    path = config_file(f"init_from = {BEST!r}\non_cpu = dict(learning_rate=2e-4)\n")
    assert load_config([path, "--device=cpu"])[0].learning_rate == 2e-4


def test_fine_tuning_has_no_strong_weight_decay_unless_it_is_asked_for(finished_run, config_file):
    path = config_file("weight_decay = 2.0\n")
    options = [path, f"--init_from={BEST}", "--learning_rate=1e-4"]
    assert load_config(options)[0].weight_decay == 0.1
    assert load_config([*options, "--weight_decay=0.5"])[0].weight_decay == 0.5
    assert load_config([path])[0].weight_decay == 2.0
    path = config_file("weight_decay = 0.0\n")
    assert load_config([path, f"--init_from={BEST}"])[0].weight_decay == 0.0


@pytest.mark.parametrize("wrong", ["config/shakespeare_char.py", "configs/shakespeare_char"])
def test_the_config_file_that_was_meant_is_named(wrong):
    with pytest.raises(UserError, match="did you mean configs/shakespeare_char.py"):
        load_config([wrong])


def test_a_config_file_like_none_of_the_others_gets_a_list():
    with pytest.raises(
        UserError, match="config file configs/foo.py not found; available: configs/capstone"
    ):
        load_config(["configs/foo.py"])


def test_the_configs_are_found_from_any_folder(folder):
    config, _ = load_config(["configs/shakespeare_quick.py"])
    assert config.run_name == "quick"


# a resumed run


@pytest.fixture
def saved(tiny):
    """The checkpoint of a run."""
    config = asdict(tiny(vocab_size=5))
    return Checkpoint({}, config, {}, {}, [], {}, 12, 12, 1.0, 12, "fingerprint", "id")


def test_a_resumed_run_has_the_settings_of_its_checkpoint(finished_run, config_file, capsys):
    path = config_file("n_layers = 7\nmax_steps = 999\non_cpu = dict(n_heads=8)\n")
    arguments = ["--run_name=tiny", "--resume", "--max_steps=16", "--device=cpu"]
    config, start = load_config([path, *arguments])
    assert start.run_id == checkpoint.load(LAST).run_id
    assert config.max_steps == 16
    assert config.resume
    assert config.n_layers == 2
    assert config.n_heads == 2
    printed = capsys.readouterr().out
    assert printed.startswith("changed for the rest of the run: max_steps=16 (was 12)\n")
    assert "n_layers=7 (the run has 2)" in printed
    assert "n_heads=8 (the run has 2)" in printed
    assert "n_layers, n_heads can be changed in a new run only" in printed
    assert "max_steps=999" not in printed  # the command line sets it


def test_a_config_for_fine_tuning_that_was_edited_is_compared(finished_run, config_file, capsys):
    text = f"run_name = 'tuned'\nmax_steps = 2\nwarmup_steps = 0\ninit_from = {BEST!r}\n"
    settings = "dataset = 'verses_char'\ndevice = 'cpu'\nlearning_rate = "
    train(load_config([config_file(text + settings + "1e-4\n")])[0])
    capsys.readouterr()
    load_config([config_file(text + settings + "5e-5\n"), "--resume"])
    assert "learning_rate=5e-05 (the run has 0.0001)" in capsys.readouterr().out


def test_a_run_of_another_name_is_not_compared_with_the_default_config(finished_run, capsys):
    load_config(["--run_name=tiny", "--resume"])
    assert "not used" not in capsys.readouterr().out


@pytest.mark.parametrize("missing", [False, True])
def test_a_mistake_in_the_default_config_does_not_keep_other_runs_from_resuming(
    finished_run, monkeypatch, config_file, missing
):
    default = "gone.py" if missing else config_file("max_stepz = 3")
    monkeypatch.setattr("common.arguments.DEFAULT_FILE", default)
    _, start = load_config(["--run_name=tiny", "--resume"])
    assert start.step == 12
    for options in ([], ["--resume=false"]):
        with pytest.raises(UserError, match="not found|unknown setting max_stepz"):
            load_config(["--run_name=new", *options])


def test_a_moved_run_can_be_resumed(finished_run, config_file, capsys):
    shutil.move("out", "moved")
    shutil.move("moved/tiny_last.pt", "moved/renamed_last.pt")
    options = ["--out_dir=moved", "--run_name=renamed", "--resume"]
    config, _ = load_config([config_file(""), *options])
    assert config.path("last.pt") == Path("moved/renamed_last.pt")
    assert capsys.readouterr().out == ""


def test_every_changed_setting_of_a_resumed_run_is_reported(saved, capsys):
    changes = {"max_steps": "14", "eval_interval": "7", "learning_rate": "1e-2"}
    config = resumed_config(saved, changes)
    assert config.max_steps == 14
    printed = capsys.readouterr().out
    assert printed == (
        "changed for the rest of the run: max_steps=14 (was 12), eval_interval=7 (was 6)\n"
    )


@pytest.mark.parametrize(
    "changes, refused",
    [
        ({"n_layers": "3"}, "n_layers=3 (was 2)"),
        ({"seed": "5", "max_steps": "20"}, "seed=5 (was 1337)"),
        ({"dropout": "0.5", "optimizer": "muon"}, "dropout=0.5 (was 0.0), optimizer=muon (was"),
        ({"dataset": "other_char"}, "dataset=other_char (was verses_char)"),
        ({"batch_size": "8"}, "batch_size=8 (was 4)"),
        ({"batch_order": "random"}, "batch_order=random (was shuffled)"),
        ({"init_from": "gpt2"}, "init_from=gpt2 (was None)"),
    ],
)
def test_a_resumed_run_cannot_change_its_model_or_its_batches(saved, changes, refused):
    with pytest.raises(UserError) as error:
        resumed_config(saved, changes)
    assert str(error.value).startswith(f"a resumed run can't have {refused}")
    assert str(error.value).endswith("start a new one without --resume")
    assert error.value.status == 2


# fine-tuning


def test_a_fine_tuned_model_has_the_architecture_of_its_checkpoint(
    finished_run, config_file, capsys
):
    path = config_file("n_layers = 7\ndropout = 0.5\non_cpu = dict(n_heads=8, max_steps=200)\n")
    config, start = load_config([path, "--device=cpu", f"--init_from={BEST}"])
    assert start.run_id == checkpoint.load(BEST).run_id
    assert config.n_layers == 2
    assert config.n_heads == 2
    assert "architecture:\n         n_layers=2 instead of 7\n" in capsys.readouterr().out
    assert config.dropout == 0.5  # not part of the model
    assert config.max_steps == 200
    assert not config.resume


# a restart by torchrun


@pytest.mark.parametrize("restarts, resume", [("0", False), ("1", True)])
def test_a_run_restarted_by_torchrun_resumes(finished_run, monkeypatch, restarts, resume):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restarts)
    config, _ = load_config(["tiny.py"])
    assert config.resume == resume
    config, _ = load_config(["tiny.py", "--learning_rate=0.1"])  # a new run of an old name
    assert not config.resume


def test_a_run_restarted_before_its_first_save_begins_again(finished_run, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    config, saved = load_config(["tiny.py", "--run_name=other"])
    assert not config.resume
    assert saved is None
