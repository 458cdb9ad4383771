"""The real commands, in separate processes."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import pytest
from helpers import ROOT, arguments, run, start, verses, wait_for_line

import evaluate
import export
import sample
from common import checkpoint
from common.arguments import load_config

pytestmark = pytest.mark.slow


def test_from_text_to_generated_text(dataset, empty_config):
    status, output, error = run("train.py", empty_config, *arguments())
    assert status == 0, error
    assert f"sample from it: python {ROOT / 'sample.py'} --ckpt out/tiny_best.pt" in output

    options = ["--prompt", "the ", "--max_new_tokens", "20"]
    status, output, error = run("sample.py", "--ckpt", "out/tiny_best.pt", *options)
    assert status == 0, error
    assert output.startswith("the ")
    assert len(output) == len("the ") + 20 + len("\n")

    status, output, error = run("evaluate.py", "--ckpt", "out/tiny_best.pt")
    assert status == 0, error
    assert "bits per byte" in output


def test_ctrl_c_ends_training_with_a_checkpoint(dataset, empty_config):
    settings = arguments(max_steps=100_000, eval_interval=50_000)
    process = start("train.py", empty_config, *settings)
    wait_for_line(process, "step     50 |")
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert f"python {ROOT / 'train.py'} --run_name=tiny --out_dir=out --resume" in output
    assert checkpoint.load("out/tiny_last.pt").step >= 50


def test_ctrl_c_ends_sampling_immediately(finished_run):
    process = start("sample.py", "--ckpt", "out/tiny_best.pt", "--max_new_tokens", "1000000")
    process.stdout.read(20)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in error


def test_a_closed_pipe_is_not_an_error(finished_run):
    process = start("sample.py", "--ckpt", "out/tiny_best.pt", "--max_new_tokens", "5000")
    process.stdout.read(5)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=20) == 1


def test_standard_error_may_be_closed(folder):
    (folder / "verses.txt").write_text(verses(400))
    command = [sys.executable, ROOT / "prepare.py", "verses_char", "--input", "verses.txt"]
    closed = ["sh", "-c", 'exec "$@" 2>&-', "sh", *map(str, command)]
    assert subprocess.run(closed, stdout=subprocess.DEVNULL).returncode == 0


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="mounting a small disk needs root"
)
def test_a_disk_that_fills_up_leaves_the_saved_checkpoints(finished_run):
    small = finished_run / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", "small"]).returncode:
        pytest.skip("can't mount a small disk here")
    try:
        settings = {"out_dir": "small", "max_steps": 100_000, "save_interval": 50}
        process = start("train.py", "tiny.py", *arguments(**settings, eval_interval=50_000))
        wait_for_line(process, "step     60 |")
        with suppress(OSError), open(small / "filler", "wb", buffering=0) as file:
            while True:
                file.write(bytes(4096))
        _, error = process.communicate(timeout=60)
        assert process.returncode == 1
        assert "No space left on device" in error
        assert error.count("\n") == 1
        assert checkpoint.load(small / "tiny_last.pt").step >= 50
    finally:
        subprocess.run(["umount", "small"], check=True)


def test_commands_use_the_run_of_the_default_config(folder, capsys):
    best = load_config(["--device=cpu"])[0].path("best.pt")
    for main in (sample.main, evaluate.main, export.main):
        assert main([]) == 1
        assert f"checkpoint {best} not found" in capsys.readouterr().err
