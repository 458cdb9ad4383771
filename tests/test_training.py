"""train(): the loop, its files and its output."""

import math
import os
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import (
    NEEDS_COMPILER,
    ROOT,
    arguments,
    before_update,
    run,
    same,
    timeless,
    trained_steps,
    weights,
)

from common import checkpoint, timing
from common.dataset import load_dataset
from common.errors import UserError
from common.metrics import read_metrics
from evaluate import mean_loss
from train import Run, learning_rate, main, train

CPU = torch.device("cpu")
LAST, BEST, METRICS = "out/tiny_last.pt", "out/tiny_best.pt", "out/tiny_metrics.jsonl"


def test_curves_are_redrawn_at_each_evaluation(dataset, tiny, monkeypatch):
    drawn = []
    monkeypatch.setattr("train.draw", lambda runs, _: drawn.append(runs["tiny"][-1]["step"]))
    train(tiny(eval_interval=4))
    assert drawn == [4, 8, 12]


@pytest.mark.whole_endings
def test_a_run_learns_and_writes_its_files(dataset, tiny):
    result = train(tiny(max_steps=60, eval_interval=30))
    assert result["finished"]
    assert result["steps"] == list(range(60))
    assert result["val_steps"] == [0, 30, 60]
    assert result["lrs"] == [learning_rate(step, tiny(max_steps=60)) for step in range(60)]
    assert len(result["grad_norms"]) == len(result["train_losses"]) == 60
    assert result["best_val_loss"] == min(result["val_losses"][1:])
    assert result["best_val_loss"] < result["val_losses"][0] - 1
    endings = ["best.pt", "curves.png", "last.pt", "metrics.jsonl"]
    assert sorted(os.listdir("out")) == [f"tiny_{ending}" for ending in endings]
    assert checkpoint.load(LAST).step == 60
    with open("out/tiny_curves.png", "rb") as file:
        assert file.read(4) == b"\x89PNG"


def test_samples_are_printed_and_kept_in_the_metrics(dataset, tiny, capsys):
    train(tiny(eval_interval=12, sample_interval=8))
    printed = capsys.readouterr().out
    rows = read_metrics(METRICS)
    samples = {row["step"]: row["sample"] for row in rows if "sample" in row}
    assert list(samples) == [8, 12]
    for text in samples.values():
        assert text in printed


def test_a_run_prints_its_plan_its_losses_and_its_next_command(dataset, tiny, capsys):
    train(tiny(eval_interval=12))
    printed = capsys.readouterr().out
    assert "12 steps of 128 tokens" in printed
    assert "cpu (as set)" in printed
    assert "step     11 | loss" in printed
    assert "step     12 | validation loss" in printed
    assert "| best" in printed
    sample = ROOT / "sample.py"
    assert f"sample from it: python {sample} --ckpt out/tiny_best.pt" in printed


def test_metrics_have_a_row_for_every_step_and_evaluation(dataset, tiny):
    train(tiny(log_interval=5))
    rows = read_metrics(METRICS)
    assert trained_steps(METRICS) == list(range(12))
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 6, 12]
    for row in rows:
        assert row["tokens"] == row["step"] * 4 * 32
        if "train/loss" in row:
            assert row.keys() >= {"train/lr", "train/grad_norm"}


def test_every_step_has_its_own_time(dataset, tiny):
    train(tiny(log_interval=100, eval_interval=100))
    seconds = [row["seconds"] for row in read_metrics(METRICS)]
    assert seconds == sorted(seconds)
    assert len(set(seconds)) >= 10


def test_the_best_checkpoint_has_the_lowest_validation_loss(noise, tiny):
    result = train(tiny(**noise, max_steps=40))
    best = 1 + int(np.argmin(result["val_losses"][1:]))  # untrained weights do not count
    saved = checkpoint.load(BEST)
    assert best < len(result["val_losses"]) - 1
    assert saved.step == result["val_steps"][best]
    assert saved.best_val_loss == result["best_val_loss"] == result["val_losses"][best]


