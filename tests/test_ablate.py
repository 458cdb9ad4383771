import json
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT

from experiments import ablate, runs
from model import count_parameters


@pytest.fixture
def small(dataset, tiny, monkeypatch):
    """A study "small" of two arms, one of which diverges at the higher learning rate."""
    arms = {"calm": {}, "wild": {"grad_clip": 0.0, "norm_type": "none", "qk_norm": False}}
    study = ablate.Study("Which?", arms, rates=(1e-2, 1e12), seeds=3, steps=4)
    monkeypatch.setattr(ablate, "STUDIES", {"small": study, "rates": replace(study, every_rate=True, seeds=2)})
    monkeypatch.setattr(ablate, "BASE", tiny(max_steps=4, warmup_steps=0, eval_tokens=100))
    return dataset


@pytest.mark.parametrize("name, n_runs", [("small", 2 * 2 + 2 * 2), ("rates", 2 * 2 * 2)])
def test_a_study_leaves_its_runs_a_table_and_figures(small, name, n_runs, monkeypatch, capsys):
    arguments = [name, "--parallel=2", "--results=results"]
    assert ablate.main(arguments) == 0
    rows = [json.loads(line) for line in Path("results", name, "runs.jsonl").read_text().splitlines()]
    assert len(rows) == n_runs
    wild = [row for row in rows if row["arm"] == "wild" and row["learning_rate"] == 1e12]
    assert wild and all(row["diverged"] is not None and row["final"] is None for row in wild)
    assert "of 1 diverged" in ablate.table(name, rows) or "2 of 2 diverged" in ablate.table(name, rows)
    if name == "small":
        assert {row["learning_rate"] for row in ablate.chosen(rows, "wild")} == {0.01}
        assert "| wild | 0.01 | 3 | 0 |" in ablate.table(name, rows)
    first = capsys.readouterr().out
    assert "can be told from chance" in first
    monkeypatch.setattr(runs, "ProcessPoolExecutor", lambda *_: pytest.fail("all runs had been made"))
    assert ablate.main(arguments) == 0 and ablate.main([*arguments, "--redraw"]) == 0
    assert Path("results", name, "learning_rates.png").read_bytes()[:4] == b"\x89PNG"
    assert Path("results", name, "table.md").read_text().strip() in first


def test_arms_are_paired_by_seed_and_equal_in_parameters_where_they_say_so():
    study = ablate.STUDIES["mlp"]
    counts = {runs_parameters(ablate.config_of("mlp", arm, 1e-3, 1, study.steps, "cpu")) for arm in study.arms}
    assert max(counts) - min(counts) < 0.01 * min(counts)
    rows = [
        {"arm": arm, "learning_rate": 1e-3, "seed": seed, "final": seed + 0.1 * seed * (arm == "gelu"), "best": 1.0,
         "diverged": None}
        for arm in study.arms for seed in (1, 2)
    ]  # fmt: skip
    assert "| gelu | 0.001 | 2 | 0 | 1.6500 ± 0.7778 | 1.0000 | +0.1500 | -0.4853 to +0.7853 |" in ablate.table(
        "mlp", rows
    )


def runs_parameters(config) -> int:
    return count_parameters(replace(config, vocab_size=65))


@pytest.mark.parametrize("folder", sorted(path.parent for path in (ROOT / ablate.RESULTS).glob("*/runs.jsonl")))
def test_committed_tables_are_those_of_the_runs(folder):
    rows = [json.loads(line) for line in (folder / "runs.jsonl").read_text(encoding="utf-8").splitlines()]
    assert ablate.table(folder.name, rows) == (folder / "table.md").read_text(encoding="utf-8").strip()
