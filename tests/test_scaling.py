import shutil
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, verses

from experiments import runs, scaling
from experiments.scaling import FITS, FitOptions, Law, best_rate, bootstrap, fit
from prepare import prepare

TRUE = Law(E=0.9, A=30.0, B=200.0, alpha=0.35, beta=0.37)
GRID = np.meshgrid([4e4, 1e5, 2e5, 7e5, 1.6e6], [2.5e5, 5e5, 1e6, 2e6, 4e6])
N, D = (axis.ravel() for axis in GRID)


def test_the_fit_recovers_the_law_of_the_losses():
    law = fit(N, D, TRUE(N, D))
    assert (law.E, law.alpha, law.beta) == pytest.approx((TRUE.E, TRUE.alpha, TRUE.beta), rel=1e-3)


def test_the_fit_is_robust_and_its_intervals_contain_the_truth(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 40)
    rng = np.random.default_rng(1)
    losses = TRUE(N, D) * np.exp(0.003 * rng.standard_normal(len(N)))
    losses[7] *= 1.5  # a bad run
    law = fit(N, D, losses)
    laws = bootstrap(N, D, losses, law)
    for name in ("alpha", "beta"):
        low, high = np.percentile([getattr(other, name) for other in laws], [2.5, 97.5])
        assert low < getattr(TRUE, name) < high
        assert high - low < 0.3
    assert law(3e6, 8e6) == pytest.approx(TRUE(3e6, 8e6), rel=0.01)


@pytest.mark.parametrize("operations", [1e13, 1e16])
def test_the_best_size_has_the_lowest_loss_at_equal_operations(operations):
    sizes = np.geomspace(1e3, 1e9, 20_001)
    losses = TRUE(sizes, operations / 6 / sizes)
    best = sizes[np.argmin(losses)]
    assert TRUE.best_parameters(operations) == pytest.approx(best, rel=1e-2)
    assert TRUE.best_loss(operations) == pytest.approx(losses.min())
    assert TRUE.best_ratio(operations) == pytest.approx(operations / 6 / best**2, rel=2e-2)


def test_best_rate_is_the_minimum_of_a_parabola():
    losses = {rate: 2 + np.log(rate / 3e-3) ** 2 for rate in (1e-3, 2e-3, 4e-3, 8e-3)}
    assert best_rate(losses) == pytest.approx(3e-3)


def test_a_small_analysis_writes_its_runs_a_table_and_figures(folder, tiny, monkeypatch, capsys):
    (folder / "verses.txt").write_text(verses(400))
    for kind in ("byte", "char"):
        prepare(f"verses_{kind}", ["verses.txt"])
    sizes, budgets = ((1, 32), (2, 32), (2, 64)), (128, 256, 512)
    small = {
        "LONG": "verses_byte",
        "SHORT": "verses_char",
        "BASE": replace(tiny(), eval_tokens=200),
        "SIZES": sizes,
        "BUDGETS": budgets,
        "HELD_OUT": ((sizes[2], budgets[2]),),
        "RATES": (1e-3, 3e-2, 1.0),
        "RATE_SIZES": sizes[:2],
        "RATE_BUDGET": budgets[1],
        "EPOCHS": 1,
        "STARTS": 1,
        "REPEATS": 2,
        "FITS": FITS | {"without the shortest budget": FitOptions(min_tokens=budgets[0])},
    }
    for name, value in small.items():
        monkeypatch.setattr(scaling, name, value)
    assert scaling.main(["--seeds=1", "--parallel=1", "--results=results"]) == 0
    output = capsys.readouterr().out
    assert Path("results/scaling/table.md").read_text() in output
    parts = [row["part"] for row in runs.read_rows(Path("results/scaling/runs.jsonl"))]
    counts = [parts.count(part) for part in ("fit", "held out", "short text")]
    assert counts == [4, 1, 3]
    assert parts.count("rates") >= 6

    shutil.rmtree("data")  # so that training would fail
    assert scaling.main(["--redraw", "--results=results"]) == 0
    assert capsys.readouterr().out in output
    for name in ("law", "short_text"):
        assert Path(f"results/scaling/{name}.png").read_bytes()[:4] == b"\x89PNG"


def test_committed_table_and_laws_are_those_of_the_runs(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 2)
    folder = ROOT / runs.RESULTS / "scaling"
    rows, laws = runs.read_rows(folder / "runs.jsonl"), scaling.read_laws(folder / "laws.json")
    assert scaling.tables(rows, laws) + "\n" == (folder / "table.md").read_text(encoding="utf-8")
    for name, (law, others) in laws.items():
        points = scaling.arrays(rows, "fit", FITS[name])
        for again, kept in zip([fit(*points), *bootstrap(*points, law)], [law, *others]):
            assert again(*points[:2]) == pytest.approx(kept(*points[:2]), rel=1e-4)
            assert astuple(again)[3:] == pytest.approx(astuple(kept)[3:], rel=0.01)
