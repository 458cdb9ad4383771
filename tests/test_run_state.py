"""The files of a run: what is kept, refused and checked before the first step."""

import errno
import os
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from helpers import arguments, before_update, contents, stop_at

from common import checkpoint, run_state
from common.errors import UserError
from common.metrics import Metrics
from train import main, train

LAST = Path("out/tiny_last.pt")
BEST = Path("out/tiny_best.pt")


def test_a_new_run_keeps_all_files_of_a_finished_one(finished_run, tiny, capsys):
    before = {path.name: path.read_bytes() for path in Path("out").iterdir()}
    train(tiny(seed=2))
    assert "kept the files of an earlier run as out/tiny_*.prev.*" in capsys.readouterr().out
    for name, content in before.items():
        stem, suffix = os.path.splitext(name)
        assert Path(f"out/{stem}.prev{suffix}").read_bytes() == content
    train(tiny(seed=3))
    assert "tiny_*.prev.*, replacing those of the run before it" in capsys.readouterr().out


def test_short_tries_do_not_replace_the_longest_of_the_runs_before(finished_run, tiny, capsys):
    content = BEST.read_bytes()
    for seed in (2, 3):
        train(tiny(max_steps=6, seed=seed))
    assert Path("out/tiny_best.prev.pt").read_bytes() == content
    printed = "replacing an earlier run of 6 steps; out/tiny_*.prev.* are from a longer one, of 12"
    assert printed in capsys.readouterr().out
    assert train(tiny())["finished"]
    assert Path("out/tiny_best.prev.pt").read_bytes() == content


def test_what_is_left_of_a_deleted_run_does_not_replace_the_longest_one(finished_run, tiny):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 8)
        train(tiny(seed=2))
    content = Path("out/tiny_best.prev.pt").read_bytes()
    LAST.unlink()  # as the error about a stopped run suggests
    train(tiny(seed=3))
    assert Path("out/tiny_best.prev.pt").read_bytes() == content
    assert Path("out/tiny_last.prev.pt").exists()


def test_a_short_run_that_another_one_starts_from_is_not_replaced(finished_run, tiny):
    train(tiny(max_steps=6, seed=2))  # the run of 12 steps is now the kept one
    before = contents(Path("out"))
    with pytest.raises(UserError, match="would rename or replace out/tiny_best.pt"):
        train(tiny(init_from="out/tiny_best.pt"))
    assert contents(Path("out")) == before


def test_a_model_that_a_run_starts_from_keeps_its_name(finished_run, tiny):
    before = contents(Path("out"))
    with pytest.raises(UserError, match="would rename or replace out/tiny_best.pt"):
        train(tiny(init_from="out/tiny_best.pt"))
    assert contents(Path("out")) == before


def test_a_kept_model_that_a_run_starts_from_is_not_removed(finished_run, tiny):
    train(tiny(seed=2))
    BEST.unlink()  # so that nothing takes the place of the kept one
    before = contents(Path("out"))
    with pytest.raises(UserError, match="would rename or replace out/tiny_best.prev.pt"):
        train(tiny(init_from="out/tiny_best.prev.pt"))
    assert contents(Path("out")) == before


@pytest.mark.parametrize("renamed", [1, 2, 3])
def test_a_kill_while_files_are_being_kept_loses_none(finished_run, tiny, monkeypatch, renamed):
    before = sorted(contents(Path("out")).values())
    replace, calls = os.replace, []

    def stop(*paths):
        replace(*paths)
        calls.append(paths)
        if len(calls) == renamed:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_state.os, "replace", stop)
        with pytest.raises(KeyboardInterrupt):
            run_state.keep_earlier_run(tiny())
    assert sorted(contents(Path("out")).values()) == before
    run_state.keep_earlier_run(tiny())
    assert sorted(contents(Path("out")).values()) == before


