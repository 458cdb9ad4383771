import json
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
from train import train


@pytest.fixture
def results(dataset, tiny, monkeypatch):
    """The current folder, with what experiments.questions leaves of tiny runs."""
    monkeypatch.setattr(questions, "BASE", tiny(max_steps=4))
    monkeypatch.setattr(questions, "SEEDS", (1, 2))
    monkeypatch.setattr(questions, "WATCHED", (0, 3))
    monkeypatch.setattr(questions, "WINDOWS", 8)
    monkeypatch.setattr(questions, "FEW", 8)
    train(tiny(max_steps=60, sample_interval=30))
    assert questions.main(["out/tiny_best.pt", "--results=results"]) == 0
    return Path("results")


def test_questions_are_answered_by_what_a_run_left(results):
    measured = json.loads((results / "questions" / "measured.json").read_text())
    inside = measured["checkpoint"]
    assert inside["mask"]["before"] == 0 < inside["mask"]["from"]
    assert inside["stream"][-1]["loss"] == pytest.approx(
        inside["loss"], abs=1e-4
    )  # what is read last is the model's own
    assert inside["stream"][0]["loss"] > inside["loss"] and len(inside["stream"]) == 3
    assert inside["loss_unscaled"] != inside["loss"] == pytest.approx(np.mean(inside["positions"]))
    heads = np.array(inside["heads"])
    assert heads.shape == (2, 2, 16) and (heads >= 0).all() and (heads.sum(-1) <= 1 + 1e-5).all()
    for row in measured["scores"]:
        assert row["deviation"] == pytest.approx(math.sqrt(row["head_dim"]), rel=0.02)
    assert measured["scores"][-1]["plain"] > 0.9 and measured["scores"][-1]["scaled"] < 0.2
    before, after = measured["gradients"][0]["pre"]
    assert (
        (before["step"], after["step"]) == (0, 3)
        and len(before["norms"]) == 2
        and after["loss"] < before["loss"]
    )
    assert all(row["with"] < row["without"] for row in measured["weight_decay"])
    run = json.loads((results / "trained" / "runs.json").read_text())[0]
    assert run["config"]["run_name"] == "tiny" and run["step"] == 60 and run["loss"] < 1.5

    values = report.of_the_runs(results / "trained") | report.of_the_questions(
        results / "questions"
    )
    assert (
        values["early step"] == "30"
        and values["late step"] == "60"
        and "d_model=32" in values["settings"]
    )
    assert f"| tiny | verses_char, {run['train']['tokens']:,} tokens |" in values["runs"]
    assert "| 0 |" in values["gradients table"] and "| block 2 |" in values["stream table"]


@pytest.mark.parametrize("T", [1, 7])
def test_attend_is_the_models(T):
    q, k, v = torch.randn(3, 2, 2, T, 8)
    assert torch.allclose(questions.attend(q, k, v), model_module.attend(q, k, v), atol=1e-6)
    with questions.attending(factor=2.0):
        assert torch.allclose(
            model_module.attend(q, k, v), questions.attend(2 * q, k, v), atol=1e-6
        )
    assert torch.allclose(questions.attend(q, k, v), model_module.attend(q, k, v), atol=1e-6)


def test_heads_by_distance_knows_who_looks_where():
    T = 8
    to_itself, to_the_first, to_the_one_before = (
        torch.eye(T),
        torch.zeros(T, T),
        torch.eye(T).roll(-1, 1).tril(),
    )
    to_the_first[:, 0] = 1
    found = torch.tensor(
        questions.by_distance(torch.stack([to_itself, to_the_first, to_the_one_before])[None])
    )[0]
    assert found.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0], [0, 1, 0, 0]]


def test_filling_changes_what_is_marked_and_nothing_else():
    text = "It is <!--a-->1<!----> at\n<!--b-->\n| old |\n<!---->\nlast, <!-- a remark --> and <!--a-->7<!---->."
    filled = report.fill(text, {"a": "2", "b": "| x |\n|---|"})
    assert (
        filled
        == "It is <!--a-->2<!----> at\n<!--b-->\n| x |\n|---|\n<!---->\nlast, <!-- a remark --> and <!--a-->2<!---->."
    )
    with pytest.raises(UserError, match="'c'.* near is 'cc'"):
        report.fill("<!--c-->1<!---->", {"cc": "2"})


def test_without_results_a_line_says_what_makes_them(folder, capsys):
    (folder / "REPORT.md").write_text("<!--machine-->mine<!---->")
    assert report.main([]) == 1
    error = capsys.readouterr().err
    assert (
        "runs.json" in error
        and error.count("\n") == 1
        and (folder / "REPORT.md").read_text().count("mine") == 1
    )


@pytest.mark.parametrize("name", ["REPORT.md", "README.md"])
def test_every_marked_figure_is_that_of_the_results(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    text = Path(name).read_text(encoding="utf-8")
    assert report.MARK.search(text) and report.fill(text, report.values(report.RESULTS)) == text


def test_every_figure_in_the_report_is_marked(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = Path("REPORT.md").read_text(encoding="utf-8")
    paragraphs = [
        part
        for part in report.MARK.sub("", text).split("\n\n")
        if not part.startswith("*What would change")
    ]
    prose = [
        line for line in "\n\n".join(paragraphs).splitlines() if "arXiv:" not in line
    ]  # others found that
    assert not re.findall(r"\d\.\d+(?![\de])", "\n".join(prose))
    assert not re.findall(
        r"^<!--[^>]*-->.+", text, re.MULTILINE
    )  # at a line's start a comment would end its paragraph
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        assert path.startswith("http") or Path(path).exists(), path
