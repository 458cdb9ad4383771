import math
import os

import pytest
import torch

from common.errors import UserError
from common.files import write_bytes
from common.metrics import Diverged, Metrics, read_metrics, summarize

PATH = "metrics.jsonl"


@pytest.fixture
def path(folder):
    return folder / PATH


def open_metrics(path, config, start=0, may_overflow=False):
    return Metrics(path, config, "run id", start, may_overflow)


def numbers(*values):
    return map(torch.tensor, values)


# writing


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device of Linux")
def test_a_full_disk_is_an_error_with_the_files_name(path, tiny):
    message = "can't write /dev/full: No space left"
    with pytest.raises(UserError, match=message), open_metrics(path, tiny()) as metrics:
        metrics.file = open("/dev/full", "a", buffering=1)
        metrics.write(0, {"val/loss": 1.0})


def test_steps_are_written_at_the_next_flush(path, tiny):
    with open_metrics(path, tiny()) as metrics:
        metrics.add(0, 0.1, *numbers(2.0, 1.5))
        metrics.add(1, 0.2, *numbers(1.0, 2.5))
        assert read_metrics(path) == []
        last = metrics.flush()
        first, second = read_metrics(path)
    assert last == second
    assert second.pop("seconds") >= first.pop("seconds") >= 0
    names = ("step", "tokens", "train/loss", "train/lr", "train/grad_norm")
    assert first == dict(zip(names, (0, 0, 2.0, 0.1, 1.5)))
    assert second == dict(zip(names, (1, 128, 1.0, 0.2, 2.5)))


def test_a_flush_without_new_steps_writes_nothing(path, tiny):
    with open_metrics(path, tiny()) as metrics:
        assert metrics.flush() == {}
    assert path.read_text() == ""


def test_a_continued_file_keeps_the_rows_before_its_start_and_their_time(path, tiny):
    with open_metrics(path, tiny()) as metrics:
        for step in range(5):
            metrics.write(step, {"train/loss": 1.0}, seconds=100.0 + step)
    with open_metrics(path, tiny(), start=3) as metrics:
        assert [row["step"] for row in read_metrics(path)] == [0, 1, 2]
        assert 102 <= metrics.clock.seconds < 103


def test_a_new_run_starts_a_new_file(path, tiny):
    path.write_text('{"step": 1, "val/loss": 2.0}\n')
    with open_metrics(path, tiny()):
        assert read_metrics(path) == []


@pytest.mark.parametrize("loss, norm", [(math.nan, 1.0), (math.inf, 1.0), (1.0, math.inf)])
def test_values_that_are_not_finite_end_the_run(path, tiny, loss, norm):
    with open_metrics(path, tiny()) as metrics:
        metrics.add(0, 0.1, *numbers(1.0, 1.0))
        metrics.add(1, 0.1, *numbers(loss, norm))
        with pytest.raises(Diverged, match="at step 1") as error:
            metrics.flush()
    assert error.value.step == 1
    assert [row["step"] for row in read_metrics(path)] == [0]


def test_an_overflow_of_float16_is_a_row_without_gradient_norm(path, tiny):
    with open_metrics(path, tiny(), may_overflow=True) as metrics:
        metrics.add(0, 0.1, *numbers(1.0, math.inf))
        row = metrics.flush()
    assert row["train/loss"] == 1.0
    assert "train/grad_norm" not in row


def test_a_run_whose_steps_all_overflow_has_diverged(path, tiny):
    with open_metrics(path, tiny(), may_overflow=True) as metrics:
        for step in range(60):
            metrics.add(step, 0.1, *numbers(1.0, math.inf if step != 5 else 1.0))
        with pytest.raises(Diverged, match="grad_norm is inf at step 56"):
            metrics.flush()


def test_the_curves_of_a_long_run_are_thinned_evenly(path, tiny, monkeypatch):
    monkeypatch.setattr("common.metrics.CURVE_POINTS", 10)
    with open_metrics(path, tiny()) as metrics:
        for step in range(100):
            metrics.write(step, {"train/loss": 1.0})
        metrics.write(100, {"val/loss": 1.0})
        assert [row["step"] for row in metrics.curves] == [*range(0, 100, 16), 100]


def test_only_the_first_process_writes(path, tiny, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with open_metrics(path, tiny()) as metrics:
        metrics.add(0, 0.1, *numbers(1.0, 1.0))
        assert metrics.flush()["train/loss"] == 1.0
    assert not path.exists()


# reading


def test_an_incomplete_last_line_is_ignored(path):
    path.write_text('{"step": 0, "val/loss": 2.0}\n{"step": 1, "val')
    assert read_metrics(path) == [{"step": 0, "val/loss": 2.0}]


@pytest.mark.parametrize(
    "line",
    [
        "no JSON",
        "[1, 2]",
        '{"val/loss": 1.0}',
        '{"step": "one"}',
        '{"step": 1, "val/loss": NaN}',
        '{"step": 1, "val/loss": "low"}',
        '{"step": 1, "sample": 5}',
    ],
)
def test_a_line_that_is_not_a_row_is_reported(path, line):
    path.write_text(f'{{"step": 0}}\n{line}\n{{"step": 2}}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl is not a metrics file \(line 2\)"):
        read_metrics(path)


def test_summarize_turns_rows_into_curves():
    rows = [
        {"step": 0, "val/loss": 3.0},
        {"step": 0, "train/loss": 2.0, "train/lr": 0.1, "train/grad_norm": 5.0},
        {"step": 1, "train/loss": 1.0, "train/lr": 0.2},  # float16 overflowed
        {"step": 1, "sample": "text"},
        {"step": 2, "val/loss": 1.5},
    ]
    assert summarize(rows) == {
        "steps": [0, 1],
        "train_losses": [2.0, 1.0],
        "lrs": [0.1, 0.2],
        "grad_norms": [5.0, math.inf],
        "val_steps": [0, 2],
        "val_losses": [3.0, 1.5],
    }


def test_of_two_runs_that_start_at_once_only_one_writes(path, tiny, monkeypatch):
    def write(*arguments):
        with pytest.raises(UserError, match="another run is still writing"):
            open_metrics(path, tiny())
        write_bytes(*arguments)

    monkeypatch.setattr("common.metrics.write_bytes", write)
    with open_metrics(path, tiny()):
        pass
