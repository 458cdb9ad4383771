import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from helpers import ROOT, contents, error_line

import model as model_module
from common.errors import UserError
from experiments import figures, memorize, questions, report
from experiments.runs import read_json
from train import train

SHIPPED = "experiments/results"


@pytest.fixture
def results(dataset, tiny, monkeypatch):
    """The results of experiments.questions on tiny runs."""
    monkeypatch.setattr(questions, "BASE", tiny(max_steps=4))
    monkeypatch.setattr(questions, "GRADIENT_STEPS", (0, 3))
    monkeypatch.setattr(questions, "WINDOWS", 16)
    monkeypatch.setattr(questions, "FEW_WINDOWS", 8)
    monkeypatch.setattr(memorize, "LENGTH", 50)
    norm_times = partial(questions.norm_times, rounds=1, steps=8)
    monkeypatch.setattr(questions, "norm_times", norm_times)
    train(tiny(max_steps=60, sample_interval=30, eval_interval=60))
    Path("results/trained").mkdir(parents=True)
    earlier = [{"config": {"run_name": name}, "step": 1} for name in ("tiny", "other")]
    Path("results/trained/runs.json").write_text(json.dumps(earlier))
    assert questions.main(["out/tiny_best.pt", "--seeds=2", "--results=results"]) == 0
    return Path("results")