def test_metrics_without_a_checkpoint_are_kept(finished_run, tiny):
    metrics = Path("out/tiny_metrics.jsonl").read_bytes()
    LAST.unlink()
    BEST.unlink()
    train(tiny(seed=2))
    assert Path("out/tiny_metrics.prev.jsonl").read_bytes() == metrics
    LAST.unlink()
    train(tiny(seed=3))
    assert Path("out/tiny_best.prev.pt").exists()
    assert not Path("out/tiny_last.prev.pt").exists()


def test_an_unfinished_run_is_not_replaced(dataset, tiny, monkeypatch):
    stop_at(monkeypatch, 6)
    train(tiny())
    monkeypatch.undo()
    monkeypatch.chdir(dataset)
    content = LAST.read_bytes()
    with pytest.raises(UserError, match="stopped at step 7 of 12: continue it with --resume"):
        train(tiny())
    assert LAST.read_bytes() == content
    assert train(tiny(run_name="other"))["finished"]


def test_a_run_that_diverged_at_once_can_be_started_again(dataset, tiny):
    with pytest.raises(UserError, match="at step"):
        train(tiny(norm_type="none", qk_norm=False, learning_rate=1e18, warmup_steps=0))
    assert checkpoint.load(LAST).step == 0
    assert train(tiny())["finished"]
    assert not Path("out/tiny_last.prev.pt").exists()


def test_a_failed_fine_tuning_run_does_not_replace_what_was_kept(finished_run, tiny):
    start = {"init_from": "out/tiny_best.pt", "run_name": "tuned"}
    train(tiny(**start))
    trained = Path("out/tuned_best.pt").read_bytes()
    with pytest.raises(UserError, match="at step"):
        train(tiny(**start, learning_rate=1e30, warmup_steps=0))
    assert checkpoint.load("out/tuned_best.pt").step == 0  # the weights that it started from
    train(tiny(**start))
    assert Path("out/tuned_best.prev.pt").read_bytes() == trained


def test_a_run_stops_and_saves_when_nobody_reads_its_output(dataset, monkeypatch, capsys):
    reader, writer = os.pipe()
    before_update(monkeypatch, lambda _, step: step == 5 and os.close(reader))
    with open(writer, "w") as pipe, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", pipe)
        assert main(arguments(eval_interval=12, save_interval=0)) == 130
    assert checkpoint.load(LAST).step > 5
    assert "can't write to standard output (Broken pipe): stopping" in capsys.readouterr().err


def test_a_run_goes_on_after_its_terminal_was_closed(dataset, tiny, monkeypatch):
    def write(*_, **__):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr("common.progress.tqdm.write", write)
    monkeypatch.setattr("common.progress.discard_output", lambda: None)
    assert train(tiny())["finished"]


def test_a_run_that_can_not_be_read_is_not_replaced(dataset, tiny):
    LAST.parent.mkdir()
    torch.save({"model": {}}, LAST)
    before = contents(Path("out"))
    with pytest.raises(UserError, match="can't read out/tiny_last.pt, from an earlier run"):
        train(tiny())
    assert contents(Path("out")) == before


def test_a_checkpoint_with_the_settings_of_another_version_is_not_replaced(finished_run, tiny):
    state = torch.load(LAST)
    torch.save(state | {"config": {"n_layer": 1}}, LAST)
    before = contents(Path("out"))
    with pytest.raises(UserError, match="can't read out/tiny_last.pt, from an earlier run"):
        train(tiny())
    assert contents(Path("out")) == before


def test_a_run_does_not_replace_the_checkpoint_that_it_starts_from(finished_run, tiny):
    shutil.copy(BEST, "out/tiny_best.prev.pt")
    before = contents(Path("out"))
    with pytest.raises(UserError, match="would rename or replace out/tiny_best.prev.pt"):
        train(tiny(init_from="out/tiny_best.prev.pt"))
    assert contents(Path("out")) == before


