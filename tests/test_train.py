import json
import math
import os
import random
import shutil
import signal
import struct
import time
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import arguments, run, same, timeless, verses, weights
from wandb.proto import wandb_internal_pb2

import train as loop
from common import checkpoint
from common.dataset import load_dataset
from common.device import pick_compile
from common.errors import UserError
from common.metrics import read_metrics
from model import GPT
from prepare import prepare
from train import Batches, learning_rate, make_optimizers, optimizer_step, train

ARCHITECTURE = {"--n_layers", "--n_heads", "--d_model", "--block_size"}


def stop_at(monkeypatch, step: int) -> None:
    """SIGTERM comes in the midst of this step."""

    def interrupted(*args):
        if args[4] == step:
            signal.raise_signal(signal.SIGTERM)
        return optimizer_step(*args)

    monkeypatch.setattr(loop, "optimizer_step", interrupted)


def same_steps(path, count: int) -> bool:
    """Whether a metrics file has each of this many steps once."""
    return [row["step"] for row in read_metrics(path) if "train/loss" in row] == list(range(count))


# batches


@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_batches_are_a_function_of_seed_and_step(tiny, order):
    tokens = np.arange(1000, dtype=np.uint16)
    config = tiny(batch_order=order)
    batch = Batches(tokens, config)(7)
    assert batch.shape == (4, 33) and batch.dtype == torch.int64
    assert torch.equal(batch, batch[:, :1] + torch.arange(33))  # windows are contiguous
    assert torch.equal(batch, Batches(tokens, config)(7))
    assert not torch.equal(batch, Batches(tokens, config)(8))
    assert not torch.equal(batch, Batches(tokens, replace(config, seed=2))(7))


def test_a_shuffled_epoch_has_each_window_once_at_a_new_offset(tiny):
    batches = Batches(np.arange(1001, dtype=np.uint16), tiny(batch_size=5))
    assert batches.windows == 30  # 6 steps an epoch
    epochs = [
        np.sort(np.concatenate([batches.starts(step) for step in range(6 * e, 6 * e + 6)]))
        for e in range(3)
    ]
    for starts in epochs:
        assert np.array_equal(np.diff(starts), np.full(29, 32))
        assert starts[0] >= 0 and starts[-1] + 33 <= 1001
    assert len({int(starts[0]) for starts in epochs}) > 1


@pytest.mark.parametrize("n_tokens", [33, 34, 64, 65, 97])
@pytest.mark.parametrize("order", ["shuffled", "random"])
def test_short_texts_are_used_to_the_end_and_not_past_it(tiny, order, n_tokens):
    batches = Batches(np.arange(n_tokens, dtype=np.uint16), tiny(batch_order=order))
    seen = np.concatenate([batches(step).numpy().ravel() for step in range(200)])
    assert seen.min() == 0 and seen.max() == n_tokens - 1


def test_a_text_shorter_than_a_window_is_refused(tiny):
    with pytest.raises(UserError, match="32 training tokens, block_size=32 needs at least 33"):
        Batches(np.arange(32, dtype=np.uint16), tiny())


# schedule and optimizer


