import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT

from common.errors import UserError
from experiments import ablate, runs
from experiments.ablate import STUDIES, Study
from experiments.runs import Trainer
from model import count_parameters

WILD = {"grad_clip": 0.0, "norm_type": "none", "qk_norm": False}  # diverges at high rates


@pytest.mark.slow
def test_a_study_writes_its_runs_and_prints_its_tables(dataset, tiny, monkeypatch, capsys):
    study = Study("Which?", {"calm": {}, "wild": WILD}, rates=(1e-2, 1e12), search=False)
    monkeypatch.setitem(STUDIES, "small", study)
    monkeypatch.setattr(ablate, "CPU", tiny(eval_tokens=100))
    arguments = ["small", "--steps=1", "--seeds=2", "--parallel=1", "--device=cpu"]
    assert ablate.main([*arguments, "--results=results"]) == 0
    output = capsys.readouterr().out
    rows = runs.read_rows(Path("results/small/runs.jsonl"))
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        assert (row["final"] is None) == (row["diverged"] is not None)
        if row["arm"] == "wild":
            assert (row["diverged"] is not None) == (row["learning_rate"] == 1e12)
    assert "2 of 2 diverged" in output
    assert ablate.tables(study, rows) in output


def test_the_table_of_vocabularies_counts_bytes_and_tokens_per_second():
    study = Study("Which?", {"byte": {"dataset": "a_byte"}, "bpe512": {"dataset": "a_bpe512"}})
    row = {"learning_rate": 1e-3, "diverged": None, "steps": 100, "tokens": 50_000}
    row |= {"block_size": 64, "parameters": 7000, "bytes_per_token": 1.0}
    rows = [
        row | {"arm": arm, "seed": seed, "bits_per_byte": bits, **differs}
        for arm, bits, differs in (
            ("byte", 2.0, {"milliseconds_per_step": 5.0}),
            ("bpe512", 1.5, {"milliseconds_per_step": 10.0, "bytes_per_token": 2.5}),
        )
        for seed in (1, 2)
    ]
    lines = ablate.vocabulary_table(study, rows).splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[2] == ["byte", "7,000", "1.00", "64", "0.1M", "100,000", "2.000", ""]
    assert cells[3][2:] == ["2.50", "160", "0.1M", "50,000", "1.500", "−0.500 ± 0.000"]


def test_a_search_ends_at_each_arms_best_rate(dataset, tiny):
    best = {"slow": 5e-4, "fast": 3.2e-2}
    study = Study("Which?", {"slow": {"dropout": 0.1}, "fast": {}})
    base = tiny(max_steps=4)
    for arm in study.arms:
        for power in range(-4, 5):
            for seed in (0, 1, 2):
                rate = 4e-3 * 2.0**power
                config = replace(ablate.arm_config(study, base, arm), learning_rate=rate, seed=seed)
                folder = Path(runs.in_run_folder(config, "out/ablate").out_dir)
                folder.mkdir(parents=True)
                loss = 2 + abs(math.log(rate / best[arm]))
                result = {"seed": seed, "final": loss, "diverged": None}
                (folder / "result.json").write_text(json.dumps(result))
    rows = ablate.run_study(study, base, 2, Trainer(parallel=1))
    for arm in study.arms:
        chosen = ablate.best_runs(study, rows, arm)
        assert {row["learning_rate"] for row in chosen} == {best[arm]}
        assert [row["seed"] for row in chosen] == [1, 2]
        searched = [row for row in rows if row["arm"] == arm and row["seed"] == 0]
        rates = [row["learning_rate"] for row in searched]
        assert min(rates) < best[arm] < max(rates)


