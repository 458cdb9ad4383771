import json
import math
import os
import shutil
import signal
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT, TINY, start_python, stop_at, verses

from common.errors import UserError
from experiments import runs
from prepare import prepare

ENDLESS = """
import sys

sys.path.insert(0, {root!r})
from common.cli import command
from config import Config
from experiments.runs import Trainer


@command
def main(argv):
    with Trainer(2) as trainer:
        trainer({{i: Config(**{settings!r}, out_dir=f"out/{{i}}") for i in range(3)}})


if __name__ == "__main__":
    raise SystemExit(main())
"""


def test_the_first_step_does_not_count_in_the_time_of_a_step():
    assert runs.milliseconds_per_step([20.0, 20.5, 21.0]) == 500
    assert runs.milliseconds_per_step([20.0]) == 20_000


@pytest.fixture
def configs(dataset, tiny):
    calm = tiny(max_steps=2, warmup_steps=0, eval_interval=2, run_name="run", out_dir="out/calm")
    wild = replace(calm, learning_rate=1e30, grad_clip=0.0, out_dir="out/wild")
    return {"calm": calm, "wild": wild}


def test_run_all_trains_only_what_has_no_result(configs, capsys):
    results = runs.Trainer(parallel=1)(configs)
    assert results["calm"]["diverged"] is None
    assert 0 < results["calm"]["best"] == results["calm"]["final"] < 4
    assert results["calm"]["val_steps"] == [0, 2]
    assert results["wild"]["final"] is None  # divergence is a result
    assert results["wild"]["diverged"] is not None
    assert results["wild"]["best"] > 0
    assert not list(Path("out").glob("**/*.pt"))
    shutil.rmtree("data")  # so that training would fail
    capsys.readouterr()
    assert runs.Trainer(parallel=1)(configs) == results
    assert "2 of 2 runs are kept from before" in capsys.readouterr().out


def test_equal_configs_are_trained_once(configs):
    with runs.Trainer(parallel=1) as trainer:
        results = trainer({"one": configs["calm"], "other": configs["calm"]})
        assert trainer.bar.n == trainer.bar.total == 1
    assert results["one"] == results["other"]


def test_one_progress_line_counts_the_runs_of_all_calls(configs):
    with runs.Trainer(parallel=1) as trainer:
        for i in range(2):
            trainer({0: replace(configs["calm"], out_dir=f"out/{i}")}, later=3 - i)
            assert (trainer.bar.n, trainer.bar.total) == (1 + i, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("signal_name", "when"),
    [("Ctrl-C", "they start"), ("SIGTERM", "they train")],
)
def test_a_signal_stops_the_runs_starts_no_other_and_says_how_to_go_on(dataset, signal_name, when):
    settings = TINY | {"max_steps": 10**6, "eval_interval": 10**6, "compile": False}
    Path("endless.py").write_text(ENDLESS.format(root=str(ROOT), settings=settings))
    process = start_python("endless.py", start_new_session=True)
    saved = [Path(f"out/{i}/tiny_last.pt") for i in range(3)]
    try:
        if when == "they start":
            process.stderr.read(1)  # the progress line appears before them
            time.sleep(0.5)
        deadline = time.monotonic() + 120
        while when == "they train" and not all(path.exists() for path in saved[:2]):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        if signal_name == "Ctrl-C":  # a terminal's reaches all processes
            os.killpg(process.pid, signal.SIGINT)
        else:
            process.terminate()
        _, error = process.communicate(timeout=120)
        with pytest.raises(ProcessLookupError):
            for _ in range(100):  # multiprocessing's own helper ends a moment later
                os.killpg(process.pid, 0)
                time.sleep(0.1)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert error.endswith("the same command continues with the runs that are left\n\nstopped\n")
    assert "leaked" not in error and "Traceback" not in error
    assert not saved[2].exists()


@pytest.mark.slow
def test_the_final_loss_is_that_of_the_last_step_and_not_of_the_best(configs):
    config = replace(configs["calm"], learning_rate=10.0, max_steps=4, eval_interval=1)
    result = runs.run_one(config)
    assert min(result["val_losses"]) < result["val_losses"][-1]
    assert result["best"] == pytest.approx(min(result["val_losses"][1:]), abs=1e-4)
    assert result["final"] == pytest.approx(result["val_losses"][-1], abs=1e-4)


@pytest.mark.slow
def test_an_interrupted_run_continues(configs, monkeypatch):
    with monkeypatch.context() as patch:
        stop_at(patch, 0)
        with pytest.raises(KeyboardInterrupt):
            runs.run_one(configs["calm"])
    continued = runs.run_one(configs["calm"])
    whole = runs.run_one(replace(configs["calm"], out_dir="out/whole"))
    assert continued | {"milliseconds_per_step": whole["milliseconds_per_step"]} == whole


@pytest.mark.slow
def test_run_all_in_processes_gives_the_same_results(configs):
    there = runs.Trainer(parallel=2)({"calm": configs["calm"]})["calm"]
    here = runs.run_one(replace(configs["calm"], out_dir="out/again"))
    varying = {name: there[name] for name in ("machine", "milliseconds_per_step")}
    assert here | varying == there


@pytest.mark.slow
def test_a_run_that_another_program_has_finished_is_not_trained_again(configs):
    result = runs.run_one(configs["calm"])
    again = runs.run_one(configs["calm"])
    assert again == result


def test_run_folders_differ_if_any_setting_or_the_data_does(dataset, tiny):
    folder = runs.in_run_folder(tiny(), "out").out_dir
    assert runs.in_run_folder(tiny(), "out").out_dir == folder
    assert runs.in_run_folder(tiny(block_size=16), "out").out_dir != folder
    Path("verses.txt").write_text(verses(401))
    prepare("verses_char", ["verses.txt"])
    assert runs.in_run_folder(tiny(), "out").out_dir != folder


def test_interval_is_students():
    mean, half = runs.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert runs.plus_minus(-0.01, 0.0152) == "−0.010 ± 0.015"


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"a": 1}\n{"a"')
    with pytest.raises(UserError, match="line 2 of .*runs.jsonl is damaged"):
        runs.read_rows(tmp_path / "runs.jsonl")
    (tmp_path / "runs.jsonl").write_text("")
    with pytest.raises(UserError, match="runs.jsonl is empty"):
        runs.read_rows(tmp_path / "runs.jsonl")


def test_markdown_leaves_missing_cells_empty():
    table = runs.markdown([{"arm": "a", "loss": "1"}, {"arm": "b"}])
    assert table == "| arm | loss |\n|---|---|\n| a | 1 |\n| b |  |"


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": [0.5, None]}, {"a": 2}]
    runs.write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert runs.read_rows(tmp_path / "new" / "rows.jsonl") == rows
    assert len((tmp_path / "new" / "rows.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "new" / "rows.jsonl").read_text().splitlines()[1]) == {"a": 2}


def test_rows_of_other_results_are_kept(tmp_path, capsys):
    path, rows = tmp_path / "runs.jsonl", [{"seed": 1}, {"seed": 2}]
    runs.write_rows(path, rows[:1])
    runs.write_rows(path, rows)  # a further seed
    assert capsys.readouterr().out == ""
    runs.write_rows(path, [{"seed": 3}])
    assert "runs.prev.jsonl" in capsys.readouterr().out
    assert runs.read_rows(tmp_path / "runs.prev.jsonl") == rows