def test_learning_rate_rises_linearly_and_falls_as_a_cosine(tiny):
    config = tiny(learning_rate=1.0, min_lr=0.1, warmup_steps=4, max_steps=104)
    assert [learning_rate(step, config) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert learning_rate(54, config) == pytest.approx(0.55)
    assert learning_rate(104, config) == pytest.approx(0.1)
    rates = [learning_rate(step, config) for step in range(4, 105)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(0, replace(config, warmup_steps=0)) == 1.0


def test_only_matrices_decay(tiny):
    config = tiny(
        vocab_size=10, bias=True, pos_type="learned", norm_type="layernorm", weight_decay=0.5
    )
    model = GPT(config)
    decays = {
        id(p): group["weight_decay"]
        for o in make_optimizers(model, config)
        for group in o.param_groups
        for p in group["params"]
    }
    for name, parameter in model.named_parameters():
        assert decays[id(parameter)] == (
            0.5 if parameter.ndim == 2 and "embedding" not in name else 0.0
        ), name


def gradients(config, ids):
    """The gradients that a fresh model's first step follows, its loss and its gradient norm."""
    config = replace(config, learning_rate=1.0, warmup_steps=0)
    torch.manual_seed(0)
    model = GPT(config)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizers, scaler = (
        [torch.optim.SGD(model.parameters(), lr=1.0)],
        torch.amp.GradScaler("cpu", enabled=False),
    )
    loss, norm = optimizer_step(model, optimizers, scaler, ids, 0, torch.float32, config)
    return (
        {name: before[name] - p.detach() for name, p in model.named_parameters()},
        loss.item(),
        norm.item(),
    )


def test_micro_batches_equal_one_large_batch(tiny):
    config = tiny(vocab_size=50, batch_size=8, grad_clip=0)
    ids = torch.randint(50, (8, 33), generator=torch.Generator().manual_seed(0))
    whole, loss, norm = gradients(config, ids)
    parts, parts_loss, parts_norm = gradients(replace(config, micro_batch_size=2), ids)
    assert parts_loss == pytest.approx(loss, rel=1e-5) and parts_norm == pytest.approx(
        norm, rel=1e-4
    )
    assert all(torch.allclose(whole[name], parts[name], rtol=1e-3, atol=1e-6) for name in whole)


def test_gradients_are_clipped_to_the_norm_but_reported_whole(tiny):
    ids = torch.randint(50, (4, 33), generator=torch.Generator().manual_seed(0))
    whole, _, norm = gradients(tiny(vocab_size=50, grad_clip=0), ids)
    clipped, _, reported = gradients(tiny(vocab_size=50, grad_clip=0.01), ids)
    length = lambda tensors: torch.stack([t.norm() for t in tensors.values()]).norm().item()  # noqa: E731
    assert reported == norm == pytest.approx(length(whole), rel=1e-4) and norm > 0.1
    assert length(clipped) == pytest.approx(0.01, rel=1e-3)


def test_one_batch_can_be_learnt_by_heart(tiny):
    config = tiny(vocab_size=50)
    ids = torch.randint(50, (4, 33), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = GPT(config)
    optimizers, scaler = make_optimizers(model, config), torch.amp.GradScaler("cpu", enabled=False)
    losses = [
        optimizer_step(model, optimizers, scaler, ids, step, torch.float32, config)[0].item()
        for step in range(150)
    ]
    assert losses[0] > 3.5 and losses[-1] < 0.1


# the loop


def test_a_run_learns_and_leaves_its_files(dataset, tiny, capsys):
    result = train(tiny(max_steps=60, eval_interval=20, sample_interval=30))
    assert sorted(os.listdir("out")) == [
        "tiny_best.pt",
        "tiny_curves.png",
        "tiny_last.pt",
        "tiny_metrics.jsonl",
    ]
    assert result["steps"] == list(range(60)) and result["val_steps"] == [0, 20, 40, 60]
    assert result["best_val_loss"] == min(result["val_losses"][1:]) < result["val_losses"][0] - 1
    assert len(result["lrs"]) == len(result["grad_norms"]) == len(result["train_losses"]) == 60
    assert checkpoint.load("out/tiny_last.pt")["step"] == 60
    printed = capsys.readouterr().out
    assert (
        "best so far" in printed and "sample at step 30" in printed and "a sample of it" in printed
    )
    samples = {
        row["step"]: row["sample"]
        for row in read_metrics("out/tiny_metrics.jsonl")
        if "sample" in row
    }
    assert list(samples) == [30, 60] and all(text in printed for text in samples.values())
    assert open("out/tiny_curves.png", "rb").read(4) == b"\x89PNG"


def test_metrics_have_a_line_for_every_step_and_evaluation(dataset, tiny):
    train(tiny(log_interval=5))
    rows = read_metrics("out/tiny_metrics.jsonl")
    assert [row["step"] for row in rows if "train/loss" in row] == list(range(12))
    assert [row["step"] for row in rows if "val/loss" in row] == [0, 4, 8, 12]
    for row in rows:
        assert row["tokens"] == row["step"] * 4 * 32 and row["seconds"] >= 0
        assert row.keys() >= {"train/loss", "train/lr", "train/grad_norm"} or row.keys() & {
            "val/loss",
            "sample",
        }


def test_the_best_checkpoint_is_that_of_the_lowest_loss(folder, tiny):
    noise = "".join(
        random.Random(0).choices("abcdefgh", k=400)
    )  # to be learnt by heart, never to be understood
    (folder / "noise.txt").write_text(noise)
    prepare("noise_char", ["noise.txt"])
    result = train(tiny(dataset="noise_char", block_size=16, max_steps=60, eval_interval=10))
    best = 1 + int(
        np.argmin(result["val_losses"][1:])
    )  # the untrained model of step 0 does not count
    assert best < len(result["val_losses"]) - 1
    assert checkpoint.load("out/tiny_best.pt")["step"] == result["val_steps"][best]
    assert checkpoint.load("out/tiny_best.pt")["best_val_loss"] == result["best_val_loss"]


def test_how_often_one_looks_and_who_listens_changes_nothing(dataset, tiny, capsys):
    train(tiny(dropout=0.1))
    plain = timeless("out/tiny_metrics.jsonl")
    train(tiny(dropout=0.1, run_name="again"))
    assert timeless("out/again_metrics.jsonl") == plain
    often = {
        "eval_interval": 3,
        "log_interval": 4,
        "sample_interval": 2,
        "save_interval": 1,
        "wandb_mode": "offline",
    }
    train(tiny(dropout=0.1, run_name="watched", **often))
    assert list((dataset / "out").rglob("*.wandb")), capsys.readouterr()
    watched = timeless("out/watched_metrics.jsonl")
    trained = lambda rows: [row for row in rows if "train/loss" in row]  # noqa: E731
    assert trained(plain) == trained(watched)
    assert same(weights("out/tiny_last.pt"), weights("out/watched_last.pt"))


@pytest.mark.parametrize(
    "choices", [{"optimizer": "muon", "ema_decay": 0.9}, {"batch_order": "random"}]
)
def test_stopped_and_resumed_equals_undisturbed(dataset, tiny, choices, monkeypatch, capsys):
    settings = {"dropout": 0.2, "micro_batch_size": 2, "max_steps": 13, "batch_size": 8, "block_size": 128,
                "sample_interval": 7, **choices}  # fmt: skip
    train(tiny(**settings, run_name="whole"))

    stop_at(monkeypatch, 6)
    assert loop.main(["none.py", *arguments(**settings)]) == 2
    (dataset / "none.py").write_text("")
    assert loop.main(["none.py", *arguments(**settings)]) == 130
    assert checkpoint.load("out/tiny_last.pt")["step"] == 7
    assert "python train.py --run_name=tiny --resume" in capsys.readouterr().out
    monkeypatch.undo()
    monkeypatch.chdir(dataset)
    assert loop.main(["none.py", "--run_name=tiny", "--resume"]) == 0
    assert same(weights("out/whole_last.pt"), weights("out/tiny_last.pt"))
    assert same(weights("out/whole_best.pt"), weights("out/tiny_best.pt"))
    assert timeless("out/whole_metrics.jsonl") == timeless("out/tiny_metrics.jsonl")


def test_a_resumed_run_keeps_its_architecture_and_data(dataset, tiny, capsys):
    train(tiny())
    (dataset / "none.py").write_text("")
    resume = ["none.py", "--run_name=tiny", "--resume"]
    assert loop.main([*resume, "--n_layers=3"]) == 2
    assert "n_layers (it was 2)" in capsys.readouterr().err
    assert loop.main([*resume, "--max_steps=5"]) == 2
    assert "has 12 steps already" in capsys.readouterr().err
    assert loop.main([*resume, "--max_steps=16"]) == 0
    assert checkpoint.load("out/tiny_last.pt")["step"] == 16
    (dataset / "verses.txt").write_text(verses(401))
    prepare("verses_char", ["verses.txt"])
    assert loop.main(resume) == 1
    assert "is not the data" in capsys.readouterr().err
    assert loop.main(["none.py", "--run_name=absent", "--resume"]) == 1
    assert "no checkpoint" in capsys.readouterr().err


def test_a_config_file_can_ask_to_resume(dataset, tiny):
    train(tiny())
    (dataset / "again.py").write_text("run_name = 'tiny'\nresume = True\nn_layers = 7\n")
    assert loop.main(["again.py", "--max_steps=14", "--weight_decay=0.5"]) == 0
    state = checkpoint.load("out/tiny_last.pt")
    assert state["step"] == 14 and state["config"]["n_layers"] == 2
    assert state["optimizers"][0]["param_groups"][0]["weight_decay"] == 0.5
    assert same_steps("out/tiny_metrics.jsonl", 14)


def test_a_model_that_has_diverged_is_never_saved(dataset, tiny):
    diverging = tiny(
        norm_type="none", qk_norm=False, learning_rate=1e25, warmup_steps=0, eval_interval=1
    )
    with pytest.raises(UserError, match="is nan|is inf"):
        train(diverging)
    assert checkpoint.load("out/tiny_last.pt")["step"] == 0 and not os.path.exists(
        "out/tiny_best.pt"
    )
    assert all(tensor.isfinite().all() for tensor in weights("out/tiny_last.pt").values())
    assert "NaN" not in open("out/tiny_metrics.jsonl").read()


def test_choices_are_checked_in_python_too(tiny):
    for setting in ("mlp_type", "pos_type", "optimizer", "batch_order", "dtype"):
        with pytest.raises(ValueError, match=f"{setting} must be"):
            tiny(**{setting: "other"})


def test_a_new_run_keeps_the_best_of_the_old_one(dataset, tiny, monkeypatch, capsys):
    train(tiny())
    old = weights("out/tiny_best.pt")
    stop_at(monkeypatch, 2)  # before its first evaluation
    assert not train(tiny(seed=2))["finished"]
    assert same(weights("out/tiny_best.pt"), old) and not os.path.exists("out/tiny_best.prev.pt")
    monkeypatch.undo()
    monkeypatch.chdir(dataset)
    train(tiny(seed=2, resume=True))
    assert "tiny_best.prev.pt" in capsys.readouterr().out
    assert same(weights("out/tiny_best.prev.pt"), old) and not same(
        weights("out/tiny_best.pt"), old
    )
    train(tiny(seed=2, max_steps=16, resume=True))  # its own best is not another run's
    assert same(weights("out/tiny_best.prev.pt"), old)


def test_the_average_of_the_weights_is_evaluated_saved_and_sampled(
    dataset, tiny, monkeypatch, capsys
):
    followed = []  # the weights after each step, to be averaged by hand

    def watched(model, *args):
        result = optimizer_step(model, *args)
        followed.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return result

    monkeypatch.setattr(loop, "optimizer_step", watched)
    torch.manual_seed(1337)
    vocab_size = load_dataset("verses_char").tokenizer.vocab_size
    average = {
        name: tensor.clone()
        for name, tensor in GPT(tiny(vocab_size=vocab_size)).state_dict().items()
    }
    train(tiny(ema_decay=0.6))
    for step, now in enumerate(followed):
        decay = min(0.6, (1 + step) / (10 + step))
        average = {
            name: decay * tensor + (1 - decay) * now[name] for name, tensor in average.items()
        }
    state = checkpoint.load("out/tiny_last.pt")
    assert all(
        torch.allclose(state["model"][name], tensor, atol=1e-6) for name, tensor in average.items()
    )
    assert same(state["raw_model"], followed[-1]) and not same(state["model"], state["raw_model"])
    model, _ = checkpoint.build(state, torch.device("cpu"))
    loss = loop.mean_loss(model, load_dataset("verses_char").val, torch.float32)
    assert loop.summarize(read_metrics("out/tiny_metrics.jsonl"))["val_losses"][
        -1
    ] == pytest.approx(loss)
    assert loop.sample(model, load_dataset("verses_char"), tiny(), 500) in capsys.readouterr().out


def test_without_a_better_loss_the_patience_ends(folder, tiny, capsys):
    noise = "".join(
        random.Random(0).choices("abcdefgh", k=400)
    )  # to be learnt by heart, never to be understood
    (folder / "noise.txt").write_text(noise)
    prepare("noise_char", ["noise.txt"])
    settings = {"dataset": "noise_char", "block_size": 16, "max_steps": 200, "eval_interval": 10}
    result = train(tiny(**settings, patience=3))
    best = 1 + int(np.argmin(result["val_losses"][1:]))
    assert result["finished"] and len(result["val_losses"]) == best + 4 < 21
    assert "3 evaluations without a better loss" in capsys.readouterr().out
    resumed = train(tiny(**settings, patience=5, resume=True))  # more patience: it goes on
    assert (
        resumed["val_losses"][:-2] == result["val_losses"]
        and len(resumed["steps"]) == len(result["steps"]) + 20
    )


@pytest.mark.parametrize(
    "interval, steps",
    [("5", [0, 4, 5, 8, 10, 12]), ("0", [0, 4, 8, 12]), ("0.00001min", [*range(13)])],
)
def test_saves_between_evaluations(dataset, interval, steps, monkeypatch):
    saved = []
    save = loop.Run.save
    monkeypatch.setattr(
        loop.Run, "save", lambda run, better: (saved.append(run.step), save(run, better))
    )
    (dataset / "none.py").write_text("")
    assert loop.main(["none.py", *arguments(save_interval=interval)]) == 0
    assert saved == steps


def test_another_schedule_is_pointed_out_on_resume(dataset, tiny, capsys):
    train(tiny())
    (dataset / "none.py").write_text("")
    assert (
        loop.main(["none.py", "--run_name=tiny", "--resume", "--max_steps=14", "--eval_interval=7"])
        == 0
    )
    output = capsys.readouterr().out
    assert "changed schedule: max_steps=14 (it was 12)" in output and "eval_interval" not in output


# fine-tuning


def test_fine_tuning_starts_from_the_weights_and_architecture_of_a_checkpoint(
    dataset, tiny, capsys
):
    before = train(tiny(max_steps=60, run_name="first"))
    (dataset / "tuned.py").write_text("n_layers = 5\non_cpu = dict(n_heads=8)\n")
    settings = [
        argument
        for argument in arguments(run_name="tuned")
        if argument.split("=")[0] not in ARCHITECTURE
    ]
    assert loop.main(["tuned.py", *settings, "--init_from=out/first_best.pt"]) == 0
    rows = read_metrics("out/tuned_metrics.jsonl")
    assert rows[0]["val/loss"] == pytest.approx(before["best_val_loss"], abs=1e-6)
    config = checkpoint.load("out/tuned_last.pt")["config"]
    assert (config["n_layers"], config["n_heads"], config["init_from"]) == (
        2,
        2,
        "out/first_best.pt",
    )
    assert loop.main(["tuned.py", *settings, "--init_from=out/first_best.pt", "--n_layers=2"]) == 2
    assert "leave out n_layers" in capsys.readouterr().err
    assert (
        loop.main(["tuned.py", *settings, "--resume", "--max_steps=13"]) == 0
    )  # goes on, and not anew from the first
    assert same_steps("out/tuned_metrics.jsonl", 13)


def test_fine_tuning_says_how_the_tokenizers_differ(dataset, tiny, capsys):
    train(tiny())
    (dataset / "other.txt").write_text(verses(400).replace("w", "W") + "é")
    prepare("other_char", ["other.txt"])
    prepare("other_byte", ["other.txt"])
    with pytest.raises(UserError, match="its tokenizer lacks 'Wé' and alone has 'w'"):
        train(tiny(dataset="other_char", init_from="out/tiny_best.pt", run_name="other"))
    with pytest.raises(UserError, match="its tokens are those of char, not of byte"):
        train(tiny(dataset="other_byte", init_from="out/tiny_best.pt", run_name="other"))
    with pytest.raises(UserError, match="another architecture"):
        train(tiny(d_model=64, init_from="out/tiny_best.pt", run_name="other"))
    assert not any("other" in name for name in os.listdir("out"))


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step(dataset, tiny, monkeypatch):
    def broken(*args):
        loss, norm = optimizer_step(*args)
        return (loss * math.nan if args[4] == 9 else loss), norm

    monkeypatch.setattr(loop, "optimizer_step", broken)
    with pytest.raises(UserError, match="train/loss is nan at step 9"):
        train(tiny(log_interval=5))
    assert checkpoint.load("out/tiny_last.pt")["step"] == 8
    assert all(tensor.isfinite().all() for tensor in weights("out/tiny_last.pt").values())


def test_after_a_run_that_failed_the_next_one_is_a_run_of_its_own_in_wandb(
    dataset, tiny, monkeypatch
):
    with monkeypatch.context() as patch, pytest.raises(UserError):
        patch.setattr(
            loop, "optimizer_step", lambda *args: (torch.tensor(math.nan), torch.tensor(1.0))
        )
        train(tiny(wandb_mode="offline", out_dir="failed"))
    train(tiny(wandb_mode="offline", out_dir="next"))
    assert set(sent_to_wandb(dataset / "next")["step"]) == set(range(13))


def test_every_step_has_a_time_of_its_own(dataset, tiny):
    train(tiny(log_interval=100, eval_interval=100))
    seconds = [row["seconds"] for row in read_metrics("out/tiny_metrics.jsonl")]
    assert (
        seconds == sorted(seconds) and len(set(seconds)) >= 10
    )  # milliseconds: two steps may share one


def test_weights_that_get_worse_are_not_the_best_of_what_they_started_from(dataset, tiny):
    before = train(tiny(max_steps=60))["best_val_loss"]
    result = train(
        tiny(run_name="worse", init_from="out/tiny_best.pt", learning_rate=3.0, warmup_steps=0)
    )
    assert min(result["val_losses"][1:]) > before + 0.1
    assert result["best_val_loss"] == pytest.approx(before, abs=1e-6)
    assert same(weights("out/worse_best.pt"), weights("out/tiny_best.pt"))


def test_a_large_validation_split_is_sampled_until_the_end(dataset, tiny, capsys):
    result = train(tiny(eval_tokens=200))
    whole = loop.mean_loss(
        checkpoint.build(checkpoint.load("out/tiny_best.pt"), torch.device("cpu"))[0],
        load_dataset("verses_char").val, torch.float32,
    )  # fmt: skip
    assert result["best_val_loss"] == pytest.approx(whole) and whole not in result["val_losses"]


@pytest.mark.parametrize(
    "kind",
    [
        {"norm_position": "post"},
        {"norm_type": "none"},
        {"pos_type": "learned"},
        {"dtype": "bfloat16"},
        {"optimizer": "muon"},
    ],
)
def test_other_settings_train_too(dataset, tiny, kind):
    result = train(tiny(max_steps=40, learning_rate=3e-3, **kind))
    assert result["val_losses"][-1] < result["val_losses"][0] - 0.3


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling for a CPU needs a C++ compiler")
def test_compiled_blocks_learn_the_same(dataset):
    (dataset / "tiny.py").write_text("")
    losses = []
    for compiled in (
        "true",
        "false",
    ):  # a process of its own: compiling imports what other tests may have altered
        settings = arguments(
            run_name=compiled, compile=compiled, max_steps=6, eval_interval=3, sample_interval=3
        )
        status, _, error = run("train.py", "tiny.py", *settings)
        assert status == 0, error
        rows = read_metrics(dataset / "out" / f"{compiled}_metrics.jsonl")
        losses.append(
            [row.get("train/loss", row.get("val/loss")) for row in rows if "sample" not in row]
        )
    assert len(losses[0]) == 9 and losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_without_a_compiler_that_works_a_line_says_so(dataset, monkeypatch):
    (dataset / "tiny.py").write_text("")
    monkeypatch.setenv("CXX", "false")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(dataset / "cache"))
    status, _, error = run("train.py", "tiny.py", *arguments(compile=True))
    assert status == 1 and error.count("\n") == 1 and "--compile=false" in error
    assert not (dataset / "out").exists()


def test_auto_does_without_a_compiler_that_fails(monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("no compiler\nat all")

    cpu = torch.device("cpu")
    assert pick_compile("auto", cpu, 1e9) == (
        False,
        "auto: takes longer to compile than it saves here",
    )
    monkeypatch.setattr(torch, "compile", fail)
    assert pick_compile("auto", cpu, 1e15) == (False, "auto: can't compile here, no compiler")
    assert pick_compile(False, cpu, 1e15) == (False, "as set")


def test_without_weights_and_biases_the_run_goes_on(dataset, tiny, monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "wandb", None)  # as if it were not installed
    assert train(tiny(wandb_mode="offline"))["finished"]
    assert "Weights & Biases is off: it is not installed" in capsys.readouterr().out
    monkeypatch.setenv("WANDB_MODE", "bogus")
    assert train(tiny())["finished"]
    assert "Weights & Biases is off: WANDB_MODE is 'bogus'" in capsys.readouterr().out


def records(data: bytes):
    """The records of a .wandb file: seven bytes, then blocks of 32 KB of chunks (checksum, length, kind, content)."""
    place, record = 7, b""
    while place + 7 <= len(data):
        if (left := 32768 - place % 32768) < 7:  # no chunk begins so near to the end of a block
            place += left
            continue
        length, kind = struct.unpack_from("<HB", data, place + 4)
        if place + 7 + length > len(data):  # still being written
            return
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of its chunks
            yield wandb_internal_pb2.Record.FromString(record)
            record = b""


def sent_to_wandb(folder) -> dict[str, list]:
    """What the real library wrote down offline: every value logged, by its name, and the names of artifacts."""
    sent = defaultdict(list)
    for path in sorted(folder.rglob("*.wandb")):
        patience = time.monotonic() + 30  # the library's own process may still be writing
        while not any(record.HasField("exit") for record in records(path.read_bytes())):
            assert time.monotonic() < patience, f"{path} never ends"
            time.sleep(0.1)
        for record in records(path.read_bytes()):
            for item in record.history.item:
                sent[item.key or "/".join(item.nested_key)].append(json.loads(item.value_json))
            for item in record.run.config.update:
                sent[f"config {item.key}"].append(json.loads(item.value_json))
            if record.run.run_id:
                sent["run"].append(record.run.run_id)
            if name := record.artifact.name or record.request.log_artifact.artifact.name:
                sent["artifact"].append(name)
    return sent


def test_weights_and_biases_gets_everything_and_a_resumed_run_goes_on_there(dataset, tiny, capsys):
    config = tiny(wandb_mode="offline", sample_interval=5, wandb_log_model=True)
    train(replace(config, max_steps=8))
    train(replace(config, resume=True))
    assert "Weights & Biases is off" not in capsys.readouterr().out
    rows, sent = read_metrics(config.path("metrics.jsonl")), sent_to_wandb(dataset / "out")
    assert set(sent["run"]) == {checkpoint.run_id(config.path("best.pt"))}
    assert sent["train/loss"] == [row["train/loss"] for row in rows if "train/loss" in row]
    assert set(sent["val/loss"]) >= {row["val/loss"] for row in rows if "val/loss" in row}
    assert (
        set(sent["step"]) == set(range(13))
        and sent["tokens"][-1] == rows[-1]["tokens"]
        and sent["seconds"]
    )
    assert 1 < min(sent["train/tokens_per_second"]) <= max(sent["train/tokens_per_second"]) < 1e6
    assert sent["samples/nrows"] == [
        1,
        2,
        2,
        3,
    ]  # at step 5 and the end; the one of step 5, at step 10 and the end
    assert sent["curves/_type"] == ["image-file"] * 2
    assert sent["config learning_rate"][0] == config.learning_rate
    assert sent["artifact"].count(f"{sent['run'][0]}-best") == 2