@pytest.mark.parametrize("best", [3e-4, 2e-3, 3e-2])
def test_next_rate_widens_until_the_best_rate_is_between_worse_ones(best):
    losses = {}
    rate = 2e-3
    while rate is not None:
        losses[rate] = abs(math.log(rate / best)) if rate < 0.1 else math.inf
        rate = ablate.next_rate(losses) if len(losses) > 1 else 4e-3
    found = min(losses, key=losses.get)
    assert best / 2**0.5 < found < best * 2**0.5
    assert min(losses) < found < max(losses)


def test_next_rate_goes_below_rates_at_which_all_runs_diverge():
    assert ablate.next_rate(dict.fromkeys((4e-3, 2e-3, 8e-3), math.inf)) == 1e-3


def test_a_study_can_change_its_base_and_its_length():
    study = Study("Which?", {"a": {}}, overrides={"dataset": "notes_char"}, steps=300)
    base = ablate.base_config(study, torch.device("cpu"))
    assert base == replace(ablate.CPU, dataset="notes_char", max_steps=300)


def test_next_rate_gives_up_after_a_number_of_rates():
    falling = {2.0**-i: -i for i in range(ablate.MAX_RATES)}  # the lower, the better
    assert ablate.next_rate(falling) is None


@pytest.mark.parametrize("base", [ablate.CPU, ablate.GPU], ids=["CPU", "GPU"])
def test_arms_of_the_study_mlp_have_equal_parameters(base):
    counts = set()
    for arm in STUDIES["mlp"].arms:
        config = ablate.arm_config(STUDIES["mlp"], base, arm)
        counts.add(count_parameters(replace(config, vocab_size=65)))
    assert len(counts) == 1


@pytest.mark.parametrize("base", [ablate.CPU, ablate.GPU], ids=["CPU", "GPU"])
def test_equal_compute_changes_the_number_of_steps(base, dataset):
    base = replace(base, dataset="verses_char")
    arms = {"small": {}, "narrow": ablate.shape(3, 1 / 3)}
    study = Study("Which?", arms, equal_compute=True)
    small, narrow = (ablate.arm_config(study, base, arm) for arm in arms)
    assert narrow.d_model == base.d_model // 3
    small_cost, narrow_cost = (
        config.max_steps * ablate.flops_per_step(config) for config in (small, narrow)
    )
    assert narrow_cost == pytest.approx(small_cost, rel=1e-3)
    shares = [config.warmup_steps / config.max_steps for config in (small, narrow)]
    assert shares[0] == pytest.approx(shares[1], rel=0.01)


def test_arms_with_equal_settings_share_their_runs(dataset):
    def folder(name, arm, **changes):
        base = replace(ablate.CPU, dataset="verses_char", **changes)
        config = ablate.arm_config(STUDIES[name], base, arm)
        return runs.in_run_folder(config, "out").out_dir

    assert folder("norms", "rmsnorm, pre") == folder("mlp", "swiglu")
    assert folder("mlp", "swiglu") != folder("mlp", "gelu")
    assert folder("mlp", "gelu") != folder("mlp", "gelu", block_size=64)


