import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import runs


@pytest.fixture
def configs(dataset, tiny):
    calm = tiny(max_steps=2, warmup_steps=0, eval_interval=2, run_name="run", out_dir="out/calm")
    wild = replace(calm, learning_rate=1e30, grad_clip=0.0, out_dir="out/wild")
    return {"calm": calm, "wild": wild}


def test_run_all_trains_only_what_has_no_result(configs):
    results = runs.run_all(configs, parallel=1)
    assert results["calm"]["diverged"] is None
    assert 0 < results["calm"]["best"] == results["calm"]["final"] < 4
    assert results["calm"]["val_steps"] == [0, 2]
    assert results["calm"]["milliseconds_per_step"] > 0
    assert results["wild"]["final"] is None  # divergence is a result
    assert results["wild"]["diverged"] is not None
    assert results["wild"]["best"] > 0
    assert not list(Path("out").glob("**/*.pt"))
    shutil.rmtree("data")  # so that training would fail
    assert runs.run_all(configs, parallel=1) == results


@pytest.mark.slow
def test_the_final_loss_is_that_of_the_last_step_and_not_of_the_best(configs):
    config = replace(configs["calm"], learning_rate=10.0, max_steps=4, eval_interval=1)
    result = runs.run_one(config)
    assert min(result["val_losses"]) < result["val_losses"][-1]
    assert result["best"] == pytest.approx(min(result["val_losses"][1:]), abs=1e-4)
    assert result["final"] == pytest.approx(result["val_losses"][-1], abs=1e-4)


@pytest.mark.slow
def test_run_all_in_processes_gives_the_same_results(configs):
    in_processes = runs.run_all(configs, parallel=2)
    for name, config in configs.items():
        here = runs.run_one(replace(config, out_dir=f"out/again-{name}"))
        there = in_processes[name]
        time = {"milliseconds_per_step": there["milliseconds_per_step"]}
        assert here | time == there


def test_run_folders_differ_if_any_setting_does(tiny):
    folder = runs.in_run_folder(tiny(), "out").out_dir
    assert runs.in_run_folder(tiny(), "out").out_dir == folder
    assert runs.in_run_folder(tiny(block_size=16), "out").out_dir != folder


def test_interval_is_students():
    mean, half = runs.interval([1.0, 2.0, 3.0])
    assert mean == 2
    assert half == pytest.approx(4.303 / math.sqrt(3))
    assert runs.plus_minus(-0.01, 0.0152) == "−0.010 ± 0.015"


def test_markdown_leaves_missing_cells_empty():
    table = runs.markdown([{"arm": "a", "loss": "1"}, {"arm": "b"}])
    assert table == "| arm | loss |\n|---|---|\n| a | 1 |\n| b |  |"


def test_rows_are_read_as_they_were_written(tmp_path):
    rows = [{"a": 1, "b": [0.5, None]}, {"a": 2}]
    runs.write_rows(tmp_path / "new" / "rows.jsonl", rows)
    assert runs.read_rows(tmp_path / "new" / "rows.jsonl") == rows
    assert len((tmp_path / "new" / "rows.jsonl").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "new" / "rows.jsonl").read_text().splitlines()[1]) == {"a": 2}