@pytest.mark.parametrize("damaged", [False, True])
def test_a_resumed_run_without_its_best_model_finds_a_new_one(finished_run, tiny, capsys, damaged):
    BEST.unlink()
    if damaged:
        BEST.write_bytes(LAST.read_bytes()[:3000])
    assert train(tiny(resume=True, max_steps=14, learning_rate=0.9))["finished"]
    problem = (
        "can't be read and was renamed to out/tiny_best.unreadable.pt" if damaged else "is missing"
    )
    assert f"{BEST} {problem}; the best model from now on" in capsys.readouterr().out
    assert Path("out/tiny_best.unreadable.pt").exists() == damaged
    assert checkpoint.load(BEST).run_id == checkpoint.load(LAST).run_id


def test_the_best_model_of_another_run_is_refused(finished_run, tiny):
    train(tiny(run_name="other"))
    shutil.copy("out/other_best.pt", BEST)
    before = contents(Path("out"))
    with pytest.raises(UserError, match="out/tiny_best.pt belongs to a different run"):
        train(tiny(resume=True, max_steps=14))
    assert contents(Path("out")) == before


@pytest.mark.parametrize("left", [0, 5])
def test_missing_metrics_are_noticed(finished_run, tiny, capsys, left):
    path = Path("out/tiny_metrics.jsonl")
    lines = [line for line in path.read_text().splitlines(keepends=True) if "train/loss" in line]
    path.write_text("".join(lines[:left])) if left else path.unlink()
    train(tiny(resume=True, max_steps=14))
    assert f"{path} lacks {12 - left} of 12 steps" in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_that_ran_out_of_patience_counts_as_finished(dataset, tiny):
    settings = {"learning_rate": 1e-30, "eval_interval": 2, "patience": 1, "max_steps": 50}
    train(tiny(**settings))
    assert checkpoint.load(LAST).step < 50
    train(tiny(**settings))
    assert Path("out/tiny_last.prev.pt").exists()


@pytest.mark.slow
def test_a_second_run_of_the_same_name_is_refused_while_the_first_is_alive(dataset, tiny):
    config = tiny()
    with Metrics(config.path("metrics.jsonl"), config, "id", 0, may_overflow=False):
        with pytest.raises(UserError, match="still writing.*another --run_name"):
            train(config)
        assert train(tiny(run_name="other"))["finished"]
    assert train(config)["finished"]


def test_a_full_disk_is_noticed_before_the_first_step(dataset, tiny, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 100_000))
    with pytest.raises(UserError, match="out has 0.1 MB of free disk space, but .* need 1.0 MB"):
        train(tiny())
    assert not LAST.exists()


def test_a_full_disk_leaves_the_files_of_the_last_run_in_place(dataset, tiny, monkeypatch):
    train(tiny())
    train(tiny())
    before = contents(Path("out"))
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 0))
    with pytest.raises(UserError, match="free disk space"):
        train(tiny())
    assert contents(Path("out")) == before


@pytest.mark.parametrize("optimizer", ["adamw", "normuon"])
def test_the_space_that_is_checked_is_what_the_checkpoints_take(
    dataset, tiny, monkeypatch, optimizer
):
    settings = {"optimizer": optimizer, "ema_decay": 0.9, "d_model": 64, "max_steps": 2}
    train(tiny(**settings))
    most = BEST.stat().st_size + 2 * LAST.stat().st_size  # while the last one is replaced
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 0.9 * most))
    with pytest.raises(UserError, match="free disk space"):
        train(tiny(**settings, run_name="other"))
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage(0, 0, 1.1 * most))
    train(tiny(**settings, run_name="other"))


def test_a_tilde_in_out_dir_is_the_home_folder(dataset, tiny, monkeypatch):
    monkeypatch.setenv("HOME", str(dataset / "home"))
    train(tiny(out_dir="~/runs"))
    assert Path("home/runs/tiny_best.pt").exists()
    assert not Path("~").exists()


def test_a_stopped_run_exits_with_130_and_a_second_start_with_2(dataset, monkeypatch, capsys):
    Path("empty.py").write_text("")
    stop_at(monkeypatch, 3)
    assert main(["empty.py", *arguments()]) == 130
    monkeypatch.undo()
    monkeypatch.chdir(dataset)
    assert main(["empty.py", *arguments()]) == 2
    assert "continue it with --resume" in capsys.readouterr().err
