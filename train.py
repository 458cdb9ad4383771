"""Trains a GPT on a prepared dataset.

python train.py [config file] [--setting=value ...]                       (python train.py --help lists every setting)
torchrun --nproc_per_node=8 train.py [config file] [--setting=value ...]  (one process for each GPU)
"""

import copy
import math
import os
import signal
import sys
import threading
import time
import uuid
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import get_ema_multi_avg_fn
from tqdm import tqdm

from common import checkpoint, distributed, gpt2
from common import tokenizer as tokenizers
from common.arguments import load_config
from common.cli import command, quote
from common.dataset import Dataset, is_prepared, load_dataset
from common.device import autocast, pick_compile, pick_device, pick_dtype, reuse_memory
from common.errors import UserError
from common.metrics import Metrics, read_metrics
from common.muon import Muon
from config import Config
from evaluate import mean_loss
from model import GPT, count_parameters
from plot import draw
from prepare import prepare

# ---------------------------------------------------------------------------------------------------------------------
# batches: a pure function of (seed, step), so that resuming and evaluating need no random state


class Batches:
    """This process's sequences of each step: batches(step) -> (batch_size / processes, block_size + 1) ids, int64.

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
            return np.random.default_rng((self.config.seed, step)).integers(
                0, len(self.tokens) - T, size=B
            )
        epochs, places = np.divmod(np.arange(step * B, (step + 1) * B), self.windows)
        return np.array([self.epoch(int(epoch))[place] for epoch, place in zip(epochs, places)])

    def __call__(self, step: int) -> torch.Tensor:
        share = np.array_split(self.starts(step), distributed.world_size())[distributed.rank()]
        windows = share[:, None] + np.arange(self.config.block_size + 1)
        return torch.from_numpy(self.tokens[windows].astype(np.int64))


# ---------------------------------------------------------------------------------------------------------------------
# schedule and optimizer


def learning_rate(step: int, config: Config) -> float:
    """Linear warmup to the peak, then a cosine that would reach final_lr at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    return (
        config.final_lr
        + (config.learning_rate - config.final_lr) * (1 + math.cos(math.pi * progress)) / 2
    )


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
    return [
        torch.optim.AdamW([matrices, *others], lr=config.learning_rate, betas=betas, fused=True)
    ]


def compile_model(model: GPT):
    """A compiled model with the weights of `model`, which itself stays as it is.

    On a CPU only the blocks: they are alike, so that one is compiled for all.
    """
    if model.token_embedding.weight.is_cpu:
        twin = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})
        for block in twin.blocks:
            block.compile()
        return twin
    return torch.compile(model)


def optimizer_step(forward, optimizers, scaler, ids, step: int, dtype: torch.dtype, config: Config):
    """One update from this process's sequences ids (batch_size / processes, T + 1), in micro-batches.

    Returns the mean loss of these sequences and the norm of the whole batch's gradient before clipping, on the device.
    """
    loss = torch.zeros((), device=ids.device)
    parts = ids.split(config.micro_batch_size or len(ids))
    for micro_step, part in enumerate(parts):
        if config.dropout:
            place = (config.seed, step, micro_step, distributed.rank())
            torch.manual_seed(int(np.random.SeedSequence(place).generate_state(1)[0]))
        unfinished = isinstance(forward, DistributedDataParallel) and micro_step < len(parts) - 1
        with (
            forward.no_sync() if unfinished else nullcontext()
        ):  # gradients are exchanged once, with the last part
            with autocast(ids.device, dtype):
                logits = forward(part[:, :-1])
            share = (
                F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten())
                * len(part)
                / len(ids)
            )
            scaler.scale(share).backward()
        loss += share.detach()
    for optimizer in optimizers:
        scaler.unscale_(optimizer)
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [parameter for group in groups for parameter in group["params"]]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.grad_clip or math.inf)
    for group in groups:
        group["lr"] = learning_rate(step, config)
    overflowed = (
        scaler.is_enabled() and not norm.isfinite()
    )  # in any part: then no part of the model steps
    for optimizer in optimizers:
        if not overflowed:
            scaler.step(optimizer)
        optimizer.zero_grad(set_to_none=True)
    scaler.update()
    return loss, norm


# ---------------------------------------------------------------------------------------------------------------------
# what a person sees


