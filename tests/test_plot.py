import json

import numpy as np
import pytest

import plot
from common.metrics import read_metrics


@pytest.fixture
def metrics(tmp_path):
    path = tmp_path / "run_metrics.jsonl"
    rows = [
        {
            "step": s,
            "tokens": 64 * s,
            "seconds": s / 2,
            "train/loss": 4 - s / 50,
            "train/lr": 1e-3,
            "train/grad_norm": 1.0,
        }
        for s in range(100)
    ]
    rows += [{"step": s, "tokens": 64 * s, "seconds": s / 2, "val/loss": 4.0} for s in (0, 50, 100)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_it_draws_the_runs_it_is_given(metrics, tmp_path, capsys):
    out = tmp_path / "curves.png"
    assert plot.main([str(metrics), str(metrics), "--out", str(out)]) == 0
    assert out.read_bytes()[:4] == b"\x89PNG" and str(out) in capsys.readouterr().out


def test_every_run_has_one_entry_in_the_legend_that_no_other_has(metrics, tmp_path):
    other = tmp_path / "other" / metrics.name
    other.parent.mkdir()
    other.write_bytes(metrics.read_bytes())
    loss = plot.curves([metrics, other]).axes[0]
    labels = [text.get_text() for text in loss.get_legend().get_texts()]
    assert labels == [str(tmp_path / "run"), str(tmp_path / "other" / "run"), "validation"]
    runs = [tmp_path / f"{i}_metrics.jsonl" for i in range(10)]
    for path in runs:
        path.write_bytes(metrics.read_bytes())
    looks = {(line.get_color(), line.get_linestyle()) for line in plot.curves(runs).axes[1].lines}
    assert len(looks) == 10


def test_what_no_run_has_gets_no_panel(tmp_path):
    path = tmp_path / "run_metrics.jsonl"
    path.write_text(
        '{"step": 0, "train/loss": 4.0, "train/lr": 0.001}\n{"step": 1, "train/loss": 3, "train/lr": 0.1}\n'
    )
    assert [axis.get_ylabel() for axis in plot.curves([path]).axes] == [
        "loss (nats per token)",
        "learning rate",
    ]


def test_the_folder_of_the_figure_is_made(metrics, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert plot.main([str(metrics)]) == 0 and (tmp_path / "out" / "curves.png").exists()


def test_the_curves_stand_over_steps_tokens_or_seconds(metrics):
    for x, last in (("step", 100), ("tokens", 6400), ("seconds", 50)):
        loss, *_, bottom = plot.curves([metrics], x).axes
        assert loss.lines[-1].get_xdata()[-1] == last and x in bottom.get_xlabel()


def test_a_line_that_was_cut_short_is_left_out(metrics):
    whole = read_metrics(metrics)
    with open(metrics, "a") as file:
        file.write('{"step": 101, "tra')
    assert read_metrics(metrics) == whole


def test_what_is_no_metrics_file_is_refused(metrics, tmp_path, capsys):
    (tmp_path / "other.jsonl").write_text("hello\nthere\n")
    (tmp_path / "image.png").write_bytes(b"\x89PNG\xff")
    for name, words in (
        ("other.jsonl", "see line 1"),
        ("image.png", "not text"),
        ("none.jsonl", "No such file"),
    ):
        assert plot.main([str(tmp_path / name)]) == 1
        error = capsys.readouterr().err
        assert name in error and words in error and error.count("\n") == 1


def test_smoothing_keeps_a_constant_and_tames_noise():
    assert np.allclose(plot.smooth(np.full(300, 2.5)), 2.5)
    noise = np.random.default_rng(0).normal(size=5000)
    assert plot.smooth(noise)[500:].std() < 0.2 and plot.smooth(noise).shape == noise.shape
    assert len(plot.smooth(np.empty(0))) == 0
