from types import SimpleNamespace

import pytest

from common import progress
from common.progress import Progress, print_resume_command


@pytest.fixture
def clock(monkeypatch):
    """clock.seconds is both the training time and the time of day."""
    clock = SimpleNamespace(seconds=1000.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(perf_counter=lambda: clock.seconds))
    return clock


def test_a_log_line_has_the_speed_and_the_remaining_time(tiny, clock, capsys):
    row = {"train/loss": 2.5, "train/lr": 1e-3, "train/grad_norm": 0.75}
    with Progress(tiny(max_steps=103), 0, SimpleNamespace(clock=clock, wandb=None)) as bar:
        bar.log(0, row)
        assert capsys.readouterr().out == ""  # the first step includes start-up
        clock.seconds += 4
        bar.log(2, row)
    assert capsys.readouterr().out == (
        "step      2 | loss 2.5000 | lr 1.00e-03 | gradient norm 0.750 | 64 tokens/s | 3:20 left\n"
    )


def test_a_gradient_norm_that_overflowed_is_shown_as_infinite(tiny, clock, capsys):
    with Progress(tiny(), 0, SimpleNamespace(clock=clock, wandb=None)) as bar:
        for step in range(2):
            bar.log(step, {"train/loss": 2.5, "train/lr": 1e-3})
            clock.seconds += 1
    assert "gradient norm inf" in capsys.readouterr().out


@pytest.mark.parametrize(
    "settings, options",
    [
        ({}, "--run_name=tiny --resume"),
        ({"run_name": "my run"}, "--run_name='my run' --resume"),
        ({"out_dir": "my runs"}, "--run_name=tiny --out_dir='my runs' --resume"),
    ],
)
def test_the_command_to_resume_has_the_name_and_folder_of_the_run(tiny, settings, options, capsys):
    print_resume_command(tiny(**settings), 1234)
    printed = capsys.readouterr().out
    assert "_last.pt at step 1,234; resume with: " in printed
    assert printed.endswith(f"python train.py {options}\n")
