"""Several processes as one run, through torchrun, on the CPU."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import ROOT, arguments, timeless

from common import checkpoint
from common.arguments import load_config
from common.errors import UserError
from train import train


def torchrun(processes: int, *options: str, **settings) -> subprocess.Popen:
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc_per_node={processes}",
        *options,
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), "tiny.py", *arguments(**settings)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip


def until(process: subprocess.Popen, words: str) -> None:
    assert any(line.startswith(words) for line in process.stdout), process.stderr.read()


@pytest.mark.parametrize("processes", [2, 4])
def test_any_number_of_processes_computes_the_same(dataset, tiny, processes):
    (dataset / "tiny.py").write_text("")
    settings = {
        "batch_size": 8,
        "micro_batch_size": 1,
        "eval_tokens": 500,
    }  # accumulates 4 or 2 parts
    alone = train(tiny(**settings, run_name="alone"))
    process = torchrun(processes, **settings)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert output.count("step      0 | validation loss") == 1  # one speaks for all
    together, expected = timeless("out/tiny_metrics.jsonl"), timeless("out/alone_metrics.jsonl")
    assert [row["step"] for row in together] == [row["step"] for row in expected]
    for row, other in zip(together, expected):
        if "sample" not in row:  # a draw may hang on the last bit
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    assert checkpoint.load("out/tiny_best.pt")["best_val_loss"] == pytest.approx(
        min(alone["val_losses"]), rel=1e-4
    )


def test_a_worker_that_dies_is_replaced_and_the_run_goes_on(dataset):
    (dataset / "tiny.py").write_text("")
    settings = {"max_steps": 120, "save_interval": 10, "eval_interval": 60}
    process = torchrun(2, "--max_restarts=1", **settings)
    until(process, "step     30 |")
    workers = subprocess.run(
        ["pgrep", "-P", str(process.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(workers[1]), signal.SIGKILL)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert "resumed from out/tiny_last.pt" in output
    assert [
        row["step"] for row in timeless("out/tiny_metrics.jsonl") if "train/loss" in row
    ] == list(range(120))


def test_sigterm_stops_all_processes_together(dataset):
    (dataset / "tiny.py").write_text("")
    process = torchrun(2, max_steps=100_000, eval_interval=50_000)
    until(process, "step     20 |")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    step = checkpoint.load("out/tiny_last.pt")["step"]
    assert step > 20 and f"saved out/tiny_last.pt at step {step}" in output
    assert [
        row["step"] for row in timeless("out/tiny_metrics.jsonl") if "train/loss" in row
    ] == list(range(step))


def test_a_batch_that_can_not_be_shared_out_is_refused(dataset, tiny, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(UserError, match="batch_size=8 can't be shared out evenly over 3 processes"):
        train(tiny(batch_size=8))
    with pytest.raises(UserError, match="over 3 processes in parts of micro_batch_size=2"):
        train(tiny(batch_size=8, micro_batch_size=2))
    assert not (dataset / "out").exists()


def test_after_a_restart_by_torchrun_a_run_goes_on_from_its_own_save(dataset, tiny, monkeypatch):
    (dataset / "tiny.py").write_text("")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert not load_config(["tiny.py", *arguments()]).resume  # there is nothing yet to go on from
    train(tiny())
    assert load_config(["tiny.py", *arguments()]).resume
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
    assert not load_config(["tiny.py", *arguments()]).resume