@pytest.mark.slow
def test_logging_and_sampling_do_not_change_training(dataset, tiny):
    train(tiny(dropout=0.1, eval_interval=12))
    often = {"eval_interval": 5, "log_interval": 5, "sample_interval": 3, "save_interval": 2}
    train(tiny(dropout=0.1, run_name="watched", **often))
    plain, watched = (
        [row for row in timeless(path) if "train/loss" in row]
        for path in (METRICS, "out/watched_metrics.jsonl")
    )
    assert plain == watched
    assert same(weights(LAST), weights("out/watched_last.pt"))


def test_a_diverged_model_is_never_saved(dataset, tiny):
    diverging = tiny(
        norm_type="none", qk_norm=False, learning_rate=1e18, warmup_steps=0, eval_interval=1
    )
    with pytest.raises(UserError, match="is nan|is inf"):
        train(diverging)
    assert checkpoint.load(LAST).step == 0
    assert not os.path.exists(BEST)
    assert all(tensor.isfinite().all() for tensor in weights(LAST).values())


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(dataset, tiny, monkeypatch):
    def break_weights(run, step):
        if step == 9:
            torch.nn.init.constant_(run.model.head.weight, math.nan)

    before_update(monkeypatch, break_weights)
    with pytest.raises(UserError, match="train/loss is nan at step 9: set a lower learning_rate"):
        train(tiny(log_interval=5, save_interval=2))
    assert checkpoint.load(LAST).step == 8
    assert all(tensor.isfinite().all() for tensor in weights(LAST).values())


def test_a_diverged_model_is_not_sampled(dataset, tiny, monkeypatch):
    def break_weights(run, step):
        if step == 1:  # not 0, which is logged at once
            torch.nn.init.constant_(run.model.head.weight, math.nan)

    before_update(monkeypatch, break_weights)
    with pytest.raises(UserError, match="train/loss is nan at step 1"):
        train(tiny(log_interval=5, sample_interval=3))


def test_the_average_of_the_weights_is_evaluated_and_saved(dataset, tiny):
    result = train(tiny(ema_decay=0.6))
    saved = checkpoint.load(LAST)
    assert not same(saved.model, saved.raw_model)
    model, _ = saved.build(CPU)
    loss = mean_loss(model, load_dataset("verses_char").val, torch.float32)
    assert result["val_losses"][-1] == pytest.approx(loss)


@pytest.mark.slow
def test_patience_ends_a_run_that_no_longer_improves(noise, tiny, capsys):
    result = train(tiny(**noise, max_steps=200, patience=2))
    best = 1 + int(np.argmin(result["val_losses"][1:]))
    assert result["finished"]
    assert len(result["val_losses"]) == best + 3 < 20
    assert "no improvement in 2 evaluations: stopping early" in capsys.readouterr().out

    resumed = train(tiny(**noise, max_steps=200, patience=3, resume=True))
    assert resumed["val_losses"][:-1] == result["val_losses"]
    assert len(resumed["steps"]) == len(result["steps"]) + 10


def test_patience_counts_from_the_step_where_the_interval_changed(dataset, tiny):
    settings = {"learning_rate": 1e-30, "warmup_steps": 0, "max_steps": 12}
    train(tiny(**settings, eval_interval=6))
    settings |= {"max_steps": 40, "eval_interval": 2, "patience": 3}
    resumed = train(tiny(**settings, resume=True))
    assert resumed["val_steps"][-4:] == [12, 14, 16, 18]
    assert checkpoint.load(LAST).best_step == 6  # still that of the best loss


def test_patience_starts_again_in_a_longer_run(noise, tiny):
    train(tiny(**noise, max_steps=200, patience=2))
    stopped = checkpoint.load(LAST).step
    resumed = train(tiny(**noise, max_steps=400, patience=2, resume=True))
    assert resumed["val_steps"][-1] >= stopped + 20


def test_a_longer_run_keeps_the_evaluation_of_its_former_end(dataset, tiny):
    train(tiny(max_steps=10))
    resumed = train(tiny(max_steps=20, resume=True))
    assert resumed["val_steps"] == [0, 6, 10, 12, 18, 20]


