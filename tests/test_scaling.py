from collections import defaultdict
from dataclasses import astuple
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, verses

from common.errors import UserError
from experiments import runs, scaling
from experiments.scaling import FITS, Law, best_rate, bootstrap, fit
from prepare import prepare

TRUE = Law(E=0.9, A=30.0, B=200.0, alpha=0.35, beta=0.37)
GRID = np.meshgrid([4e4, 1e5, 2e5, 7e5, 1.6e6], [2.5e5, 5e5, 1e6, 2e6, 4e6])
N, D = (axis.ravel() for axis in GRID)


def test_the_fit_recovers_the_law_of_the_losses():
    law = fit(N, D, TRUE(N, D))
    assert (law.E, law.alpha, law.beta) == pytest.approx((TRUE.E, TRUE.alpha, TRUE.beta), rel=1e-3)


def test_the_fit_is_robust_and_its_intervals_contain_the_truth(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 20)
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
def test_the_best_size_has_the_lowest_loss_at_equal_compute(operations):
    sizes = np.geomspace(1e3, 1e9, 20_001)
    losses = TRUE(sizes, operations / 6 / sizes)
    best = sizes[np.argmin(losses)]
    assert TRUE.best_parameters(operations) == pytest.approx(best, rel=1e-2)
    assert TRUE.best_loss(operations) == pytest.approx(losses.min())
    assert TRUE.best_ratio(operations) == pytest.approx(operations / 6 / best**2, rel=2e-2)


def test_best_rate_is_the_minimum_of_a_parabola():
    losses = {rate: 2 + np.log(rate / 3e-3) ** 2 for rate in (1e-3, 2e-3, 4e-3, 8e-3)}
    assert best_rate(losses) == pytest.approx(3e-3)


def simulate(trainer, configs: dict, later: int = 0) -> dict:
    """In place of training: results that follow TRUE, with a best learning rate of 1 / sqrt(N)."""
    results = {}
    for key, config in configs.items():
        size = (config.n_layers, config.d_model)
        parameters, _ = scaling.parameter_counts(size, scaling.VOCAB_SIZE)
        steps = config.max_steps
        loss = TRUE(parameters, steps * config.tokens_per_step)
        loss += 0.1 * np.log(config.learning_rate * parameters**0.5) ** 2
        result = {"seed": config.seed, "final": loss, "best": loss, "parameters": 1, "tokens": 1}
        results[key] = result | {"val_steps": [0, steps], "val_losses": [5.0, loss]}
    return results


@pytest.fixture
def texts(folder, monkeypatch):
    """The current folder, with texts in the place of scaling.LONG (4.4 MB) and scaling.SHORT."""
    for kind, text in (("byte", 540 * verses(400)), ("char", verses(400))):
        (folder / f"{kind}.txt").write_text(text)
        prepare(f"verses_{kind}", [f"{kind}.txt"])
    monkeypatch.setattr(scaling, "LONG", "verses_byte")
    monkeypatch.setattr(scaling, "SHORT", "verses_char")
    return folder


@pytest.mark.slow
def test_the_analysis_recovers_a_law_from_simulated_runs(texts, monkeypatch, capsys):
    monkeypatch.setattr(scaling.Trainer, "__call__", simulate)
    monkeypatch.setattr(scaling, "REPEATS", 2)
    monkeypatch.setattr(scaling, "STARTS", 2)
    assert scaling.main(["--seeds=2", "--results=results"]) == 0
    output = capsys.readouterr().out
    rows = runs.read_rows(Path("results/scaling/runs.jsonl"))
    parts = [row["part"] for row in rows]
    counts = [parts.count(part) for part in ("fit", "held out", "short text")]
    assert counts == [2 * 4 * 5, 2 * 4, 6]
    c, p = scaling.rate_rule(rows)
    assert p == pytest.approx(-0.5, abs=0.01)
    laws = scaling.read_laws(Path("results/scaling/laws.json"))
    assert scaling.tables(rows, laws) in output
    law, _ = laws[scaling.MAIN]
    assert law(1e6, 1e6) == pytest.approx(TRUE(1e6, 1e6), rel=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("dataset", ["verses_byte", "verses_char"])
def test_the_runs_of_a_size_train(texts, tiny, monkeypatch, dataset):
    monkeypatch.setattr(scaling, "BASE", tiny(eval_tokens=200))
    config = scaling.size_config(dataset, (1, 32), 512, rate=1e-2, seed=1)
    assert config.max_steps == 4
    assert config.patience == (3 if dataset == "verses_char" else None)
    assert runs.run_one(config)["final"] < 6


def test_the_option_steps_scales_all_runs(texts):
    asked = {}

    def train(configs, later=0):
        asked.update(configs)
        return simulate(None, configs)

    rows = scaling.run_analysis(seeds=1, trainer=train, scale=10 / scaling.RATE_STEPS)
    steps = defaultdict(set)
    for (part, *_), config in asked.items():
        steps[part].add(config.max_steps)
    assert steps["rates"] == {10}
    assert steps["fit"] == {2, 5, 10, 20}
    short = [row for row in rows if row["part"] == "short text"]
    assert {row["epochs"] for row in short} == {round(10 / scaling.RATE_STEPS * scaling.EPOCHS, 3)}


def test_a_long_text_that_would_be_read_twice_is_refused(texts):
    with pytest.raises(
        UserError, match="8,000,000 tokens, but verses_byte has only 4,.*lower --st"
    ):
        scaling.run_analysis(seeds=1, trainer=None, scale=2)


def test_best_rate_without_two_worse_neighbors_is_the_best_that_was_tried():
    assert best_rate({1e-3: 2.0, 2e-3: 1.9, 4e-3: 1.8}) == 4e-3
    assert best_rate({1e-3: 2.0, 2e-3: 1.9, 4e-3: np.inf}) == 2e-3


def test_committed_laws_are_those_of_the_runs(monkeypatch):
    monkeypatch.setattr(scaling, "REPEATS", 1)
    folder = ROOT / "experiments/results/scaling"
    rows, laws = runs.read_rows(folder / "runs.jsonl"), scaling.read_laws(folder / "laws.json")
    for name, (law, others) in laws.items():
        points = scaling.arrays(rows, "fit", FITS[name])
        found = np.array([*np.log([law.E, law.A, law.B]), law.alpha, law.beta])
        starts = None if name == scaling.MAIN else [found]  # a whole search takes seconds
        for again, kept in zip([fit(*points, starts), *bootstrap(*points, law)], [law, *others]):
            assert again(*points[:2]) == pytest.approx(kept(*points[:2]), rel=1e-4)
            assert astuple(again)[3:] == pytest.approx(astuple(kept)[3:], rel=0.01)
