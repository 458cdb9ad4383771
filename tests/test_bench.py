import json
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers import ROOT, TINY, verses

from config import Config
from experiments import bench
from experiments.runs import write_rows
from model import flops_per_token
from prepare import prepare
from train import main

CHECKOUT = {  # files of a pretended nanoGPT
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

assert {"config/train_shakespeare_char.py", "--n_embd=8", "--batch_size=2"} <= set(sys.argv)
for i in range(9):
    print(f"iter {i}: loss 4.1, time {100 if i > 3 else 5000:.2f}ms, mfu 0.03%")
""",
}
SHAPE = {"n_layers": 1, "n_heads": 1, "d_model": 8, "block_size": 8, "batch_size": 2}


@pytest.fixture
def nanogpt(folder, monkeypatch):
    """The current folder, with a pretended checkout in nanogpt/; the models are tiny."""
    (folder / "nanogpt").mkdir()
    for name, text in CHECKOUT.items():
        (folder / "nanogpt" / name).write_text(text)
    monkeypatch.setattr(bench, "SHAPES", {"10.65M": SHAPE})
    monkeypatch.setattr(bench, "TRAINED", {"cpu": [(SHAPE, 8)]})
    return folder


def read_results(name: str) -> list[dict]:
    return json.loads(Path(f"bench_cpu/{name}.json").read_text())["rows"]


def test_generation_is_measured_for_one_and_ten_texts(nanogpt, capsys, monkeypatch):
    monkeypatch.setattr(bench, "time_call", lambda run, device: 1.0)
    arguments = ["generation", "--device=cpu", "--rounds=2", "--results=."]
    assert bench.main([*arguments, "--nanogpt=nanogpt"]) == 0
    one, ten = read_results("generation")
    assert "1 at once" in one["what"]
    assert "10 at once" in ten["what"]
    assert (one["ours"], ten["ours"]) == ([500, 500], [5000, 5000])  # tokens in a second
    assert one["nanogpt"] == ten["nanogpt"] == [500, 500]  # one text after another
    assert ten["what"] in capsys.readouterr().out


def test_nanogpt_is_optional_but_must_exist(nanogpt, capsys):
    arguments = ["generation", "--device=cpu", "--rounds=1", "--results=."]
    assert bench.main(arguments) == 0
    assert "nanogpt" not in read_results("generation")[0]
    assert bench.main([*arguments, "--nanogpt=nowhere"]) == 2
    assert "no nanoGPT in nowhere" in capsys.readouterr().err


def test_our_training_rate_comes_from_a_run(folder, monkeypatch):
    def run_here(line, variables):
        assert main([str(argument) for argument in line[1:]]) == 0

    monkeypatch.setattr(bench, "run_python", run_here)
    Path("verses.txt").write_text(verses(400))
    prepare("shakespeare_char", ["verses.txt"])
    assert bench.our_training_rate(SHAPE | {"device": "cpu", "compile": False}, 8) > 0


def test_nanogpts_training_rate_comes_from_what_it_prints(nanogpt):
    rate = bench.nanogpt_training_rate("nanogpt", SHAPE, 8, torch.device("cpu"))
    assert rate == pytest.approx(2 * 8 / 0.1)  # the first steps don't count


def test_our_rate_is_that_of_the_metrics_without_the_first_steps(folder, monkeypatch):
    def train(line, variables):
        seconds = [5.0, 10.0, 15.0, 20.0, *(20 + 0.0025 * i for i in range(1, 9))]
        rows = [
            {"step": i, "tokens": 16 * i, "seconds": at, "train/loss": 4.0}
            for i, at in enumerate(seconds)
        ]
        write_rows(Path(line[-1].removeprefix("--out_dir="), "run_metrics.jsonl"), rows)

    monkeypatch.setattr(bench, "run_python", train)
    assert bench.our_training_rate(SHAPE, 12) == pytest.approx(16 / 0.0025)


def test_training_compares_rates_with_the_peak(nanogpt, monkeypatch):
    monkeypatch.setattr(bench, "peak_flops", lambda dtype, device: 1e12)

    def rate(settings, steps):
        return 5000.0 if settings.get("compile") else 4000.0

    monkeypatch.setattr(bench, "our_training_rate", rate)
    arguments = ["training", "--device=cpu", "--rounds=1", "--results=.", "--nanogpt=nanogpt"]
    assert bench.main(arguments) == 0
    compiled, eager, fraction, product = read_results("training")
    assert (compiled["ours"], eager["ours"]) == ([5000], [4000])
    assert compiled["nanogpt"] == eager["nanogpt"] == [pytest.approx(2 * 8 / 0.1)]
    assert product["ours"] == [1000]
    flops = flops_per_token(bench.model_config(SHAPE))
    assert fraction["ours"] == [pytest.approx(100 * flops * 5000 / 1e12)]


def test_the_table_has_medians_ranges_and_ratios(tmp_path):
    rows = [
        {"what": "a", "unit": "tokens/s", "ours": [30, 10, 20], "nanogpt": [5, 4, 3]},
        {"what": "b", "unit": "s", "ours": [2], "nanogpt": [8]},
        {"what": "c", "unit": "MB", "ours": [1234.5]},
    ]
    (tmp_path / "training.json").write_text(json.dumps({"rows": rows}))
    assert bench.results_table(tmp_path).splitlines()[2:] == [
        "| a | tokens/s | 3 | 20.0 (10.0 to 30.0) | nanoGPT 4.000 (3.000 to 5.000) | 5.0 |",
        "| b | s | 1 | 2.000 | nanoGPT 8.000 | 4.0 |",
        "| c | MB | 1 | 1,234 |  |  |",
    ]


def test_the_cost_of_a_step_grows_with_the_batch():
    config = Config(**TINY | {"vocab_size": 20})
    small = bench.step_cost(config, 1)
    large = bench.step_cost(replace(config, batch_size=2 * config.batch_size), 1)
    assert large["million FLOPs"] == 2 * small["million FLOPs"]
    # activations double, weights don't
    assert 1.5 < large["MB by count"] / small["MB by count"] < 2
    rows = []
    for axis in bench.COST_AXES:  # the peak of a process that has run other tests says nothing
        rows.append({"what": axis, "size": 4, **small, "MB": 1.0})
        rows.append({"what": axis, "size": 8, **large, "MB": 2.0})
    assert len(bench.cost_figure(rows).axes) == 8


def test_power_is_the_exponent():
    assert bench.power([1, 2, 4], [3, 12, 48]) == pytest.approx(2)


@pytest.mark.parametrize("folder", ["bench_cpu", "bench_cuda", "without_bfloat16/bench_cpu"])
def test_the_committed_table_is_that_of_the_results(folder):
    path = ROOT / "experiments/results" / folder
    committed = (path / "table.md").read_text(encoding="utf-8")
    assert bench.results_table(path) + "\n" == committed


def test_commands_are_timed_as_run_for_the_first_time(nanogpt, monkeypatch):
    Path("ours.py").write_text(
        "import os, sys\n"
        "assert not os.listdir(os.environ['TORCHINDUCTOR_CACHE_DIR'])\n"
        "seed = sys.argv[1].removeprefix('--seed=')\n"
        "print('validation loss 4.0', 'validation loss 1.4', f'validation loss 1.{seed}')\n"
    )
    Path("nanogpt/train.py").write_text("print('val loss 4.1', 'val loss 1.9', 'val loss 2.0')")
    monkeypatch.setattr(bench, "OUR_COMMANDS", {"cpu": ["ours.py"]})
    monkeypatch.setattr(bench, "NANOGPT_COMMANDS", {"cpu": "train.py"})
    monkeypatch.setattr(bench.prepare, "prepare_missing", lambda name: None)
    arguments = ["commands", "--device=cpu", "--rounds=2", "--results=.", "--nanogpt=nanogpt"]
    assert bench.main(arguments) == 0
    seconds, loss = read_results("commands")
    assert min(seconds["ours"] + seconds["nanogpt"]) > 0
    assert loss["ours"] == [1.1, 1.2]  # the last one, of seeds 1 and 2
    assert loss["nanogpt"] == [1.9, 1.9]  # the lowest one


def test_benchmarks_of_the_cpu_are_not_filed_as_those_of_a_gpu(folder, monkeypatch):
    monkeypatch.setattr(bench, "pick_device", lambda name: (torch.device("cuda", 0), ""))
    monkeypatch.setattr(bench, "busy", lambda rounds: [])
    assert bench.main(["busy", "--results=."]) == 0
    assert read_results("busy") == []


def test_steps_are_measured_alone_and_beside_a_busy_program(folder, monkeypatch):
    others = []  # programs that are busy now

    @contextmanager
    def busy_program():
        others.append("busy")
        yield
        others.clear()

    def rate(settings, steps, variables):
        assert variables == {"OMP_WAIT_POLICY": "passive"}
        return 10_000.0 if others else 20_000.0

    monkeypatch.setattr(bench, "busy_program", busy_program)
    monkeypatch.setattr(bench, "our_training_rate", rate)
    monkeypatch.setattr(bench, "TRAINED", {"cpu": [({"batch_size": 4, "block_size": 50}, 8)]})
    monkeypatch.setattr(bench, "WAITING", {"passive": {"OMP_WAIT_POLICY": "passive"}})
    assert bench.main(["busy", "--rounds=2", "--results=."]) == 0
    alone, beside = read_results("busy")
    assert "alone" in alone["what"]
    assert alone["ours"] == [10.0, 10.0]  # milliseconds for 200 tokens
    assert "beside" in beside["what"]
    assert beside["ours"] == [20.0, 20.0]


def test_programs_start_without_our_openmp_settings(monkeypatch):
    monkeypatch.setattr(bench, "VARIABLES", {"PROBE": "ours"})
    monkeypatch.setenv("PROBE", "ours")
    code = "import os; print(os.environ.get('PROBE'))"
    assert bench.run_python(["-c", code]) == "None\n"
    assert bench.run_python(["-c", code], variables={"PROBE": "given"}) == "given\n"


def test_the_busy_program_runs_and_ends():
    with bench.busy_program() as process:
        assert process.poll() is None
    assert process.returncode is not None