@pytest.mark.slow
def test_questions_measures_a_checkpoint_and_short_runs(results):
    measured = read_json(results / "questions" / "measured.json")
    inside = measured["checkpoint"]
    assert inside["mask"]["before"] == 0 < inside["mask"]["from"]
    assert len(inside["stream"]) == 3
    assert inside["stream"][0]["loss"] > inside["loss"]
    assert inside["stream"][-1]["loss"] == pytest.approx(inside["loss"], abs=1e-4)
    assert inside["loss_unscaled"] != inside["loss"]
    assert len(inside["positions"]) == 32
    assert inside["positions"][0] > inside["positions"][-1]
    heads = np.array(inside["heads"])
    assert heads.shape == (2, 2, 16)
    assert heads.min() >= 0
    assert heads.sum(-1).max() <= 1 + 1e-5
    for row in measured["scores"]:
        assert row["deviation"] == pytest.approx(math.sqrt(row["head_dim"]), rel=0.02)
    assert measured["scores"][-1]["plain"] > 0.9
    assert measured["scores"][-1]["scaled"] < 0.2
    assert len(measured["gradients"]) == 2
    before, after = measured["gradients"][0]["pre"]
    assert (before["step"], after["step"]) == (0, 3)
    assert len(before["norms"]) == 2
    assert after["loss"] < before["loss"]
    for row in measured["weight_decay"]:
        assert row["with"] < row["without"]
    path = results / "trained" / "runs.json"
    run, other = read_json(path)  # the new run replaces the one of its name and comes first
    assert (run["config"]["run_name"], run["step"]) == ("tiny", 60)
    assert other == {"config": {"run_name": "other"}, "step": 1}
    path.write_text(json.dumps([run]))
    assert run["loss"] < 1.5

    assert run["memorized"]["val_loss"] == run["loss"]

    assert report.main(["--results=results"]) == 0
    text = Path("results/REPORT.md").read_text()
    assert f"| tiny | verses_char, {run['train']['tokens']:,} tokens |" in text
    assert "| block 2 |" in text
    assert "longest repetition in a sample" in text
    assert "After 30 steps:" in text and "After 60 steps:" in text
    for name in ("trained/curves", "questions/heads", "questions/gradients"):
        assert f"]({name}.png)" in text
        assert Path(f"results/{name}.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("T", [1, 7])
def test_attend_equals_the_models(T):
    q, k, v = torch.randn(3, 2, 2, T, 8)
    expected = model_module.attend(q, k, v)
    assert torch.allclose(questions.attend(q, k, v), expected, atol=1e-6)
    with questions.attending(factor=2.0):
        doubled = model_module.attend(q, k, v)
    assert torch.allclose(doubled, questions.attend(2 * q, k, v), atol=1e-6)
    assert torch.equal(model_module.attend(q, k, v), expected)


def test_by_distance_shows_where_heads_look():
    T = 8
    to_itself = torch.eye(T)
    to_the_first = torch.zeros(T, T)
    to_the_first[:, 0] = 1
    to_the_one_before = torch.eye(T).roll(-1, 1).tril()
    heads = torch.stack([to_itself, to_the_first, to_the_one_before])[None]
    assert questions.by_distance(heads) == [[[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]]


def test_contexts_are_grouped_by_powers_of_two():
    table = questions.context_table([4.0, 3.0, 2.0, 1.0, 1.0, 1.0, 1.0])
    assert table.splitlines()[0] == "| tokens of context | 1 | 2 to 3 | 4 to 7 |"
    assert table.splitlines()[2] == "| loss | 4.00 | 2.50 | 1.00 |"


def test_fill_replaces_what_is_marked_and_nothing_else():
    text = (
        "It <!--mlp: a-->1<!----> at\n<!--mlp: b-->| old |<!---->\n"
        "<!-- a remark --><!--TODO--> <!--mlp: a-->7<!---->."
    )
    filled = (
        "It <!--mlp: a-->2<!----> at\n<!--mlp: b-->\n| x |\n|---|\n<!---->\n"
        "<!-- a remark --><!--TODO--> <!--mlp: a-->2<!---->."
    )
    assert report.fill(text, {"mlp: a": "2", "mlp: b": "| x |\n|---|"}) == filled


@pytest.mark.parametrize(
    "text, mark",
    [
        ("<!--mlp: a-->1 mine <!--mlp: b-->2<!---->", "<!--mlp: a--> has no <!----> after it"),
        ("<!--mlp: a-->1<!----> mine <!--mlp: b-->2", "<!--mlp: b--> has no <!----> after it"),
        ("1<!----> mine <!--mlp: b-->2<!---->", "<!----> has no mark before it"),
    ],
)
def test_fill_loses_no_prose_where_half_a_mark_is_missing(text, mark):
    with pytest.raises(UserError, match=mark):
        report.fill(text, {"mlp: a": "2", "mlp: b": "3"})


def test_fill_suggests_a_name_for_an_unknown_value():
    with pytest.raises(UserError, match="'mlp: c'; did you mean 'mlp: cc'"):
        report.fill("<!--mlp: c-->1<!---->", {"mlp: cc": "2"})


def test_fill_says_how_to_measure_what_was_not_measured():
    filled = report.fill("<!--norms: none-->1<!---->", {"mlp: gelu": "2"})
    assert "`python -m experiments.ablate norms`" in filled
    with pytest.raises(UserError, match="unknown value 'mlp: glu'; did you mean 'mlp: gelu'"):
        report.fill("<!--mlp: glu-->1<!---->", {"mlp: gelu": "2"})


@pytest.fixture
def two_studies(folder):
    """A folder of results with two of the project's own studies."""
    for name in ("norms", "mlp"):
        shutil.copytree(ROOT / SHIPPED / name, f"mine/{name}")
    return Path("mine")


def test_some_studies_are_enough_for_a_report_that_says_what_is_missing(two_studies, capsys):
    assert report.main(["--results=mine"]) == 0
    output, text = capsys.readouterr().out, Path("mine/REPORT.md").read_text()
    assert "| gelu | 0.008 | 600 | 5 | 0 | 1.891 ± 0.011 | +0.030 ± 0.013 |" in text
    assert "![3 of 7 changes have an effect that counts](forest.png)" in text
    assert Path("mine/forest.png").read_bytes()[:4] == b"\x89PNG"
    assert "# mlp" in Path("mine/tables.md").read_text()
    for command in ("ablate stability", "scaling", "questions out/capstone_best.pt"):
        assert f"`python -m experiments.{command}`" in text
        assert output.count(f"  python -m experiments.{command}\n") == 1
    assert "ablate norms" not in output
    assert "wrote mine/REPORT.md: 2 measured values" in output


@pytest.mark.parametrize("arm", ["swiglu", "gelu"])
def test_a_run_that_diverged_is_part_of_the_report(two_studies, arm):
    path = two_studies / "mlp" / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    next(row for row in rows if row["arm"] == arm and row["seed"] == 3).update(diverged=7)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert report.main(["--results=mine"]) == 0
    compared = 5 if arm == "swiglu" else 6  # without swiglu, nothing is left to compare with
    assert f"of {compared} changes" in Path("mine/REPORT.md").read_text()


def test_a_second_report_keeps_the_prose(two_studies):
    report.main(["--results=mine"])
    path = Path("mine/REPORT.md")
    path.write_text(
        path.read_text().replace("*What did you expect to help that did not?*", "Nothing helped.")
    )
    shutil.copytree(ROOT / SHIPPED / "stability", "mine/stability")
    assert report.main(["--results=mine"]) == 0
    assert "Nothing helped." in path.read_text()
    assert "(stability/learning_rates.png)" in path.read_text()


def test_a_report_that_uses_an_unknown_value_changes_nothing(two_studies, capsys):
    (two_studies / "REPORT.md").write_text("<!--norms: nine-->mine<!---->")
    before = contents(two_studies)
    assert report.main(["--results=mine"]) == 1
    assert "'norms: nine'; did you mean 'norms: none'" in error_line(capsys)
    assert contents(two_studies) == before


def test_without_results_there_is_no_report(folder, capsys):
    assert report.main([]) == 1
    assert "no results in out/results: run experiments.ablate" in error_line(capsys)
    assert not contents(folder)


def test_a_file_that_is_missing_is_named(two_studies, capsys):
    (two_studies / "scaling").mkdir()
    assert report.main(["--results=mine"]) == 1
    assert "runs.jsonl: run python -m experiments.scaling" in error_line(capsys)


def test_results_of_an_older_version_are_named(two_studies, capsys):
    path = two_studies / "norms" / "runs.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps({"arm": row["arm"]}) + "\n" for row in rows))
    assert report.main(["--results=mine"]) == 1
    error = error_line(capsys)
    assert "mine/norms is incomplete, or from an older version" in error
    assert "run python -m experiments.ablate norms" in error


@pytest.fixture(scope="module")
def values():
    """Those of the committed results; figures by their place."""
    with matplotlib.rc_context(figures.STYLE):
        values = report.all_values(ROOT / SHIPPED)
    for name, value in values.items():
        if not isinstance(value, str):
            values[name] = f"![{report.title_of(value)}]({SHIPPED}/{report.place_of(name)})"
    return values


def test_tables_and_headline_numbers_are_those_of_the_committed_results(values):
    text = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    assert len(report.MARK.findall(text)) > 40
    assert report.fill(text, values) == text
    committed = (ROOT / SHIPPED / "tables.md").read_text(encoding="utf-8")
    assert report.all_tables(values) == committed


def test_links_and_marks_of_the_report_render():
    text = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert path.startswith("http") or (ROOT / path).exists(), path
    # in Markdown, a comment at the start of a line ends the paragraph
    assert not re.findall(r"^<!--[^>]*-->.+", text, re.MULTILINE)


def test_every_committed_figure_is_shown():
    pages = [ROOT / "REPORT.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    for figure in (ROOT / SHIPPED).rglob("*.png"):
        name = figure.relative_to(ROOT).as_posix()
        assert any(name in text for text in texts), name


def test_a_setting_that_no_longer_exists_is_ignored():
    assert report.config_of({"config": {"seed": 2, "gone": 1}}).seed == 2
