"""Logging to Weights & Biases: what our code tells its library, and what the library writes."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from unittest.mock import MagicMock

import pytest
from helpers import before_update, stop_at

from common.errors import UserError
from common.metrics import read_metrics
from common.wandb_run import PROJECT, WandbRun
from train import train

METRICS = "out/tiny_metrics.jsonl"


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    """Without variables of the library; those that our code sets are removed after the test."""
    for name in ("WANDB_MODE", "WANDB_DISABLED", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def copy_table(columns: list, rows: list) -> list:
    """What wandb.Table does: later changes of `rows` have no effect on it."""
    assert columns == ["step", "text"]
    return list(rows)


@pytest.fixture
def wandb(monkeypatch):
    """A module in place of wandb that records every call."""
    fake = MagicMock()
    fake.Table.side_effect = copy_table
    monkeypatch.setitem(sys.modules, "wandb", fake)
    return fake


@pytest.fixture
def online(tiny):
    return tiny(wandb_mode="online", eval_interval=12)


def logged(wandb, name: str) -> list:
    """All values of this name that were logged."""
    calls = wandb.init.return_value.log.call_args_list
    return [call.args[0][name] for call in calls if name in call.args[0]]


def samples(wandb) -> list[list]:
    """The steps of the samples in each table that was logged."""
    return [[step for step, _ in table] for table in logged(wandb, "samples")]


# starting


def test_nothing_is_logged_unless_asked(folder, tiny, wandb):
    run = WandbRun(tiny(), "the id")
    run.log({"step": 0})
    run.finish(0)
    wandb.init.assert_not_called()


@pytest.mark.parametrize(
    "setting, variable, expected",
    [(None, "", PROJECT), (None, "theirs", "theirs"), ("mine", "theirs", "mine")],
)
def test_the_project_is_the_setting_or_the_variable(
    online, wandb, monkeypatch, setting, variable, expected
):
    monkeypatch.setenv("WANDB_PROJECT", variable)
    WandbRun(replace(online, wandb_project=setting), "the id")
    assert wandb.init.call_args.kwargs["project"] == expected


def test_a_run_is_started_with_its_settings(folder, online, wandb):
    WandbRun(replace(online, wandb_project="mine"), "the id")
    wandb.login.assert_called_once()
    old = {"key", "relogin", "host", "force", "timeout"}  # of version 0.19 too
    assert wandb.login.call_args.kwargs.keys() <= old
    options = wandb.init.call_args.kwargs
    assert options["mode"] == "online"
    assert options["project"] == "mine"
    assert options["name"] == "tiny-2L-32d"
    assert options["id"] == "the id"
    assert options["resume"] == "allow"
    assert options["config"]["learning_rate"] == online.learning_rate
    wandb.init.return_value.define_metric.assert_called_once_with("*", step_metric="step")


@pytest.mark.parametrize("mode", ["offline", "dryrun"])
def test_the_environment_variable_starts_a_run_too(folder, tiny, wandb, monkeypatch, mode):
    monkeypatch.setenv("WANDB_MODE", mode)
    WandbRun(tiny(), "the id")
    assert wandb.init.call_args.kwargs["mode"] == "offline"
    wandb.login.assert_not_called()


def test_a_setting_overrides_the_environment_variable(folder, tiny, wandb, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    WandbRun(tiny(wandb_mode="disabled"), "the id")
    wandb.init.assert_not_called()
    wandb.login.side_effect = lambda **_: os.environ["WANDB_MODE"] == "online"  # as the real one
    WandbRun(tiny(wandb_mode="online"), "the id")
    assert wandb.init.call_args.kwargs["mode"] == "online"
    assert os.environ["WANDB_MODE"] == "offline"  # for later runs in the same program


@pytest.mark.parametrize("value", ["true", "TRUE", "1"])
def test_wandb_disabled_is_understood(folder, tiny, wandb, monkeypatch, capsys, value):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_DISABLED", value)
    WandbRun(tiny(), "the id")
    wandb.init.assert_not_called()
    assert capsys.readouterr().out == ""


def test_settings_of_wandb_that_do_nothing_are_reported(folder, tiny, wandb, capsys):
    WandbRun(tiny(wandb_project="plays"), "the id")
    wandb.init.assert_not_called()
    assert "Weights & Biases is off; --wandb_mode=online" in capsys.readouterr().out


def test_an_error_at_the_start_is_reported(folder, online, wandb, capsys):
    wandb.init.side_effect = TimeoutError("no answer")
    WandbRun(online, "the id").log({"step": 0})
    assert capsys.readouterr().out == "Weights & Biases is disabled: no answer\n"


def test_a_missing_api_key_is_reported(folder, online, wandb, capsys):
    wandb.login.return_value = False
    WandbRun(online, "the id").log({"step": 0})
    assert "no API key found: run `wandb login`" in capsys.readouterr().out
    wandb.init.assert_not_called()


def test_a_missing_library_is_reported(folder, online, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it raises ImportError
    WandbRun(online, "the id").log({"step": 0})
    assert "(pip install wandb)" in capsys.readouterr().out


def test_an_unknown_mode_is_reported(folder, tiny, wandb, monkeypatch, capsys):
    monkeypatch.setenv("WANDB_MODE", "bogus")
    WandbRun(tiny(), "the id").log({"step": 0})
    assert "WANDB_MODE=bogus is not online or offline" in capsys.readouterr().out
    wandb.init.assert_not_called()


# logging


def test_every_row_of_the_metrics_is_logged(dataset, online, wandb, monkeypatch):
    monkeypatch.setattr("train.draw", lambda runs, out: out.write_bytes(b""))
    train(replace(online, sample_interval=5))
    rows = [row for row in read_metrics(METRICS) if "sample" not in row]
    calls = [call.args[0] for call in wandb.init.return_value.log.call_args_list]
    assert [call for call in calls if "seconds" in call] == rows
    assert samples(wandb) == [[5], [5, 10], [5, 10, 12]]
    assert len(logged(wandb, "train/tokens_per_second")) == 11  # not of the first step
    wandb.Image.assert_called_once_with("out/tiny_curves.png")
    wandb.init.return_value.finish.assert_called_once_with(exit_code=0)


@pytest.mark.parametrize("upload", [True, False])
def test_the_best_model_is_uploaded_if_asked(dataset, online, wandb, upload):
    train(replace(online, max_steps=2, wandb_log_model=upload))
    artifacts = wandb.init.return_value.log_artifact.call_args_list
    assert [call.args for call in artifacts] == [("out/tiny_best.pt",)] * upload


def test_a_resumed_run_continues_the_same_one(dataset, online, wandb):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        train(replace(online, sample_interval=5))
    train(replace(online, sample_interval=5, resume=True))
    first, second = wandb.init.call_args_list
    assert first.kwargs["id"] == second.kwargs["id"]
    assert logged(wandb, "train/loss") == [
        row["train/loss"] for row in read_metrics(METRICS) if "train/loss" in row
    ]
    assert samples(wandb) == [[5], [5, 10], [5, 10, 12]]


def test_a_failed_run_is_marked_as_failed(dataset, online, wandb, monkeypatch):
    def fail(*_):
        raise UserError("something went wrong")

    before_update(monkeypatch, fail)
    with pytest.raises(UserError):
        train(online)
    wandb.init.return_value.finish.assert_called_once_with(exit_code=1)


def test_an_error_while_logging_does_not_end_the_run(dataset, online, wandb, capsys):
    wandb.init.return_value.log.side_effect = ConnectionError("the network is down\nfor ever")
    assert train(online)["finished"]
    message = "Weights & Biases is disabled for the rest of the run: the network is down for ever\n"
    assert message in capsys.readouterr().out
    wandb.init.return_value.log.assert_called_once()
    wandb.init.return_value.finish.assert_called_once_with(exit_code=1)


# the real library


def records(file) -> dict[str, list[dict]]:
    """What is in a file of an offline run, by type, as the library itself reads it."""
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found = {}
    for line in output.splitlines():
        record = json.loads(line)
        found.setdefault(record["type"], []).append(record[record["type"]])
    return found


@pytest.mark.whole_endings
@pytest.mark.slow
def test_a_run_resumed_offline_can_be_uploaded_without_loss(dataset, tiny, capfd, monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null")  # can't be written
    config = tiny(wandb_mode="offline", sample_interval=5, wandb_log_model=True)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        train(config)
    assert train(replace(config, resume=True))["finished"]
    output, error = capfd.readouterr()
    assert "Weights & Biases is disabled" not in output
    assert "INFO" not in output + error

    # one run in each folder, and the command uploads both
    folders = sorted(map(str, Path("out/wandb").glob("offline-run-*")))
    assert output.rstrip().endswith(f"wandb sync {' '.join(folders)}")
    parts = [records(*Path(folder).glob("*.wandb")) for folder in folders]
    first, second = (part["run"][0] for part in parts)
    assert first["run_id"] != second["run_id"]
    assert first["run_group"] == second["run_group"]

    # which together have every row of the metrics
    items = [record["item"] for part in parts for record in part["history"]]
    logged = [item for item in items if "seconds" in item]
    rows = [row for row in read_metrics(METRICS) if "sample" not in row]
    assert [item | row for item, row in zip(logged, rows, strict=True)] == logged