def describe(
    config: Config, dataset: Dataset, model: GPT, epochs: float, choices: dict[str, tuple]
) -> None:
    """Prints the one block at the start of a run."""
    groups = {
        name: sum(p.numel() for p in group) for name, group in model.parameter_groups().items()
    }
    parts = ", ".join(f"{count:,} in {name}" for name, count in groups.items())
    part = (
        f", {config.eval_tokens:,} of them before the end"
        if config.eval_tokens < len(dataset.val)
        else ""
    )
    print(
        f"data     {dataset.name}: {len(dataset.train):,} tokens to train on, {len(dataset.val):,} to validate on{part}"
    )
    print(f"model    {sum(groups.values()):,} parameters: {parts}")
    print(
        f"run      {config.max_steps:,} steps of {config.tokens_per_step:,} tokens, {epochs:.1f} epochs"
    )
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
    trained = [row for row in rows if row.keys() >= {"train/loss", "train/lr"}]
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
        if (
            threading.current_thread() is threading.main_thread()
        ):  # Python handles signals nowhere else
            self.before = {
                number: signal.signal(number, self.handle)
                for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def handle(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        if distributed.rank() == 0:
            print("\nstopping after this step (once more stops at once)", file=sys.stderr)

    def __exit__(self, *_):
        for number, handler in self.before.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# the loop


class Run:
    """What training changes, and with it what a checkpoint keeps."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device, dtype: torch.dtype):
        self.config, self.dataset, self.dtype = config, dataset, dtype
        torch.manual_seed(config.seed)
        self.model = GPT(config).to(device)
        self.average = copy.deepcopy(self.model) if config.ema_decay else None
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.step, self.best_step, self.best_val_loss = 0, 0, math.inf
        self.id = uuid.uuid4().hex[:8]
        self.owns_best = False  # whether _best.pt is this run's, as far as is known

    @property
    def result(self) -> GPT:
        """The model that is evaluated, saved and sampled: the average of the weights, where there is one."""
        return self.average or self.model

    @torch.no_grad()
    def update_average(self) -> None:
        """After a step; a young average forgets faster, as it began with weights that had learnt nothing."""
        if self.average:
            decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
            get_ema_multi_avg_fn(decay)(
                list(self.average.parameters()), list(self.model.parameters()), None
            )

    def save(self, better: bool) -> None:
        """Writes _last.pt, and _best.pt too where this is the better model; another run's is kept beside it."""
        if distributed.rank() > 0:
            return
        state = {
            "model": self.result.state_dict(), "raw_model": self.model.state_dict() if self.average else {},
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "scaler": self.scaler.state_dict(), "config": asdict(self.config), "step": self.step, "run_id": self.id,
            "tokenizer": self.dataset.tokenizer.to_dict(), "dataset_fingerprint": self.dataset.fingerprint,
            "best_step": self.best_step, "best_val_loss": self.best_val_loss,
        }  # fmt: skip
        if better:
            self.keep_other_best()
            checkpoint.save(self.config.path("best.pt"), state)
        checkpoint.save(self.config.path("last.pt"), state)

    def keep_other_best(self) -> None:
        path, kept = self.config.path("best.pt"), self.config.path("best.prev.pt")
        if not self.owns_best and path.exists() and checkpoint.run_id(path) != self.id:
            os.replace(path, kept)
            tqdm.write(f"the best checkpoint of an earlier run is kept as {kept}", sys.stdout)
        self.owns_best = True

    def resume(self, path: Path) -> None:
        """Goes on from a checkpoint of this run. Raises UserError where it does not fit."""
        state = checkpoint.load(path)
        if state["dataset_fingerprint"] != self.dataset.fingerprint:
            raise UserError(f"data/{self.dataset.name} is not the data that {path} was trained on")
        if state["step"] > self.config.max_steps:
            raise UserError(
                f"{path} has {state['step']:,} steps already: max_steps={self.config.max_steps:,} is too low",
                2,
            )
        try:
            self.result.load_state_dict(state["model"])
            self.model.load_state_dict(state["raw_model"] or state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                settings = optimizer.state_dict()[
                    "param_groups"
                ]  # this run's, not those of the checkpoint
                optimizer.load_state_dict({"state": saved["state"], "param_groups": settings})
            if (
                state["scaler"] and self.scaler.is_enabled()
            ):  # it may have been saved at another precision
                self.scaler.load_state_dict(state["scaler"])
        except (ValueError, TypeError, KeyError, AttributeError, RuntimeError) as error:
            raise UserError(f"{path} does not fit this run: {str(error).splitlines()[0]}") from None
        self.step, self.best_step, self.best_val_loss = (
            state["step"],
            state["best_step"],
            state["best_val_loss"],
        )
        self.id = state["run_id"]

    def init_from(self, path: str) -> None:
        """Takes the weights of a checkpoint, or of GPT-2. Raises UserError where its tokenizer or its architecture differs."""
        model, tokenizer = checkpoint.build(
            gpt2.load(path), self.model.token_embedding.weight.device
        )
        if found := tokenizers.difference(tokenizer, self.dataset.tokenizer):
            raise UserError(f"{path} can't go on with data/{self.dataset.name}: {found}")
        try:
            for own in filter(None, (self.model, self.average)):
                own.load_state_dict(model.state_dict())
        except RuntimeError as error:
            raise UserError(
                f"{path} has another architecture: {' '.join(str(error).split())[:200]}"
            ) from None

    def evaluate(self) -> tuple[float, bool]:
        """The validation loss, and whether it is the best so far; weights that have learnt nothing are never the best."""
        loss = mean_loss(self.result, self.dataset.val, self.dtype, self.config.eval_tokens)
        better = loss < self.best_val_loss and (self.step > 0 or self.config.init_from is not None)
        if better:
            self.best_step, self.best_val_loss = self.step, loss
        return loss, better

    def out_of_patience(self) -> bool:
        """Whether the last `patience` evaluations have brought nothing better."""
        interval = self.config.eval_interval
        since = self.step // interval - self.best_step // interval
        return self.config.patience is not None and since >= self.config.patience


def train(config: Config) -> dict:
    """Trains as `config` says and leaves checkpoints, metrics and curves in out_dir.

    Returns the run's "train_losses", "lrs" and "grad_norms" with their "steps", its "val_losses" with their
    "val_steps", "best_val_loss" (on the whole split once it is "finished"); losses are in nats per token. Raises
    UserError, also where the loss diverges. In a distributed.group() the processes share the work of one run.
    """
    device, device_reason = pick_device(config.device)
    if device.type == "cuda" and distributed.world_size() > 1:
        device, _ = pick_device(f"cuda:{distributed.local_rank()}")
        torch.cuda.set_device(device)
    dtype, dtype_reason = pick_dtype(config.dtype, device)
    if config.batch_size % (distributed.world_size() * (config.micro_batch_size or 1)):
        parts = (
            f" in parts of micro_batch_size={config.micro_batch_size}"
            if config.micro_batch_size
            else ""
        )
        raise UserError(
            f"batch_size={config.batch_size} can't be shared out evenly over {distributed.world_size()} processes{parts}",
            status=2,
        )
    if distributed.rank() == 0 and not is_prepared(config.dataset):
        print(f"preparing the dataset, as `python prepare.py {config.dataset}` would")
        prepare(config.dataset)
    distributed.wait()
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    batches = Batches(dataset.train, config)
    operations = 6.0 * count_parameters(config) * config.tokens_per_step * config.max_steps
    compiled, compile_reason = pick_compile(config.compile, device, operations)
    torch.set_float32_matmul_precision("high")
    reuse_memory()
    run = Run(config, dataset, device, dtype)
    choices = {
        "device": (device, device_reason),
        "dtype": (str(dtype).removeprefix("torch."), dtype_reason),
        "compile": (str(compiled).lower(), compile_reason),
    }
    if config.resume:
        run.resume(config.path("last.pt"))
        choices["start"] = (f"step {run.step:,}", f"resumed from {config.path('last.pt')}")
    elif config.init_from:
        run.init_from(config.init_from)
        choices["start"] = ("step 0", f"with the weights of {config.init_from}")
    describe(
        config, dataset, run.model, config.max_steps * config.batch_size / batches.windows, choices
    )
    forward = (
        compile_model(run.model) if compiled else run.model
    )  # they share their weights; run.model is saved
    if distributed.world_size() > 1:
        forward = DistributedDataParallel(forward)
    path = config.path("metrics.jsonl")
    with Metrics(path, config, run.id, run.step, overflows=run.scaler.is_enabled()) as metrics:
        finished = loop(run, batches, forward, metrics)
        best_val_loss = conclude(run, finished, metrics)
    curves = summarize(read_metrics(path)) if distributed.rank() == 0 else {}
    return curves | {"best_val_loss": best_val_loss, "finished": finished}


def loop(run: Run, batches: Batches, forward, metrics: Metrics) -> bool:
    """The steps from run.step on, with evaluations, saves, samples and log lines between them.

    Returns whether the run is finished, and was not stopped.
    """
    config, dataset, model = run.config, run.dataset, run.result
    device, start, first = model.token_embedding.weight.device, run.step, distributed.rank() == 0
    before = metrics.seconds
    started = saved = time.perf_counter()
    bar = tqdm(
        total=config.max_steps,
        initial=start,
        unit="step",
        disable=None if first and sys.stderr else True,
    )
    with StopSignals() as stop, bar:
        for step in range(start, config.max_steps + 1):
            run.step = step
            due = config.save_due(step, time.perf_counter() - saved)
            stopped, due = distributed.any_process(stop.received, due)
            finished = step == config.max_steps
            evaluated = finished or step % config.eval_interval == 0
            if evaluated or stopped or due:
                with metrics.timed():
                    metrics.collect()
                better = False
                if evaluated:
                    val_loss, better = run.evaluate()
                    metrics.write(step, {"val/loss": val_loss})
                    bar.write(f"step {step:>6,} | validation loss {val_loss:.4f} | {dataset.bits_per_byte(val_loss):.4f} "
                              f"bits per byte{' | best so far' * better}", file=sys.stdout)  # fmt: skip
                    if first:
                        draw([config.path("metrics.jsonl")], config.path("curves.png"))
                metrics.sync()
                run.save(better)
                saved = time.perf_counter()
            if not finished and run.out_of_patience():
                finished = True
                bar.write(
                    f"{config.patience} evaluations without a better loss: the run ends here",
                    file=sys.stdout,
                )
            if finished or stopped:
                break
            if first and config.sample_interval and step > 0 and step % config.sample_interval == 0:
                text = sample(model, dataset, config, 200)
                bar.write(f"--- sample at step {step:,} ---\n{text}\n---", sys.stdout)
                metrics.sample(step, text)

            with metrics.timed():
                ids = batches(step).to(device)
                loss, norm = optimizer_step(
                    forward, run.optimizers, run.scaler, ids, step, run.dtype, config
                )
                run.update_average()
                metrics.add(step, learning_rate(step, config), loss, norm)
                row = metrics.collect() if step % config.log_interval == 0 else None
            bar.update()
            if row and step > start:
                rate = (step + 1 - start) * config.tokens_per_step / (metrics.seconds - before)
                metrics.speed(step, rate)
                left = (
                    (time.perf_counter() - started)
                    / (step + 1 - start)
                    * (config.max_steps - step - 1)
                )
                norm = row.get("train/grad_norm", math.inf)
                line = (f"loss {row['train/loss']:.4f} | lr {row['train/lr']:.2e} | gradient norm {norm:.3f} | "
                        f"{rate:,.0f} tokens/s")  # fmt: skip
                bar.set_postfix_str(line)
                if bar.disable:
                    print(
                        f"step {step:>6,} | {line} | {left // 60:.0f}:{left % 60:02.0f} left",
                        flush=True,
                    )
    return finished


def conclude(run: Run, finished: bool, metrics: Metrics) -> float:
    """The best model's loss on the whole validation split and a sample of it; or how a run that was stopped goes on.

    Returns the best validation loss, on the whole split where the run has finished.
    """
    config, dataset, model, first = run.config, run.dataset, run.result, distributed.rank() == 0
    best_path, curves_path = config.path("best.pt"), config.path("curves.png")
    if not finished:
        if first:
            folder = (
                f" --out_dir={quote(config.out_dir)}" if config.out_dir != Config.out_dir else ""
            )
            again = f"python train.py --run_name={quote(config.run_name)}{folder} --resume"
            print(f"saved {config.path('last.pt')} at step {run.step:,}; go on with: {again}")
        return run.best_val_loss
    distributed.wait()  # until process 0 has written it
    best, loss = checkpoint.load(best_path), run.best_val_loss
    model.load_state_dict(best["model"])
    if len(dataset.val) > config.eval_tokens:
        loss = mean_loss(model, dataset.val, run.dtype)
        metrics.write(run.step, {"val/whole_loss": loss})
    if first:
        text = sample(model, dataset, config, 500)
        metrics.sample(run.step, text)
        metrics.finish(run.step, curves_path, best_path if config.wandb_log_model else None)
        print(f"the best model, of step {best['step']:,}: validation loss {loss:.4f}, "
              f"{dataset.bits_per_byte(loss):.4f} bits per byte")  # fmt: skip
        print(f"--- a sample of it ---\n{text}\n---")
        print(
            f"{best_path} talks: python sample.py --ckpt {quote(str(best_path))}; curves: {curves_path}"
        )
    return loss


@command
def main(argv: list[str]) -> None:
    distributed.mute_others()
    with distributed.group():
        finished = train(load_config(argv))["finished"]
    if not finished:
        raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())
