import math
from dataclasses import replace
from pathlib import Path

import pytest

from experiments import recipe, runs


def test_runs_are_made_once_and_divergence_is_a_result(dataset, tiny, monkeypatch):
    config = replace(tiny(max_steps=4), run_name="run", eval_tokens=10)
    wild = replace(config, learning_rate=1e30, grad_clip=0.0, warmup_steps=0, out_dir="out/wild")
    configs = {"calm": config, "wild": wild}
    results = runs.run_all(configs, parallel=2)
    assert results["calm"]["diverged"] is None and results["calm"]["final"] < 4
    assert results["calm"]["val_steps"] == [0, 4] and results["calm"]["milliseconds_per_step"] > 0
    assert (
        results["wild"]["final"] is None
        and results["wild"]["diverged"] > 0
        and results["wild"]["best"] > 0
    )
    assert not list(Path("out").glob("**/*.pt"))
    monkeypatch.setattr(runs, "make_run", lambda config: pytest.fail("it had been made"))
    assert runs.run_all(configs, parallel=2) == results


def test_interval_is_students():
    mean, half = runs.interval([1.0, 2.0, 3.0])
    assert mean == 2 and half == pytest.approx(4.303 / math.sqrt(3))


def test_recipe_changes_one_thing_at_equal_tokens_and_pairs_the_seeds():
    configs = recipe.configs([1, 2])
    assert len(configs) == 2 * len(recipe.ARMS)
    assert {config.max_steps * config.tokens_per_step for config in configs.values()} == {
        500 * 2048
    }
    rows = [
        {"arm": arm, "seed": seed, "final": 1.5 + 0.1 * seed + 0.01 * seed * (arm == "GELU")}
        for arm in recipe.ARMS
        for seed in (1, 2)
    ]
    assert "| GELU | 1.665 | +0.015 ± 0.064 |" in recipe.table(rows)
    rows[-1]["final"] = None
    assert "diverged in 1 of 2 runs" in recipe.table(rows)
