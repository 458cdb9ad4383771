"""Several processes as one run, started by torchrun, on the CPU."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, arguments, start_python, timeless, trained_steps, wait_for_line

from common import checkpoint, distributed
from common.errors import UserError
from train import train

LAST, METRICS = "out/tiny_last.pt", "out/tiny_metrics.jsonl"


def torchrun(processes: int, *options: str, **settings) -> subprocess.Popen:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [str(ROOT / "train.py"), "empty.py", *arguments(**settings)]
    return start_python(*launcher, *options, *command)


# several processes


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_several_processes_compute_the_same_as_one_even_if_one_dies(dataset, empty_config, tiny):
    settings = {"batch_size": 8, "micro_batch_size": 1, "eval_tokens": 500, "learning_rate": 1e-3}
    settings |= {"max_steps": 40, "eval_interval": 20, "save_interval": 5}
    alone = train(tiny(**settings, run_name="alone"))
    process = torchrun(2, "--max_restarts=1", **settings)
    wait_for_line(process, "step      8 |")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    os.kill(int(children.split()[1]), signal.SIGKILL)
    output, error = process.communicate(timeout=120)
    assert process.returncode == 0, output + error
    assert "resumed from out/tiny_last.pt" in output
    assert output.count("step     40 | validation loss") == 1  # only the first process prints

    together, expected = timeless(METRICS), timeless("out/alone_metrics.jsonl")
    assert [row["step"] for row in together] == [row["step"] for row in expected]
    for row, other in zip(together, expected):
        if "sample" not in row:  # a rounding difference can change a sampled token
            assert row == pytest.approx(other, rel=1e-4, abs=1e-6)
    best = checkpoint.load("out/tiny_best.pt").best_val_loss
    assert best == pytest.approx(min(alone["val_losses"]), rel=1e-4)


@pytest.mark.slow
def test_sigterm_stops_all_processes_at_the_same_step(dataset, empty_config):
    process = torchrun(2, max_steps=100_000, eval_interval=50_000)
    wait_for_line(process, "step     20 |")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    step = checkpoint.load(LAST).step
    assert step > 20
    assert f"saved out/tiny_last.pt at step {step}" in output
    assert "torchrun --nproc_per_node=2" in output
    assert trained_steps(METRICS) == list(range(step))


@pytest.mark.parametrize("rank, error", [("0", UserError), ("1", SystemExit)])
def test_an_error_of_the_first_process_ends_all(monkeypatch, rank, error):
    def fail():
        raise UserError("no data")

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setattr(distributed, "any_process", lambda failed: [True])
    monkeypatch.setattr(distributed, "exit_process", sys.exit)
    with pytest.raises(error):
        distributed.on_first(fail)


@pytest.mark.parametrize("micro_batch_size, parts", [(None, ""), (2, " in micro-batches of 2")])
def test_a_batch_that_cannot_be_divided_is_refused(
    dataset, tiny, monkeypatch, micro_batch_size, parts
):
    monkeypatch.setenv("WORLD_SIZE", "3")
    message = f"batch_size=8 can't be divided among 3 processes{parts}"
    with pytest.raises(UserError, match=f"^{message}$"):
        train(tiny(batch_size=8, micro_batch_size=micro_batch_size))
    assert not os.path.exists("out")


# a single process


def test_without_torchrun_this_is_the_only_process():
    assert distributed.world_size() == 1
    assert distributed.is_first()
    assert not distributed.restarted()
    assert distributed.all_reduce_sum([1.5, 2.0]) == [1.5, 2.0]
    assert distributed.any_process(True, False) == [True, False]
    distributed.barrier()


@pytest.mark.parametrize(
    "variables",
    [
        {"RANK": "3"},
        {"WORLD_SIZE": "2"},
        {"WORLD_SIZE": "0"},
        {"RANK": "x", "WORLD_SIZE": "1"},
        {"RANK": "5", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_PORT": "1"},
        {"TORCHELASTIC_RESTART_COUNT": ""},
    ],
)
def test_variables_that_torchrun_would_not_set_are_refused(monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match="with torchrun, or unset these") as error:
        distributed.check_environment()
    for name, value in variables.items():
        assert f"{name}={value}" in str(error.value)


def test_a_platform_may_set_the_variables_of_a_single_process(monkeypatch):
    for name, value in {"RANK": "0", "WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    distributed.check_environment()