def test_the_recipe_changes_one_thing_at_equal_tokens(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = STUDIES["recipe"]
    base = ablate.base_config(study, torch.device("cpu"))
    assert (base.optimizer, base.n_layers, base.max_steps) == ("muon", 4, 500)
    assert ablate.arm_config(study, base, study.first) == replace(base, eval_interval=125)
    twice = ablate.arm_config(study, base, "8 sequences a step, twice the steps")
    assert (twice.batch_size, twice.max_steps, twice.warmup_steps) == (8, 1000, 100)
    configs = [ablate.arm_config(study, base, arm) for arm in study.arms]
    assert {config.max_steps * config.tokens_per_step for config in configs} == {500 * 2048}


def test_the_study_long_trains_shakespeare_small_for_six_epochs(monkeypatch):
    monkeypatch.chdir(ROOT)
    study = STUDIES["long"]
    base = ablate.base_config(study, torch.device("cpu"))
    configs = [ablate.arm_config(study, base, arm) for arm in study.arms]
    assert {config.max_steps for config in configs} == {base.max_steps}
    assert len(set(configs)) == len(study.arms)  # all differ
    epoch = 1_003_854 / base.tokens_per_step  # of Shakespeare's training text
    assert configs[0].eval_interval == pytest.approx(epoch, rel=0.02)
    assert base.max_steps == pytest.approx(6 * epoch, rel=0.01)


def synthetic_rows(study: Study, higher: str) -> list[dict]:
    """Three seeds of each arm, of which `higher` has a loss that is 0.1 x seed higher."""
    rows = []
    for arm in study.arms:
        for seed in (0, 1, 2):
            row = {"arm": arm, "learning_rate": 1e-3, "seed": seed, "best": 1.0, "diverged": None}
            row |= {"final": seed + (0.1 * seed if arm == higher else 0.0)}
            rows.append(row | {"steps": 600, "milliseconds_per_step": 50.0})
    return rows


def test_differences_are_paired_by_seed():
    study = STUDIES["mlp"]
    rows = synthetic_rows(study, "gelu")
    line = "| gelu | 0.001 | 600 | 2 | 0 | 1.650 ± 0.778 | +0.150 ± 0.635 |"
    assert line in ablate.tables(study, rows).splitlines()
    timed = ablate.comparison_table(replace(study, timed=True), rows)
    assert "| swiglu | 0.001 | 600 | 2 | 0 | 1.500 ± 0.707 |  | 30.0 |" in timed


@pytest.mark.parametrize(
    "early, late, verdict",
    [
        (0.1, 0.1, "stays"),
        (0.1, 0.15, "stays"),
        (0.1, -0.1, "reverses"),
        (0.1, 0.0, "vanishes"),
        (0, 0.1, "appears"),
        (0.015, 0.025, ""),  # only the late one counts, but the change does not
    ],
)
def test_early_and_late_differences_are_compared(early, late, verdict):
    study = STUDIES["long"]
    rows = synthetic_rows(study, "GELU")
    for row in rows:
        higher = row["arm"] == "GELU"
        row |= {"best": 1.0 + higher * late, "val_losses": [4.0, 2.0 + higher * early, 1.0]}
    table = ablate.early_and_late_table(study, rows)
    line = next(line for line in table.splitlines() if line.startswith("| GELU"))
    assert line.endswith(f"| {verdict} |")
    assert line.startswith(f"| GELU | {early:+.3f} ± 0.000 |")


def test_early_differences_between_tokenizers_are_in_bits_per_byte():
    study = STUDIES["tokenizer"]
    rows = synthetic_rows(study, "bpe1024")
    for row in rows:
        larger = 1 + (row["arm"] == "bpe1024")  # tokens that stand for twice as many bytes
        row |= {"val_losses": [9.0, 2.0 * larger, larger], "final": larger, "bits_per_byte": 1.5}
    assert "| bpe1024 | +0.000 ± 0.000 | +0.000 ± 0.000 |" in ablate.early_and_late_table(
        study, rows
    )


def test_an_arm_that_diverged_has_no_mean():
    study = STUDIES["mlp"]
    rows = synthetic_rows(study, "gelu")
    for row in rows:
        if (row["arm"], row["seed"]) == ("gelu", 2):
            row.update(diverged=7, final=None)
    lines = ablate.tables(study, rows).splitlines()
    assert "| gelu | 0.001 | 600 | 2 | 1 |  |  |" in lines
    assert "| gelu | 0.550, 1 of 3 diverged |  |" in lines
    assert ablate.why_not_compared(study, rows, "gelu") == "a run of gelu diverged"


def test_if_the_first_arm_diverged_the_others_are_not_blamed():
    study = STUDIES["mlp"]
    rows = synthetic_rows(study, "gelu")
    rows[1].update(diverged=7, final=None)
    assert (rows[1]["arm"], rows[1]["seed"]) == ("swiglu", 1)
    assert ablate.difference(study, rows, "gelu") is None
    assert ablate.why_not_compared(study, rows, "gelu") == "a run of swiglu diverged"
    alone = [row for row in synthetic_rows(study, "gelu") if row["seed"] < 2]
    assert ablate.why_not_compared(study, alone, "gelu") == "fewer than two pairs of runs"


def test_a_vocabulary_that_diverged_has_no_mean():
    study = STUDIES["tokenizer"]
    rows = synthetic_rows(study, "bpe1024")
    for row in rows:
        row |= {"tokens": 100, "bytes_per_token": 2.0, "block_size": 8, "parameters": 9}
        row |= {"bits_per_byte": 1.5}
    rows[1].update(diverged=7, bits_per_byte=None)
    first, second, *_ = ablate.vocabulary_table(study, rows).splitlines()[2:]
    assert first.endswith("|  |  |")
    assert second.endswith("| 1.500 |  |")


@pytest.mark.parametrize(
    "settings, seeds, problem",
    [
        ({"learning_rate": 1.0}, 3, "arm 'b' can't set learning_rate"),
        ({"seed": 1}, 3, "arm 'b' can't set seed"),
        ({}, 1, "2 to 10 seeds, not 1"),
        ({}, 11, "2 to 10 seeds, not 11"),
        ({"max_steps": 900}, 3, "max_steps in proportion"),
    ],
)
def test_a_study_that_would_not_compare_what_it_says_is_refused(settings, seeds, problem):
    study = ablate.Study("?", {"a": {}, "b": settings})
    with pytest.raises(UserError, match=problem):
        ablate.check(study, seeds)
    ablate.check(ablate.Study("?", {"a": {}, "b": {"learning_rate": 1.0}}, rates=()), 3)


@pytest.mark.parametrize("arm", [{"mlp_typ": "gelu"}, {"mlp_type": "geglu"}])
def test_an_arm_with_an_unknown_setting_is_explained(arm):
    with pytest.raises(UserError, match="mlp_type"):
        ablate.arm_config(ablate.Study("?", {"a": {}, "b": arm}), ablate.CPU, "b")


def test_a_study_whose_first_arm_has_no_runs_is_explained():
    study = STUDIES["mlp"]
    rows = [row for row in synthetic_rows(study, "gelu") if row["arm"] != study.first]
    with pytest.raises(UserError, match="no runs of the arm 'swiglu': run the study again"):
        ablate.comparison_table(study, rows)


def test_arms_without_runs_are_left_out():
    study = STUDIES["recipe"]
    rows = [row for row in synthetic_rows(study, "GELU") if row["arm"] in (study.first, "GELU")]
    assert ablate.arms_of(study, rows) == [study.first, "GELU"]
    assert ablate.comparison_table(study, rows).count("\n") == 3


@pytest.mark.parametrize(
    "mean, half, expected",
    [(0.03, 0.01, True), (-0.03, 0.01, True), (0.03, 0.04, False), (0.01, 0.001, False)],
)
def test_a_difference_counts_if_it_is_large_and_its_interval_excludes_zero(mean, half, expected):
    assert ablate.counts(mean, half) == expected


def test_the_threshold_is_bonferronis_for_the_study_recipe():
    study = STUDIES["recipe"]
    rows = runs.read_rows(ROOT / "experiments/results/recipe/runs.jsonl")
    halves = [ablate.difference(study, rows, arm)[1] for arm in study.arms if arm != study.first]
    assert len(halves) == 27
    error = math.sqrt(statistics.mean(half**2 for half in halves)) / runs.STUDENT_T[1]
    assert error * math.sqrt(3) == pytest.approx(ablate.PAIR_DEVIATION, abs=5e-4)
    # of Student's t at 1 - 0.05 / 2 / 27, with 2 x 27 degrees of freedom (at most: the differences
    # share the base's runs)
    quantile = 3.27
    assert quantile * error == pytest.approx(ablate.THRESHOLD, abs=5e-4)
