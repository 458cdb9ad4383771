"""What a run prints while it trains."""

import os
import re
import sys
import termios
import threading
from contextlib import suppress
from types import SimpleNamespace

import pytest
from helpers import ROOT

from common import progress
from common.progress import Progress, print_resume_command
from train import train

ROW = {"train/loss": 2.5, "train/lr": 1e-3, "train/grad_norm": 0.75}


@pytest.fixture
def clock(monkeypatch):
    """clock.seconds is both the training time and the time of day."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def test_a_log_line_has_the_speed_and_the_remaining_time(tiny, clock, capsys):
    with Progress(tiny(max_steps=103), 0, SimpleNamespace(clock=clock, wandb=None)) as bar:
        bar.log(0, ROW)
        assert capsys.readouterr().out == ""  # the first step includes start-up
        clock.seconds += 4
        bar.log(2, ROW)
    assert capsys.readouterr().out == (
        "step      2 | loss 2.5000 | lr 1.0e-03 | norm 0.75 | 64 tok/s | 03:20 left\n"
    )


def test_a_gradient_norm_that_overflowed_is_shown_as_infinite(tiny, clock, capsys):
    with Progress(tiny(), 0, SimpleNamespace(clock=clock, wandb=None)) as bar:
        for step in range(2):
            bar.log(step, {"train/loss": 2.5, "train/lr": 1e-3})
            clock.seconds += 1
    assert "norm inf" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, options",
    [
        ({}, "--run_name=tiny --out_dir=out --resume"),
        ({"run_name": "my run"}, "--run_name='my run' --out_dir=out --resume"),
        ({"out_dir": "my runs"}, "--run_name=tiny --out_dir='my runs' --resume"),
    ],
)
def test_the_command_to_resume_has_the_name_and_folder_of_the_run(
    tiny, settings, options, capsys, monkeypatch, tmp_path
):
    monkeypatch.chdir(tmp_path)
    print_resume_command(tiny(**settings), 1234)
    printed = capsys.readouterr().out
    assert "_last.pt at step 1,234; resume with: " in printed
    assert printed.endswith(f"python {ROOT / 'train.py'} {options}\n")
    monkeypatch.chdir(ROOT)
    print_resume_command(tiny(**settings), 1234)
    assert capsys.readouterr().out.endswith(f": python train.py {options}\n")


def logged(config, clock, capsys, moments: list[tuple[int, float]]) -> list[str]:
    """The lines that are printed for these steps at these seconds."""
    with Progress(config, 0, SimpleNamespace(clock=clock, wandb=None)) as bar:
        for step, seconds in moments:
            clock.seconds = seconds
            bar.log(step, ROW)
    return capsys.readouterr().out.splitlines()


def test_steps_that_become_slow_on_a_busy_machine_are_reported_once(
    tiny, clock, capsys, monkeypatch
):
    monkeypatch.setattr(os, "getloadavg", lambda: (2.0 * os.cpu_count(), 0, 0), raising=False)
    moments = [(0, 0.0), (10, 1.0), (20, 2.0), (30, 7.0), (40, 12.0)]
    lines = logged(tiny(max_steps=100), clock, capsys, moments)
    assert [line for line in lines if "other programs" in line] == [
        "steps now take 5.0 times as long: other programs are using the CPU"
    ]


def test_slow_steps_on_an_idle_machine_are_not_blamed_on_others(tiny, clock, capsys, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (0.5, 0, 0), raising=False)
    lines = logged(tiny(max_steps=100), clock, capsys, [(0, 0.0), (10, 1.0), (20, 9.0)])
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
    assert " on ~64 tokens" in printed
    assert "best model (step 12): validation loss" in printed
    assert " on all " in printed


def test_a_model_of_mostly_embeddings_is_pointed_out(dataset, tiny, capsys):
    train(tiny(n_layers=1, d_ff=1, d_model=2, n_heads=1, max_steps=2, warmup_steps=0))
    assert "most of them are embeddings" in capsys.readouterr().out
    train(tiny(run_name="wide", max_steps=2, warmup_steps=0))
    assert "most of them are embeddings" not in capsys.readouterr().out


@pytest.mark.slow
def test_many_epochs_are_pointed_out(dataset, tiny, capsys):
    train(tiny(batch_size=64, max_steps=20))
    assert "(the training text is read" in capsys.readouterr().out


def test_every_line_fits_a_terminal_of_80_columns(dataset, tiny):
    master, slave = os.openpty()
    termios.tcsetwinsize(slave, (24, 80))
    printed = []

    def read():
        with suppress(OSError):  # the end of a terminal's output
            while piece := os.read(master, 1 << 16):
                printed.append(piece)

    reader = threading.Thread(target=read)
    reader.start()
    with open(slave, "w") as terminal, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", terminal)
        patch.setattr(sys, "stderr", terminal)
        train(tiny(max_steps=40, eval_interval=20))
    reader.join()
    os.close(master)
    lines = re.split(r"[\r\n]+", b"".join(printed).decode())
    steps = [line for line in lines if re.match(r"step +[\d,]+ \| ", line)]
    assert len(steps) == 42  # 39 log lines, 3 evaluations
    assert max(map(len, steps)) <= 80
    bars = [line for line in lines if re.match(r" *\d+% \|", line)]
    assert max(map(len, bars)) <= 80
    assert bars[-1].endswith("40/40 steps")
