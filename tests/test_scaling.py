from concurrent.futures import ThreadPoolExecutor
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, verses

import train
from experiments import runs, scaling
from experiments.scaling import Law, best_rate, bootstrap, fit
from prepare import prepare

TRUE = Law(E=0.9, A=30.0, B=200.0, alpha=0.35, beta=0.37)
N, D = map(np.ravel, np.meshgrid([4e4, 1e5, 2e5, 7e5, 1.6e6], [2.5e5, 5e5, 1e6, 2e6, 4e6]))


def test_the_fit_finds_the_law_that_the_losses_come_from():
    law = fit(N, D, TRUE(N, D))
    assert (law.E, law.alpha, law.beta) == pytest.approx((TRUE.E, TRUE.alpha, TRUE.beta), rel=1e-3)


def test_with_noise_the_intervals_hold_the_truth_and_a_run_gone_wrong_bends_nothing(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 40)
    rng = np.random.default_rng(1)
    losses = TRUE(N, D) * np.exp(0.003 * rng.standard_normal(len(N)))
    losses[7] *= 1.5
    law = fit(N, D, losses)
    laws = bootstrap(N, D, losses, law)
    for name in ("alpha", "beta"):
        low, high = np.percentile([getattr(other, name) for other in laws], [2.5, 97.5])
        assert low < getattr(TRUE, name) < high and high - low < 0.3
    assert law(3e6, 8e6) == pytest.approx(TRUE(3e6, 8e6), rel=0.01)


def test_the_best_size_is_where_the_law_is_lowest_at_equal_operations():
    sizes = np.geomspace(1e3, 1e9, 20_001)
    for operations in (1e13, 1e16):
        best = sizes[np.argmin(TRUE(sizes, operations / 6 / sizes))]
        assert TRUE.best_parameters(operations) == pytest.approx(best, rel=1e-2)


def test_the_best_rate_is_the_lowest_point_of_a_parabola():
    losses = {rate: 2 + np.log(rate / 3e-3) ** 2 for rate in (1e-3, 2e-3, 4e-3, 8e-3)}
    assert best_rate(losses) == pytest.approx(3e-3)


def test_a_small_analysis_leaves_its_runs_a_table_and_figures(folder, tiny, monkeypatch, capsys):
    (folder / "verses.txt").write_text(verses(400))
    for kind in ("byte", "char"):
        prepare(f"verses_{kind}", ["verses.txt"])
    sizes, budgets = ((1, 32), (2, 32), (2, 64)), (640, 1280, 2560)
    small = {
        "LONG": "verses_byte", "SHORT": "verses_char", "SIZES": sizes, "BUDGETS": budgets, "EPOCHS": 1,
        "HELD_OUT": ((sizes[2], budgets[2]),), "RATE_SIZES": sizes[:2], "RATE_BUDGET": budgets[0], "RATES": (1e-3, 3e-2, 1.0),
        "BASE": replace(tiny(), eval_tokens=200), "REPEATS": 2, "STARTS": 1,
    }  # fmt: skip
    for name, value in small.items():
        monkeypatch.setattr(scaling, name, value)
    monkeypatch.setattr(
        runs, "ProcessPoolExecutor", lambda *_: ThreadPoolExecutor(1)
    )  # quicker than new processes
    monkeypatch.setattr(train, "draw", lambda *_: None)  # curves take longer than runs this small
    assert scaling.main(["--seeds=1", "--results=results"]) == 0
    shown, rows = capsys.readouterr().out, runs.read_rows(Path("results/runs.jsonl"))
    assert Path("results/table.md").read_text().strip() in shown
    parts = [row["part"] for row in rows]
    assert [parts.count(part) for part in ("fit", "held out", "short text")] == [
        4,
        1,
        3,
    ] and parts.count("rates") >= 6
    monkeypatch.setattr(
        runs, "ProcessPoolExecutor", lambda *_: pytest.fail("all runs had been made")
    )
    assert scaling.main(["--redraw", "--results=results"]) == 0
    assert capsys.readouterr().out in shown
    for name in ("law", "short_text"):
        assert Path("results", f"{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_committed_table_and_laws_are_those_of_the_runs(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 2)
    folder = ROOT / scaling.RESULTS
    rows, laws = runs.read_rows(folder / "runs.jsonl"), scaling.read_laws(folder / "laws.json")
    assert scaling.table(rows, laws) == (folder / "table.md").read_text(encoding="utf-8").strip()
    for name, (law, others) in laws.items():
        points = scaling.arrays(rows, "fit", *scaling.FITS[name])
        for again, kept in zip([fit(*points), *bootstrap(*points, law)], [law, *others]):
            assert again(*points[:2]) == pytest.approx(kept(*points[:2]), rel=1e-4)
            assert astuple(again)[3:] == pytest.approx(astuple(kept)[3:], rel=0.01)
