"""Trains a GPT on a prepared dataset.

python train.py [config file] [--setting=value ...]     (python train.py --help lists every setting)
"""

import math
import os
import shlex
import signal
import sys
import threading
import time
import uuid
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

import checkpoint
from cli import UserError, command
from config import Config, load_config
from dataset import Dataset, is_prepared, load_dataset
from device import autocast, pick_compile, pick_device, pick_dtype
from evaluate import mean_loss
from metrics import Metrics, read_metrics
from model import GPT
from muon import Muon
from plot import draw
from prepare import prepare

# ---------------------------------------------------------------------------------------------------------------------
# batches: a pure function of (seed, step), so that resuming and evaluating need no random state


class Batches:
    """The sequences of each step: batches(step) -> (batch_size, block_size + 1) token ids, int64.

    batch_order "shuffled" cuts the text into windows, takes each once an epoch in random order, and moves the cuts
    by a random offset from epoch to epoch; "random" draws every window's start independently.
    """

    def __init__(self, tokens: np.ndarray, config: Config):
        self.tokens, self.config = tokens, config
        T = config.block_size
        if len(tokens) <= T:
            raise UserError(
                f"{config.dataset} has {len(tokens):,} training tokens, block_size={T} needs at least {T + 1:,}:"
                " set a smaller block_size, or prepare more text"
            )
        self.windows = max(1, (len(tokens) - T) // T)  # in an epoch, at any offset
        self.epoch = lru_cache(maxsize=2)(self.shuffle)

    def shuffle(self, epoch: int) -> np.ndarray:
        """The starts of an epoch's windows, in the order in which they are used."""
        rng = np.random.default_rng((self.config.seed, epoch))
        T = self.config.block_size
        offset = rng.integers(len(self.tokens) - self.windows * T)
        return offset + T * rng.permutation(self.windows)

    def starts(self, step: int) -> np.ndarray:
        B, T = self.config.batch_size, self.config.block_size
        if self.config.batch_order == "random":
            return np.random.default_rng((self.config.seed, step)).integers(0, len(self.tokens) - T, size=B)
        epochs, places = np.divmod(np.arange(step * B, (step + 1) * B), self.windows)
        return np.array([self.epoch(int(epoch))[place] for epoch, place in zip(epochs, places)])

    def __call__(self, step: int) -> torch.Tensor:
        windows = self.starts(step)[:, None] + np.arange(self.config.block_size + 1)
        return torch.from_numpy(self.tokens[windows].astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------------
# schedule and optimizer


def learning_rate(step: int, config: Config) -> float:
    """Linear warmup to the peak, then a cosine that would reach final_lr at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return config.final_lr + (config.learning_rate - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2


def make_optimizers(model: GPT, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for all, or Muon for the matrices and AdamW for the rest.

    Only the matrices decay: gains and biases are scales, not directions, and an embedding's row would shrink in every
    step in which its token does not occur.
    """
    groups = model.parameter_groups()
    claimed = [id(parameter) for group in groups.values() for parameter in group]
    assert len(claimed) == len(set(claimed)) and set(claimed) == {id(p) for p in model.parameters()}
    matrices = {"params": groups.pop("matrices"), "weight_decay": config.weight_decay}
    others = [{"params": group, "weight_decay": 0.0} for group in groups.values() if group]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "muon":
        muon = Muon([matrices], lr=config.learning_rate)
        return [muon, torch.optim.AdamW(others, lr=config.learning_rate, betas=betas, fused=True)]
    return [torch.optim.AdamW([matrices, *others], lr=config.learning_rate, betas=betas, fused=True)]


def optimizer_step(forward, optimizers, scaler, ids, step: int, dtype: torch.dtype, config: Config):
    """One update from the sequences ids (batch_size, T + 1), in micro-batches.

    Returns the mean loss over the whole batch and the norm of its gradient before clipping, both on the device.
    """
    loss = torch.zeros((), device=ids.device)
    for micro_step, part in enumerate(ids.split(config.micro_batch)):
        if config.dropout:
            torch.manual_seed(int(np.random.SeedSequence((config.seed, step, micro_step)).generate_state(1)[0]))
        with autocast(ids.device, dtype):
            logits = forward(part[:, :-1])
        share = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()) * len(part) / len(ids)
        scaler.scale(share).backward()
        loss += share.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
    for group in groups:
        group["lr"] = learning_rate(step, config)
    overflowed = scaler.is_enabled() and not norm.isfinite()  # in any part: then no part of the model steps
    for optimizer in optimizers:
        if not overflowed:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return loss, norm


# ---------------------------------------------------------------------------------------------------------------------
# what a person sees


def describe(config: Config, dataset: Dataset, model: GPT, epochs: float, choices: dict[str, tuple]) -> None:
    """Prints the one block at the start of a run."""
    groups = {name: sum(p.numel() for p in group) for name, group in model.parameter_groups().items()}
    parts = ", ".join(f"{count:,} in {name}" for name, count in groups.items())
    part = f", {config.eval_tokens:,} of them before the end" if config.eval_tokens < len(dataset.val) else ""
    print(
        f"data     {dataset.name}: {len(dataset.train):,} tokens to train on, {len(dataset.val):,} to validate on{part}"
    )
    print(f"model    {sum(groups.values()):,} parameters: {parts}")
    print(f"run      {config.max_steps:,} steps of {config.tokens_per_step:,} tokens, {epochs:.1f} epochs")
    for name, (value, reason) in choices.items():
        print(f"{name:8} {value} ({reason})")


def sample(model: GPT, dataset: Dataset, config: Config, length: int) -> str:
    """A text of `length` tokens: the same weights give the same text."""
    device = model.token_embedding.weight.device
    start = torch.tensor([[dataset.tokenizer.start_id]], device=device)
    generator = torch.Generator(device).manual_seed(config.seed)
    model.eval()
    ids = model.generate(start, length, temperature=0.8, generator=generator)
    model.train()
    return dataset.tokenizer.decode(ids[0, 1:].tolist())


def summarize(rows: list[dict]) -> dict:
    """A run's curves as lists, from its metrics."""
    trained = [row for row in rows if "train/loss" in row]
    evaluated = [row for row in rows if "val/loss" in row]
    return {
        "steps": [row["step"] for row in trained],
        "train_losses": [row["train/loss"] for row in trained],
        "lrs": [row["train/lr"] for row in trained],
        "grad_norms": [row.get("train/grad_norm", math.inf) for row in trained],
        "val_steps": [row["step"] for row in evaluated],
        "val_losses": [row["val/loss"] for row in evaluated],
    }


class StopSignals:
    """Ctrl-C or SIGTERM sets `received`, so that the loop can finish its step and save; a second one stops at once."""

    def __enter__(self):
        self.received = False
        self.before = {}
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self.before = {number: signal.signal(number, self.handle) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def handle(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step (once more stops at once)", file=sys.stderr)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# the loop


def train(config: Config) -> dict:
    """Trains as `config` says and leaves checkpoints, metrics and curves in out_dir.

    Returns the run's "train_losses", "lrs" and "grad_norms" with their "steps", its "val_losses" with their
    "val_steps", "best_val_loss" (on the whole split once it is "finished"); losses are in nats per token. Raises
    UserError, also where the loss diverges.
    """
    device, device_reason = pick_device(config.device)
    dtype, dtype_reason = pick_dtype(config.dtype, device, config.d_model)
    compiled, compile_reason = pick_compile(config.compile, device)
    if not is_prepared(config.dataset):
        print(f"preparing the dataset, as `python prepare.py {config.dataset}` would")
        prepare(config.dataset)
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    batches = Batches(dataset.train, config)

    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    model = GPT(config).to(device)
    optimizers = make_optimizers(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    forward = torch.compile(model) if compiled else model  # the same weights: checkpoints are always the plain model's

    best_path, last_path, metrics_path = config.path("best.pt"), config.path("last.pt"), config.path("metrics.jsonl")
    start, best_val_loss, run_id = 0, math.inf, uuid.uuid4().hex[:8]
    old_best = best_path.exists() and not config.resume  # another run's
    if config.resume:
        state = checkpoint.load(last_path)
        if state["dataset_fingerprint"] != dataset.fingerprint:
            raise UserError(f"data/{config.dataset} is not the data that {last_path} was trained on")
        if state["step"] > config.max_steps:
            raise UserError(
                f"{last_path} has {state['step']:,} steps already: max_steps={config.max_steps:,} is too low", 2
            )
        try:
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
                settings = optimizer.state_dict()["param_groups"]  # this run's, not those of the checkpoint
                optimizer.load_state_dict({"state": saved["state"], "param_groups": settings})
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise UserError(f"{last_path} does not fit this run: {str(error).splitlines()[0]}") from None
        start, best_val_loss, run_id = state["step"], state["best_val_loss"], state["run_id"]
    describe(config, dataset, model, config.max_steps * config.batch_size / batches.windows, {
        "device": (device, device_reason),
        "dtype": (str(dtype).removeprefix("torch."), dtype_reason),
        "compile": (str(compiled).lower(), compile_reason),
    })  # fmt: skip

    metrics = Metrics(metrics_path, config, run_id, start, overflows=scaler.is_enabled())
    started = time.perf_counter()
    with StopSignals() as stop, tqdm(total=config.max_steps, initial=start, unit="step", disable=None) as bar:
        for step in range(start, config.max_steps + 1):
            last = step == config.max_steps
            evaluated = last or step % config.eval_interval == 0
            if evaluated or stop.received:
                tick = time.perf_counter()
                metrics.collect()
                metrics.seconds += time.perf_counter() - tick
                better = False
                if evaluated:
                    val_loss = mean_loss(model, dataset.val, dtype, config.eval_tokens)
                    metrics.write(step, {"val/loss": val_loss})
                    better = val_loss < best_val_loss and step > 0  # a model that has learnt nothing is never the best
                    best_val_loss = val_loss if better else best_val_loss
                    draw([metrics_path], config.path("curves.png"))
                    bar.write(f"step {step:>6,} | validation loss {val_loss:.4f} | {dataset.bits_per_byte(val_loss):.4f} "
                              f"bits per byte{' | best so far' * better}", file=sys.stdout)  # fmt: skip
                state = {
                    "model": model.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                    "config": asdict(config), "tokenizer": dataset.tokenizer.to_dict(), "step": step,
                    "best_val_loss": best_val_loss, "dataset_fingerprint": dataset.fingerprint, "run_id": run_id,
                }  # fmt: skip
                if better:
                    if old_best:
                        os.replace(best_path, config.path("best.prev.pt"))
                        bar.write(
                            f"the best checkpoint of an earlier run is kept as {config.path('best.prev.pt')}",
                            sys.stdout,
                        )
                        old_best = False
                    checkpoint.save(best_path, state)
                if step > 0:
                    checkpoint.save(last_path, state)
            if last or stop.received:
                break
            if config.sample_interval and step > start and step % config.sample_interval == 0:
                bar.write(
                    f"--- sample at step {step:,} ---\n{sample(model, dataset, config, 200)}\n---", file=sys.stdout
                )

            tick = time.perf_counter()
            ids = batches(step).to(device)
            loss, norm = optimizer_step(forward, optimizers, scaler, ids, step, dtype, config)
            metrics.add(step, learning_rate(step, config), loss, norm)
            row = metrics.collect() if step % config.log_interval == 0 else None
            metrics.seconds += time.perf_counter() - tick
            bar.update()
            if row and step > start:
                rate = (step + 1) * config.tokens_per_step / metrics.seconds
                left = (time.perf_counter() - started) / (step + 1 - start) * (config.max_steps - step - 1)
                norm = row.get("train/grad_norm", math.inf)
                line = (f"loss {row['train/loss']:.4f} | lr {row['train/lr']:.2e} | gradient norm {norm:.3f} | "
                        f"{rate:,.0f} tokens/s")  # fmt: skip
                bar.set_postfix_str(line)
                if bar.disable:
                    print(f"step {step:>6,} | {line} | {left // 60:.0f}:{left % 60:02.0f} left", flush=True)
    if not last:
        metrics.close()
        folder = f" --out_dir={shlex.quote(config.out_dir)}" if config.out_dir != Config.out_dir else ""
        resume = f"python train.py --run_name={shlex.quote(config.run_name)}{folder} --resume"
        print(f"saved {last_path} at step {step:,}; go on with: {resume}" if step else "stopped before the first step")
        return summarize(read_metrics(metrics_path)) | {"best_val_loss": best_val_loss, "finished": False}
    best = checkpoint.load(best_path)
    model.load_state_dict(best["model"])
    if len(dataset.val) > config.eval_tokens:
        best_val_loss = mean_loss(model, dataset.val, dtype)
        metrics.write(step, {"val/whole_loss": best_val_loss})
    metrics.close()
    print(f"the best model, of step {best['step']:,}: validation loss {best_val_loss:.4f}, "
          f"{dataset.bits_per_byte(best_val_loss):.4f} bits per byte")  # fmt: skip
    print(f"--- a sample of it ---\n{sample(model, dataset, config, 500)}\n---")
    print(f"{best_path} talks: python sample.py --ckpt {best_path}; curves: {config.path('curves.png')}")
    return summarize(read_metrics(metrics_path)) | {"best_val_loss": best_val_loss, "finished": True}


@command
def main(argv: list[str]) -> None:
    if not train(load_config(argv))["finished"]:
        raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
