"""What a run prints while it trains."""

import os

from helpers import TINY

from common import progress as progress_module
from common.metrics import Metrics
from common.progress import Progress
from common.timing import Stopwatch
from config import Config
from train import train

ROW = {"train/loss": 1.0, "train/lr": 1e-3, "train/grad_norm": 0.5}


class Clock(Stopwatch):
    """A stopwatch that a test sets."""

    seconds = 0.0

    def __init__(self):
        pass


def logged(monkeypatch, capsys, moments: list[tuple[int, float]], max_steps: int) -> list[str]:
    """The lines that are printed for these steps at these seconds."""
    config = Config(**(TINY | {"max_steps": max_steps}))
    metrics = Metrics.__new__(Metrics)
    metrics.wandb, metrics.clock = None, Clock()
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: metrics.clock.seconds)
    with Progress(config, 0, metrics) as progress:
        for step, seconds in moments:
            metrics.clock.seconds = seconds
            progress.log(step, ROW)
    return capsys.readouterr().out.splitlines()


def test_the_time_left_is_minutes_and_seconds_below_60(monkeypatch, capsys):
    lines = logged(monkeypatch, capsys, [(0, 0.0), (10, 9.999)], 430)
    assert lines[0].endswith("| 6:59 left") or lines[0].endswith("| 7:00 left")
    assert ":60 left" not in lines[0]


def test_speed_and_time_left_do_not_count_the_first_step(monkeypatch, capsys):
    lines = logged(monkeypatch, capsys, [(0, 100.0), (10, 110.0)], 31)
    assert "| 128 tokens/s | 0:20 left" in lines[0]


def test_steps_that_become_slow_on_a_busy_machine_are_reported_once(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0 * os.cpu_count(), 0, 0), raising=False)
    moments = [(0, 0.0), (10, 1.0), (20, 2.0), (30, 7.0), (40, 12.0)]
    lines = logged(monkeypatch, capsys, moments, 100)
    assert [line for line in lines if "other programs" in line] == [
        "steps take 5.0 times as long: other programs use the processor"
    ]


def test_slow_steps_on_an_idle_machine_are_not_blamed_on_other_programs(monkeypatch, capsys):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0, 0), raising=False)
    lines = logged(monkeypatch, capsys, [(0, 0.0), (10, 1.0), (20, 9.0)], 100)
    assert "other programs" not in "".join(lines)


def test_the_last_step_is_logged_and_no_step_twice(dataset, tiny, capsys):
    train(tiny(max_steps=13, log_interval=5, eval_interval=5))
    lines = capsys.readouterr().out.splitlines()
    trained = [int(line.split()[1]) for line in lines if "| loss" in line]
    assert trained == [5, 10, 12]
    evaluated = [int(line.split()[1]) for line in lines if "| validation loss" in line]
    assert evaluated == [0, 5, 10, 13]


def test_losses_on_a_part_of_the_validation_split_say_so(dataset, tiny, capsys):
    train(tiny(eval_tokens=64))
    printed = capsys.readouterr().out
    assert " on 64 of " in printed
    assert "best model (step 12): validation loss" in printed
    assert " on all " in printed


def test_a_model_of_mostly_embeddings_is_pointed_out(dataset, tiny, capsys):
    train(tiny(n_layers=1, d_ff=1, d_model=2, n_heads=1, max_steps=2, warmup_steps=0))
    assert "most of them are embeddings" in capsys.readouterr().out
    train(tiny(run_name="wide", max_steps=2, warmup_steps=0))
    assert "most of them are embeddings" not in capsys.readouterr().out


def test_many_epochs_are_pointed_out(dataset, tiny, capsys):
    train(tiny(max_steps=600, eval_interval=600, log_interval=100))
    assert "(the training text is read" in capsys.readouterr().out