def test_a_figure_that_can_not_be_drawn_does_not_end_a_run(dataset, tiny, monkeypatch, capsys):
    def draw(runs, out):
        raise ModuleNotFoundError("No module named 'matplotlib'")

    monkeypatch.setattr("train.draw", draw)
    assert train(tiny())["finished"]
    output = capsys.readouterr().out
    assert "note: out/tiny_curves.png is not drawn: No module" in output
    assert "curves: " not in output


def test_losses_on_other_parts_of_the_split_are_not_compared(noise, tiny):
    train(tiny(**noise, max_steps=20, eval_tokens=16))
    result = train(tiny(**noise, max_steps=30, resume=True))
    best, _ = checkpoint.load(BEST).build(CPU)
    loss = mean_loss(best, load_dataset("noise_char").val, torch.float32)
    assert result["best_val_loss"] == pytest.approx(loss)


@pytest.mark.parametrize("interval, saved", [("5", 5), ("0", 0), ("0.00001min", 8)])
def test_save_interval_limits_what_a_crash_costs(dataset, tiny, monkeypatch, interval, saved):
    def crash(_, step):
        if step == 8:
            raise KeyboardInterrupt

    before_update(monkeypatch, crash)
    with pytest.raises(KeyboardInterrupt):
        train(tiny(save_interval=interval, eval_interval=12))
    assert checkpoint.load(LAST).step == saved


def test_the_final_loss_is_of_the_best_model_on_the_whole_validation_split(noise, tiny):
    result = train(tiny(**noise, max_steps=40, eval_tokens=16))
    best = checkpoint.load(BEST)
    assert best.step < 40
    model, _ = best.build(CPU)
    whole = mean_loss(model, load_dataset("noise_char").val, torch.float32)
    assert result["best_val_loss"] == pytest.approx(whole)
    assert whole not in result["val_losses"]


def test_evaluations_and_samples_do_not_count_as_training(noise, tiny, monkeypatch):
    """By a clock that advances by a second in each step, and by far more in what must not count."""
    clock = SimpleNamespace(now=0)
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock.now))

    def takes(seconds, function):
        def call(*args):
            clock.now += seconds
            return function(*args)

        return call

    monkeypatch.setattr(Run, "update", takes(1, Run.update))
    monkeypatch.setattr(Run, "sample", takes(1000, Run.sample))
    monkeypatch.setattr("train.mean_loss", takes(1000, mean_loss))
    train(tiny(**noise, max_steps=40, eval_tokens=16, sample_interval=15))
    rows = read_metrics("out/tiny_metrics.jsonl")
    assert {*rows[-1]} >= {"sample"}
    for row in rows:
        assert row["seconds"] == row["step"] + ("train/loss" in row)


def test_equal_weights_give_equal_samples(dataset, tiny):
    data = load_dataset("verses_char")
    config = tiny(vocab_size=data.tokenizer.vocab_size)
    texts = [Run(config, data, CPU, torch.float32).sample(50) for _ in range(2)]
    assert texts[0] == texts[1]
    assert len(texts[0]) == 50


@pytest.mark.whole_endings
def test_a_run_can_have_any_name(dataset, empty_config):
    name = "실험 実験 😀"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as glyphs that are missing from a font
        assert main([empty_config, *arguments(run_name=name, max_steps=2)]) == 0
    assert os.path.exists(f"out/{name}_curves.png")


# compilation


@pytest.mark.slow
@NEEDS_COMPILER
def test_compiled_blocks_learn_the_same(dataset, tiny):
    settings = {"max_steps": 6, "eval_interval": 3, "sample_interval": 3}
    compiled, plain = (train(tiny(**settings, compile=choice)) for choice in (True, False))
    for losses in ("train_losses", "val_losses"):
        assert compiled[losses] == pytest.approx(plain[losses], rel=1e-4)


@pytest.mark.slow
def test_without_a_working_compiler_one_line_says_so(dataset, empty_config, monkeypatch):
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(dataset / "cache"))
    status, _, error = run("train.py", empty_config, *arguments(compile=True))
    assert status == 1
    assert error.count("\n") == 1
    assert "use --compile=false" in error
    assert not os.path.exists("out")
