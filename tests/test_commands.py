"""The real commands, in processes of their own."""

import os
import signal
import subprocess
import sys

import pytest
from helpers import arguments, run, start

from common import checkpoint


def test_from_a_text_to_a_model_that_talks(dataset):
    (dataset / "tiny.py").write_text("")
    status, output, error = run("train.py", "tiny.py", *arguments())
    assert status == 0, error
    assert "12 steps" in output and "out/tiny_best.pt talks" in output
    status, output, _ = run(
        "sample.py", "--ckpt", "out/tiny_best.pt", "--prompt", "the ", "--max_new_tokens", "20"
    )
    assert status == 0 and output.startswith("the ")
    status, output, _ = run("evaluate.py", "--ckpt", "out/tiny_best.pt")
    assert status == 0 and "bits per byte" in output


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_training_with_a_checkpoint(dataset, number):
    (dataset / "tiny.py").write_text("")
    process = start("train.py", "tiny.py", *arguments(max_steps=100_000, eval_interval=50_000))
    for line in process.stdout:
        if line.startswith("step     50 |"):
            break
    process.send_signal(number)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in error
    assert "python train.py --run_name=tiny --resume" in output
    assert checkpoint.load("out/tiny_last.pt")["step"] >= 50


def test_ctrl_c_ends_a_sample_at_once(dataset):
    (dataset / "tiny.py").write_text("")
    assert run("train.py", "tiny.py", *arguments())[0] == 0
    process = start("sample.py", "--ckpt", "out/tiny_best.pt", "--max_new_tokens", "1000000")
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130 and "Traceback" not in error


def test_a_reader_that_goes_away_is_no_error(dataset):
    (dataset / "tiny.py").write_text("")
    assert run("train.py", "tiny.py", *arguments())[0] == 0
    process = start("sample.py", "--ckpt", "out/tiny_best.pt", "--max_new_tokens", "5000")
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait(timeout=20) == 1


@pytest.mark.skipif(
    os.geteuid() != 0 or sys.platform != "linux", reason="mounting a small disk needs root"
)
def test_a_full_disk_costs_nothing_that_was_saved(dataset):
    (dataset / "tiny.py").write_text("")
    (dataset / "out").mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", str(dataset / "out")]
    )
    if mounted.returncode:
        pytest.skip("no small disk can be mounted here")
    try:
        status, _, error = run("train.py", "tiny.py", *arguments(d_model=64))
        assert status == 1 and "No space left on device" in error and error.count("\n") == 1
        assert all(checkpoint.load(path) for path in (dataset / "out").glob("*.pt"))
    finally:
        subprocess.run(["umount", str(dataset / "out")], check=True)
