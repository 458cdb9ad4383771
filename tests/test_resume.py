"""Stopping and resuming a run, and fine-tuning another one's model."""

import os
from pathlib import Path

import pytest
import torch
from helpers import (
    NEEDS_COMPILER,
    arguments,
    same,
    stop_at,
    timeless,
    trained_steps,
    verses,
    weights,
)

from common import checkpoint
from common.errors import UserError
from common.metrics import read_metrics
from config import SETTINGS
from model import GPTConfig
from prepare import prepare
from train import main, train

LAST, BEST, METRICS = "out/tiny_last.pt", "out/tiny_best.pt", "out/tiny_metrics.jsonl"


# stop and resume


@pytest.mark.slow
@pytest.mark.parametrize(
    "choices",
    [
        {"optimizer": "normuon", "ema_decay": 0.9, "batch_order": "random"},
        pytest.param({"compile": True}, marks=NEEDS_COMPILER),
    ],
    ids=str,
)
def test_a_stopped_and_resumed_run_equals_an_uninterrupted_one(
    dataset, empty_config, tiny, choices, capsys
):
    settings = {
        "dropout": 0.2,
        "micro_batch_size": 2,
        "max_steps": 13,
        "eval_interval": 9,
        "block_size": 64,  # long enough for the text's second epoch
        "batch_size": 16,
        "sample_interval": 7,
        **choices,
    }
    train(tiny(**settings, run_name="whole"))

    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 7)
        assert main([empty_config, *arguments(**settings)]) == 130
    assert checkpoint.load(LAST).step == 8
    assert "train.py --run_name=tiny --out_dir=out --resume" in capsys.readouterr().out

    assert main([empty_config, "--run_name=tiny", "--resume"]) == 0
    assert same(weights("out/whole_last.pt"), weights(LAST))
    assert same(weights("out/whole_best.pt"), weights(BEST))
    assert timeless("out/whole_metrics.jsonl") == timeless(METRICS)


def test_the_training_time_continues_on_resume(finished_run, tiny):
    kept = [row for row in read_metrics(METRICS) if row["step"] < 12]
    train(tiny(max_steps=14, resume=True))
    rows = read_metrics(METRICS)
    seconds = [row["seconds"] for row in rows]
    assert rows[: len(kept)] == kept
    assert seconds == sorted(seconds)
    assert seconds[-1] > kept[-1]["seconds"]


def test_a_config_file_can_ask_to_resume(finished_run):
    Path("again.py").write_text("run_name = 'tiny'\nresume = True\nn_layers = 7\n")
    assert main(["again.py", "--max_steps=14", "--weight_decay=0.5"]) == 0
    saved = checkpoint.load(LAST)
    assert saved.step == 14
    assert saved.config["n_layers"] == 2  # from the checkpoint, not from the file
    assert saved.optimizers[0]["param_groups"][0]["weight_decay"] == 0.5
    assert trained_steps(METRICS) == list(range(14))


def test_a_finished_run_can_be_resumed_without_new_steps(finished_run, tiny, capsys):
    before = weights(LAST)
    result = train(tiny(resume=True))
    assert "a higher max_steps would continue it" in capsys.readouterr().out
    assert result["finished"]
    assert same(weights(LAST), before)
    assert trained_steps(METRICS) == list(range(12))


def test_optimizer_state_of_another_layout_is_refused(finished_run, empty_config, capsys):
    state = torch.load(LAST)
    state["optimizers"][0]["param_groups"][1]["params"].pop()  # as before q_norm and k_norm
    torch.save(state, LAST)
    assert main([empty_config, "--run_name=tiny", "--resume"]) == 1
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "out/tiny_last.pt does not match this run" in error
    assert "--init_from=out/tiny_last.pt starts a new run from its weights" in error


# fine-tune

ARCHITECTURE = [name for name in SETTINGS if name in GPTConfig.__dataclass_fields__]


def tuning(**settings) -> list[str]:
    """Arguments of a run that takes its architecture from another model."""
    names = tuple(f"--{name}=" for name in ARCHITECTURE)
    return [a for a in arguments(run_name="tuned", **settings) if not a.startswith(names)]


def test_fine_tuning_starts_from_the_weights_and_architecture_of_a_checkpoint(finished_run):
    Path("tuned.py").write_text("n_layers = 5\non_cpu = dict(n_heads=8)\n")
    assert main(["tuned.py", *tuning(), f"--init_from={BEST}"]) == 0
    saved = checkpoint.load("out/tuned_last.pt")
    assert saved.config["n_layers"] == 2
    assert saved.config["n_heads"] == 2
    assert saved.config["init_from"] == BEST
    first = read_metrics("out/tuned_metrics.jsonl")[0]["val/loss"]
    assert first == pytest.approx(checkpoint.load(BEST).best_val_loss, abs=1e-6)


def test_a_fine_tuned_run_resumes_from_its_own_checkpoint(finished_run, empty_config):
    command = [empty_config, *tuning(), f"--init_from={BEST}"]
    assert main(command) == 0
    os.remove(BEST)
    assert main([*command, "--resume", "--max_steps=13"]) == 0
    assert trained_steps("out/tuned_metrics.jsonl") == list(range(13))


def test_fine_tuning_gives_the_average_the_same_weights(finished_run, tiny):
    train(tiny(run_name="tuned", init_from=BEST, ema_decay=0.9, max_steps=1, warmup_steps=0))
    first = read_metrics("out/tuned_metrics.jsonl")[0]["val/loss"]
    assert first == pytest.approx(checkpoint.load(BEST).best_val_loss, abs=1e-6)


def test_init_from_keeps_the_initial_weights_if_training_makes_them_worse(finished_run, tiny):
    before = checkpoint.load(BEST).best_val_loss
    worse = tiny(run_name="worse", init_from=BEST, learning_rate=3.0, warmup_steps=0)
    result = train(worse)
    assert min(result["val_losses"][1:]) > before + 0.1
    assert result["best_val_loss"] == pytest.approx(before, abs=1e-6)
    assert same(weights("out/worse_best.pt"), weights(BEST))


def test_fine_tuning_on_other_tokens_is_refused(finished_run, tiny):
    Path("other.txt").write_text(verses(400).replace("w", "W") + "é")
    prepare("other_char", ["other.txt"])
    prepare("other_byte", ["other.txt"])
    with pytest.raises(UserError, match="no token for 'W', 'é', the dataset has no token for 'w'"):
        train(tiny(dataset="other_char", init_from=BEST, run_name="other"))
    with pytest.raises(UserError, match="the model uses char tokens, the dataset byte tokens"):
        train(tiny(dataset="other_byte", init_from=BEST, run_name="other"))
    assert not list(Path("out").glob("other*"))


def test_fine_tuning_another_architecture_is_refused(finished_run, tiny):
    with pytest.raises(UserError, match="out/tiny_best.pt has a different architecture"):
        train(tiny(d_model=64, init_from=BEST, run_name="other"))
    assert not list(Path("out").glob("other*"))


def test_a_resumed_run_keeps_its_loss_scale(dataset, tiny):
    settings = {"dtype": "float16", "warmup_steps": 0}
    train(tiny(**settings, max_steps=2))
    saved = checkpoint.load(LAST)
    saved.scaler["scale"] = 8.0
    checkpoint.save(Path(LAST), saved)
    train(tiny(**settings, max_steps=3, resume=True))
    assert checkpoint.load(LAST).scaler["scale"] == 8.0
