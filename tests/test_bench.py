import json
from pathlib import Path

import pytest
from helpers import ROOT, TINY

from config import Config
from experiments import bench
from prepare import prepare

CHECKOUT = {
    "model.py": """
import torch

class GPTConfig:
    def __init__(self, **settings):
        assert settings["n_embd"] == 8

class GPT(torch.nn.Module):
    def __init__(self, config):
        super().__init__()

    def generate(self, idx, max_new_tokens):
        return idx
""",
    "train.py": """
import sys

assert {"config/train_shakespeare_char.py", "--n_embd=8", "--batch_size=2", "--max_iters=8"} <= set(sys.argv)
for i in range(9):
    print(f"iter {i}: loss 4.1, time {100 if i > 3 else 5000:.2f}ms, mfu 0.03%")
""",
}


@pytest.fixture
def nanogpt(tmp_path, monkeypatch):
    """A folder that stands in for a checkout; what is trained is tiny."""
    for name, text in CHECKOUT.items():
        (tmp_path / name).write_text(text)
    shape = {"n_layers": 1, "n_heads": 1, "d_model": 8, "block_size": 8, "batch_size": 2}
    monkeypatch.setattr(bench, "SHAPES", {"10.65M": (shape, 8)})
    return tmp_path


def rows(folder: Path, what: str) -> list[dict]:
    return json.loads((folder / f"{what}.json").read_text())["rows"]


def test_generation_is_measured_beside_nanogpt(nanogpt, capsys):
    arguments = ["generation", "--device=cpu", "--rounds=2", "--out=results"]
    assert bench.main([*arguments, f"--out={nanogpt}", "--nanogpt", str(nanogpt)]) == 0
    one, ten = rows(nanogpt, "generation")
    assert (
        len(one["ours"]) == len(ten["nanogpt"]) == 2 and min(one["nanogpt"]) > max(one["ours"]) > 0
    )
    assert "10 at once" in capsys.readouterr().out
    assert bench.main([*arguments, f"--out={nanogpt}"]) == 0
    assert "nanogpt" not in rows(nanogpt, "generation")[0]
    assert bench.main([*arguments, "--nanogpt", str(nanogpt / "nowhere")]) == 2


def test_training_is_measured_by_what_both_programs_report(folder, nanogpt, monkeypatch):
    Path("verses.txt").write_text(
        (ROOT / "README.md").read_text(encoding="utf-8"), encoding="utf-8"
    )
    prepare("shakespeare_char", ["verses.txt"])
    monkeypatch.setattr(bench, "ceiling", lambda dtype, device: 1e12)
    monkeypatch.setattr(
        bench,
        "our_rate",
        lambda settings, *rest, run=bench.our_rate: run(settings | {"compile": False}, *rest),
    )
    assert (
        bench.main(["training", "--device=cpu", "--rounds=1", "--out=.", f"--nanogpt={nanogpt}"])
        == 0
    )
    compiled, eager, share, product = rows(folder, "training")
    assert (
        compiled["nanogpt"] == eager["nanogpt"] == [pytest.approx(2 * 8 / 0.1)]
    )  # the first steps don't count
    assert eager["ours"][0] > 0 and product["ours"] == [1000]
    operations = 6 * bench.count_parameters(bench.GPTConfig(65, 8, 1, 1, 8)) + 12 * 1 * 8 * 8
    assert share["ours"] == [pytest.approx(100 * operations * compiled["ours"][0] / 1e12)]


def test_the_table_has_medians_spreads_and_ratios(tmp_path):
    measured = [
        {"what": "a", "unit": "tokens/s", "ours": [30, 10, 20], "nanogpt": [5, 4, 3]},
        {"what": "b", "unit": "s", "ours": [2], "nanogpt": [8]},
        {"what": "c", "unit": "MB", "ours": [1234.5]},
    ]
    (tmp_path / "training.json").write_text(json.dumps({"rows": measured}))
    assert bench.table(tmp_path).splitlines()[2:] == [
        "| a | tokens/s | 3 | 20.0 (10.0 to 30.0) | 4.000 (3.000 to 5.000) | 5.0 |",
        "| b | s | 1 | 2.000 | 8.000 | 4.0 |",
        "| c | MB | 1 | 1,234 |  |  |",
    ]


def test_cost_follows_arithmetic():
    small, large = (
        bench.step_cost(Config(**TINY | {"batch_size": size, "vocab_size": 20}), 1)
        for size in (4, 8)
    )
    assert large["million operations"] == 2 * small["million operations"]
    assert (
        1.5 < large["MB by count"] / small["MB by count"] < 2
    )  # activations double, weights do not
    assert bench.slope([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    rows = [
        {"what": axis, "size": size, **cost}
        for axis in bench.GROWING
        for size, cost in ((4, small), (8, large))
    ]
    assert len(bench.cost_figure(rows).axes) == 8


def test_the_readmes_rows_are_those_of_the_results():
    table = bench.table(ROOT / bench.RESULTS)
    assert (ROOT / bench.RESULTS / "table.md").read_text(encoding="utf-8").strip() == table
    readme = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    head = readme.index(table.splitlines()[0])
    shown = readme[head : readme.index("", head)]
    assert len(shown) > 10 and set(shown) <= set(table.splitlines())
