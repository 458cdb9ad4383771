import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from helpers import ROOT

import train
from experiments import ablate, runs
from model import count_parameters


@pytest.fixture
def small(dataset, tiny, monkeypatch):
    """A study "small" of two arms, one of which diverges at the higher learning rate."""
    arms = {"calm": {}, "wild": {"grad_clip": 0.0, "norm_type": "none", "qk_norm": False}}
    study = ablate.Study("Which?", arms, rates=(1e-3, 1e-2, 1e12), seeds=2)
    monkeypatch.setattr(
        ablate,
        "STUDIES",
        {"small": study, "rates": replace(study, every_rate=True, rates=(1e-2, 1e12))},
    )
    monkeypatch.setattr(ablate, "CPU", tiny(max_steps=4, warmup_steps=0, eval_tokens=100))
    monkeypatch.setattr(
        runs, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1)
    )  # quicker than new processes
    monkeypatch.setattr(train, "draw", lambda *_: None)  # curves take longer than runs this small
    return dataset


@pytest.mark.parametrize("name, n_runs", [("small", 2 * 3 + 2 * 2), ("rates", 2 * 2 * 2)])
def test_a_study_leaves_its_runs_a_table_and_figures(small, name, n_runs, monkeypatch, capsys):
    arguments = [name, "--parallel=2", "--results=results", "--device=cpu"]
    assert ablate.main(arguments) == 0
    study, rows = ablate.STUDIES[name], runs.read_rows(Path("results", name, "runs.jsonl"))
    assert len(rows) == n_runs
    wild = [row for row in rows if row["arm"] == "wild" and row["learning_rate"] == 1e12]
    assert wild and all(row["diverged"] is not None and row["final"] is None for row in wild)
    assert ("1 of 1 diverged" if name == "small" else "2 of 2 diverged") in ablate.by_rate(
        study, rows
    )
    assert {row["seed"] for row in ablate.chosen(study, rows, "wild")} == set(
        range(1, study.seeds + 1)
    )
    assert f"| wild | 0.01 | {study.seeds} | 0 |" in ablate.compared(study, rows)
    first = capsys.readouterr().out
    assert "can be told from chance" in first
    monkeypatch.setattr(
        runs, "ProcessPoolExecutor", lambda *_: pytest.fail("all runs had been made")
    )
    assert ablate.main(arguments) == 0 and ablate.main([*arguments, "--redraw"]) == 0
    assert Path("results", name, "learning_rates.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("results", name, "table.md").read_text().strip() in first


@pytest.mark.parametrize("best", [3e-4, 2e-3, 3e-2])
def test_a_sweep_widens_until_the_best_rate_lies_between_worse_ones(best):
    def loss(rate):
        return abs(math.log(rate / best)) if rate < 0.1 else math.inf

    losses = {rate: loss(rate) for rate in (2e-3, 4e-3, 8e-3)}
    while (rate := ablate.next_rate(losses, 2.0)) is not None:
        losses[rate] = loss(rate)
    found = min(losses, key=losses.get)
    assert best / 2**0.5 < found < best * 2**0.5 and min(losses) < found < max(losses)
    falling = {
        2.0**-i: -i for i in range(ablate.MOST_RATES)
    }  # the lower, the better: it has to end somewhere
    assert ablate.next_rate(falling, 2.0) is None


@pytest.mark.parametrize("base", [ablate.CPU, ablate.GPU], ids=["CPU", "GPU"])
def test_arms_are_equal_in_what_their_study_says(base, dataset):
    def cost(study, arm):
        config = ablate.config_of(study, base, arm, 1e-3, 1)
        sized = replace(config, vocab_size=65)
        return count_parameters(sized), sized.max_steps * sized.tokens_per_step

    mlp = ablate.STUDIES["mlp"]
    assert len({cost(mlp, arm) for arm in mlp.arms}) == 1
    sizes = {
        "small": {"dataset": "verses_char"},
        "narrow": {"dataset": "verses_char", "width": 1 / 2, "batch": 1 / 4},
    }
    study = ablate.Study("Which?", sizes, seeds=3, equal_operations=True)
    operations = [
        config.max_steps * ablate.operations(config)
        for config in (ablate.config_of(study, base, arm, 1e-3, 1) for arm in sizes)
    ]
    assert operations[1] == pytest.approx(operations[0], rel=1e-3)


def test_runs_of_equal_settings_are_one_run_and_others_are_not():
    def folder(name, arm, **changes):
        return ablate.config_of(
            ablate.STUDIES[name], replace(ablate.CPU, **changes), arm, 1e-3, 1
        ).out_dir

    assert folder("norms", "rmsnorm, pre") == folder("mlp", "swiglu") != folder("mlp", "gelu")
    assert folder("mlp", "gelu") != folder("mlp", "gelu", block_size=64)


def test_differences_are_paired_by_seed():
    study = ablate.STUDIES["mlp"]
    rows = [
        {"arm": arm, "learning_rate": 1e-3, "seed": seed, "final": seed + 0.1 * seed * (arm == "gelu"), "best": 1.0,
         "diverged": None, "steps": 600, "milliseconds_per_step": 50.0}
        for arm in study.arms for seed in (0, 1, 2)
    ]  # fmt: skip
    table = ablate.table(study, rows)
    assert (
        "| gelu | 0.001 | 2 | 0 | 1.6500 ± 0.7778 | 1.0000 | +0.1500 | -0.4853 to +0.7853 |\n"
        in table
    )
    next(row for row in rows if (row["arm"], row["seed"]) == ("gelu", 2)).update(
        diverged=7, final=None
    )
    assert "| gelu | 0.001 | 2 | 1 |  |  |  |  |\n" in ablate.table(study, rows)
    assert "| swiglu | 0.001 | 2 | 0 | 1.5000 ± 0.7071 | 1.0000 |  |  | 30.0 |" in ablate.table(
        replace(study, timed=True), rows
    )


@pytest.mark.parametrize("name", ablate.STUDIES)
def test_committed_tables_are_those_of_the_runs(name):
    folder = ROOT / ablate.RESULTS / name
    table = ablate.table(ablate.STUDIES[name], runs.read_rows(folder / "runs.jsonl"))
    assert table == (folder / "table.md").read_text(encoding="utf-8").strip()
