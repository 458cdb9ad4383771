"""The real commands, in separate processes."""

import signal
import subprocess
import sys

import pytest
from helpers import ROOT, arguments, run, start, verses, wait_for_line

import evaluate
import export
import sample
from common import checkpoint
from common.arguments import load_config

pytestmark = pytest.mark.slow


def test_from_text_to_generated_text_after_ctrl_c(dataset, empty_config):
    process = start("train.py", empty_config, *arguments(max_steps=100_000, eval_interval=50))
    wait_for_line(process, "step     60 |")
    process.send_signal(signal.SIGINT)
    output, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    assert f"python {ROOT / 'train.py'} --run_name=tiny --out_dir=out --resume" in output
    assert checkpoint.load("out/tiny_last.pt").step >= 60

    options = ["--prompt", "the ", "--max_new_tokens", "20"]
    status, output, error = run("sample.py", "--ckpt", "out/tiny_best.pt", *options)
    assert status == 0, error
    assert output.startswith("the ")
    assert len(output) == len("the ") + 20 + len("\n")

    status, output, error = run("evaluate.py", "--ckpt", "out/tiny_best.pt")
    assert status == 0, error
    assert "bits per byte" in output


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


def test_commands_use_the_run_of_the_default_config(folder, capsys):
    best = load_config(["--device=cpu"])[0].path("best.pt")
    for main in (sample.main, evaluate.main, export.main):
        assert main([]) == 1
        assert f"checkpoint {best} not found" in capsys.readouterr().err
