import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT

import model as model_module
from common.errors import UserError
from experiments import questions, report
from experiments.runs import RESULTS
from train import train


@pytest.fixture
def results(dataset, tiny, monkeypatch):
    """The results of experiments.questions on tiny runs."""
    monkeypatch.setattr(questions, "BASE", tiny(max_steps=4))
    monkeypatch.setattr(questions, "SEEDS", (1, 2))
    monkeypatch.setattr(questions, "GRADIENT_STEPS", (0, 3))
    monkeypatch.setattr(questions, "WINDOWS", 16)
    monkeypatch.setattr(questions, "FEW_WINDOWS", 8)
    train(tiny(max_steps=60, sample_interval=30, eval_interval=60))
    assert questions.main(["out/tiny_best.pt", "--results=results"]) == 0
    return Path("results")


@pytest.mark.slow
def test_questions_measures_a_checkpoint_and_short_runs(results):
    measured = questions.read_measured(results)
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
    run = questions.read_runs(results)[0]
    assert (run["config"]["run_name"], run["step"]) == ("tiny", 60)
    assert run["loss"] < 1.5

    values = report.run_values(results) | report.question_values(results)
    assert f"| tiny | verses_char, {run['train']['tokens']:,} tokens |" in values["runs"]
    assert "| 0 |" in values["gradients table"]
    assert "| block 2 |" in values["stream table"]
    assert values["early sample"] != values["late sample"]
    questions.redraw(results)
    for name in ("trained/curves.png", "questions/heads.png", "questions/gradients.png"):
        assert (results / name).read_bytes()[:4] == b"\x89PNG"


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
    text = "<!--a-->1<!----> at\n<!--b-->\n| old |\n<!---->\n<!-- a remark --> <!--a-->7<!---->."
    filled = (
        "<!--a-->2<!----> at\n<!--b-->\n| x |\n|---|\n<!---->\n<!-- a remark --> <!--a-->2<!---->."
    )
    assert report.fill(text, {"a": "2", "b": "| x |\n|---|"}) == filled


def test_fill_suggests_a_name_for_an_unknown_value():
    with pytest.raises(UserError, match="'c'; did you mean 'cc'"):
        report.fill("<!--c-->1<!---->", {"cc": "2"})


def test_without_results_the_report_stays_as_it_is(folder, capsys):
    (folder / "REPORT.md").write_text("<!--machine-->mine<!---->")
    assert report.main([]) == 1
    error = capsys.readouterr().err
    assert "runs.json" in error
    assert error.count("\n") == 1
    assert (folder / "REPORT.md").read_text() == "<!--machine-->mine<!---->"


def test_tables_and_headline_numbers_are_those_of_the_committed_results():
    text = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    assert len(report.MARK.findall(text)) > 40
    assert report.fill(text, report.all_values(ROOT / RESULTS)) == text


def test_no_two_values_have_the_same_name():
    parts = report.run_values, report.study_values, report.scaling_values, report.question_values
    names = [name for part in parts for name in part(ROOT / RESULTS)]
    assert len(names) == len(set(names))


def test_links_and_marks_of_the_report_render():
    text = (ROOT / "REPORT.md").read_text(encoding="utf-8")
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert path.startswith("http") or (ROOT / path).exists(), path
    # in Markdown, a comment at the start of a line ends the paragraph
    assert not re.findall(r"^<!--[^>]*-->.+", text, re.MULTILINE)


def test_every_committed_figure_is_shown():
    pages = [ROOT / "REPORT.md", ROOT / "README.md", *(ROOT / "docs").glob("*.md")]
    texts = [page.read_text(encoding="utf-8") for page in pages]
    for figure in (ROOT / RESULTS).rglob("*.png"):
        name = figure.relative_to(ROOT).as_posix()
        assert any(name in text for text in texts), name
