import json
from pathlib import Path

import numpy as np
import pytest

import plot


@pytest.fixture
def metrics(folder):
    """The metrics file of a run of 100 steps with three evaluations, in the current folder."""
    rows = []
    for step in range(100):
        training = {"train/loss": 4 - step / 50, "train/lr": 1e-3, "train/grad_norm": 1.0}
        rows.append({"step": step, "tokens": 64 * step, "seconds": step / 2} | training)
    for step in (0, 50, 100):
        row = {"step": step, "tokens": 64 * step, "seconds": step / 2, "val/loss": 4.5}
        rows.append(row)
    path = Path("run_metrics.jsonl")
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def copy(metrics: Path, name: str) -> Path:
    path = Path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(metrics.read_bytes())
    return path


def panels(figure) -> list[str]:
    return [axis.get_ylabel() for axis in figure.axes]


def legend(figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].get_legend().get_texts()]


# -------------------------------------------------------------------------------------------------
# the figure


def test_the_command_draws_several_runs_into_one_png(metrics, capsys):
    other = copy(metrics, "other_metrics.jsonl")
    assert plot.main([str(metrics), str(other), "--out=curves.png"]) == 0
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == "wrote curves.png\n"


def test_the_ending_of_out_decides_the_format_and_its_folder_is_made(metrics):
    assert plot.main([str(metrics), "--out=figures/curves.svg"]) == 0
    assert "<svg" in Path("figures/curves.svg").read_text()


def test_a_folder_is_not_a_figure(metrics, capsys):
    Path("figures").mkdir()
    assert plot.main([str(metrics), "--out=figures"]) == 1
    assert capsys.readouterr().err == "error: Is a directory: figures\n"
    assert not Path("figures.tmp").exists()


def test_a_figure_that_can_not_be_drawn_leaves_the_old_one(metrics, capsys, monkeypatch):
    def savefig(*_, **__):
        raise RuntimeError("xelatex not found")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", savefig)
    Path("curves.pgf").write_text("an older figure")
    assert plot.main([str(metrics), "--out=curves.pgf"]) == 2
    assert "can't draw into curves.pgf: xelatex not found" in capsys.readouterr().err
    assert Path("curves.pgf").read_text() == "an older figure"


def test_the_loss_panel_shows_the_measured_and_the_smoothed_loss_and_the_validation_loss(metrics):
    raw, smoothed, validation = plot.curves(plot.load_runs([metrics])).axes[0].lines
    losses = 4 - np.arange(100) / 50
    np.testing.assert_allclose(raw.get_ydata(), losses)
    np.testing.assert_allclose(smoothed.get_ydata(), plot.smooth(losses))
    nan = pytest.approx(np.nan, nan_ok=True)  # no line between the untrained model and the others
    assert list(validation.get_xdata()) == [0, nan, 50, 100]
    assert list(validation.get_ydata()) == [4.5, nan, 4.5, 4.5]


def test_the_title_counts_all_steps_of_a_run_whose_curve_has_only_some():
    rows = [{"step": step, "train/loss": 3.0} for step in range(0, 100, 8)]
    rows.append({"step": 100, "val/loss": 3.5})
    assert "after 100 steps" in plot.sentence("run", rows)


@pytest.mark.parametrize("x, last", [("step", 100), ("tokens", 6400), ("seconds", 50)])
def test_the_x_axis_is_steps_tokens_or_seconds(metrics, x, last):
    metrics.write_text(metrics.read_text().replace('"seconds": 0.0', '"seconds": 0.001'))
    loss, *_, lowest = plot.curves(plot.load_runs([metrics]), x).axes
    _, gap, *_, end = loss.lines[-1].get_xdata()
    assert np.isnan(gap) and end == last
    assert x in lowest.get_xlabel()


def test_only_what_was_measured_gets_a_panel(metrics):
    assert panels(plot.curves(plot.load_runs([metrics]))) == list(plot.PANELS.values())
    row = {"step": 0, "train/loss": 4.0, "train/lr": 0.001}
    metrics.write_text(json.dumps(row) + "\n")
    assert panels(plot.curves(plot.load_runs([metrics]))) == [
        "loss (nats per token)",
        "learning rate",
    ]


def test_the_legend_names_each_run_once(metrics):
    first, second = copy(metrics, "out/a_metrics.jsonl"), copy(metrics, "out/_b_metrics.jsonl")
    assert legend(plot.curves(plot.load_runs([first, second]))) == ["a", "_b", "validation"]


def test_the_title_of_one_run_says_what_it_reached(metrics):
    figure = plot.curves(plot.load_runs([metrics]))
    expected = "run: validation loss 4.500 at best, training loss 2.030 after 100 steps"
    assert figure.get_suptitle() == expected
    assert legend(figure) == ["training", "validation"]
    with open(metrics, "a") as file:  # the best model on the whole split, at the end of the run
        file.write(json.dumps({"step": 100, "val/whole_loss": 4.6}) + "\n")
    title = plot.curves(plot.load_runs([metrics])).get_suptitle()
    assert title == expected.replace("4.500", "4.600")
    metrics.write_text(json.dumps({"step": 0, "train/loss": 4.0}) + "\n")
    assert plot.curves(plot.load_runs([metrics])).get_suptitle() == ""


def test_the_legend_shows_the_folders_of_runs_with_the_same_name(metrics):
    first, second = copy(metrics, "a/run_metrics.jsonl"), copy(metrics, "b/run_metrics.jsonl")
    names = [str(Path("a", "run")), str(Path("b", "run")), "validation"]
    assert legend(plot.curves(plot.load_runs([first, second]))) == names


def test_a_kept_run_is_named_without_its_files_ending(metrics):
    kept = copy(metrics, "run_metrics.prev.jsonl")
    assert list(plot.load_runs([kept])) == ["run.prev"]


def test_ten_runs_have_different_colors_or_line_styles(metrics):
    runs = [copy(metrics, f"{i}_metrics.jsonl") for i in range(10)]
    _, learning_rate, _ = plot.curves(plot.load_runs(runs)).axes
    looks = {(line.get_color(), line.get_linestyle()) for line in learning_rate.lines}
    assert len(looks) == 10


@pytest.mark.parametrize("name", ["cost$1_$2", "\udcfc"])  # mathematics; not UTF-8
def test_any_run_name_can_be_drawn(metrics, name):
    path = copy(metrics, f"{name}_metrics.jsonl")
    plot.draw(plot.load_runs([path]), "curves.png")


# -------------------------------------------------------------------------------------------------
# the data


def test_smoothing_is_a_mean_over_the_nearest_2_percent_of_the_points():
    values = np.random.default_rng(0).normal(size=5000)
    smoothed = plot.smooth(values)
    for i in range(400, 4900, 100):
        assert smoothed[i] == pytest.approx(values[i - 50 : i + 51].mean())
    assert smoothed[-1] == pytest.approx(values[-51:].mean())


def test_smoothing_keeps_a_straight_line():
    values = np.linspace(4, 1, 5000)
    np.testing.assert_allclose(plot.smooth(values)[:-50], values[:-50])


def test_smoothing_uses_fewer_points_near_the_start():
    values = np.random.default_rng(0).normal(size=5000)
    smoothed = plot.smooth(values)
    assert smoothed[0] == values[0]
    assert smoothed[40] == pytest.approx(values[30:51].mean())


@pytest.mark.parametrize("n", [0, 1, 3])
def test_smoothing_keeps_the_number_of_points(n):
    assert len(plot.smooth(np.ones(n))) == n
