"""Trains a GPT on a prepared dataset.

python train.py [config file] [--setting=value ...]    (python train.py --help lists all settings)
torchrun --nproc_per_node=8 train.py [config file] [--setting=value ...]     (a process per GPU)
"""

import common.threads  # isort: skip  # noqa: F401 (before torch)
import copy
import math
import uuid
from contextlib import nullcontext
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from common import checkpoint, distributed, run_state
from common.arguments import load_config
from common.checkpoint import SavedModel
from common.cli import command, command_for, escape_controls, quote
from common.dataset import Dataset, load_dataset, windows
from common.device import (
    autocast,
    compile_model,
    pick_compile,
    pick_device,
    pick_dtype,
    reuse_memory,
)
from common.errors import UserError, one_line
from common.gpt2 import load_model
from common.metrics import Metrics, read_metrics, summarize
from common.muon import Muon
from common.progress import Progress, print_resume_command, print_summary
from common.signals import StopSignals
from common.timing import SaveTimer
from common.tokenizer import first_document
from config import Config
from evaluate import mean_loss
from model import GPT, Graph, entropy, flops_per_token, next_token_loss
from plot import draw
from prepare import prepare_missing

# -------------------------------------------------------------------------------------------------
# batches: a function of (seed, step), so that a resumed run needs no random state


class Batches:
    """The sequences of each step: batches(step) -> (batch_size / processes, block_size + 1) int64.

    batch_order "shuffled" cuts the text into windows of block_size, uses each once an epoch in
    random order, and shifts the cuts by a random offset each epoch. "random" draws the start of
    every window independently.
    """

    def __init__(self, tokens: np.ndarray, config: Config):
        T = config.block_size
        if len(tokens) <= T:
            smaller = "" if config.init_from else "set a smaller block_size, or "
            raise UserError(
                f"{config.dataset} has {len(tokens):,} training tokens, but block_size={T} needs"
                f" at least {T + 1:,}: {smaller}prepare more text"
            )
        self.tokens, self.config = tokens, config
        # leaves out at least T tokens (if there are 2 T), so that the cuts can shift by up to T
        self.windows_per_epoch = max(1, (len(tokens) - T) // T)
        self.epoch_starts = lru_cache(maxsize=2)(self.shuffle)  # few batches span more

    def shuffle(self, epoch: int) -> np.ndarray:
        """Where the windows of an epoch start, in the order in which they are used."""
        rng = np.random.default_rng((self.config.seed, epoch))
        T, n = self.config.block_size, self.windows_per_epoch
        offset = rng.integers(len(self.tokens) - n * T)
        return offset + T * rng.permutation(n)

    def starts(self, step: int) -> np.ndarray:
        """Where the windows of a step's whole batch start, (batch_size,)."""
        B, T, n = self.config.batch_size, self.config.block_size, self.windows_per_epoch
        if self.config.batch_order == "random":
            rng = np.random.default_rng((self.config.seed, step))
            return rng.integers(0, len(self.tokens) - T, size=B)
        sequences = range(step * B, (step + 1) * B)  # numbered from the beginning of the run
        return np.array([self.epoch_starts(i // n)[i % n] for i in sequences])

    def __call__(self, step: int) -> torch.Tensor:
        ours = np.array_split(self.starts(step), distributed.world_size())[distributed.rank()]
        return windows(self.tokens, ours, self.config.block_size + 1, self.config.vocab_size)


# -------------------------------------------------------------------------------------------------
# learning rate and optimizers


def learning_rate(step: int, config: Config) -> float:
    """Linear warmup to config.learning_rate, then a cosine to final_lr at max_steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    progress = (step - config.warmup_steps) / max(1, config.max_steps - config.warmup_steps)
    cosine = (1 + math.cos(math.pi * progress)) / 2
    return config.final_lr + (config.learning_rate - config.final_lr) * cosine


def make_optimizers(model: GPT, config: Config) -> list[torch.optim.Optimizer]:
    """AdamW for all parameters, or Muon or NorMuon for the blocks' matrices and AdamW for the rest.

    Weight decay applies to the matrices only. Gains and biases are scales; an embedding row would
    shrink at every step whose batch lacks its token.
    """
    groups = model.parameter_groups()
    matrices = {"params": groups.pop("matrices"), "weight_decay": config.weight_decay}
    others = [{"params": group, "weight_decay": 0.0} for group in groups.values() if group]
    settings = {"lr": config.learning_rate, "betas": (config.beta1, config.beta2), "fused": True}
    settings["capturable"] = True  # steps can be recorded as a CUDA graph
    if config.optimizer != "adamw":
        beta2 = config.beta2 if config.optimizer == "normuon" else None
        muon = Muon([matrices], lr=config.learning_rate, momentum=config.momentum, beta2=beta2)
        return [muon, torch.optim.AdamW(others, **settings)]
    return [torch.optim.AdamW([matrices, *others], **settings)]


def objective_and_loss(logits, ids, confidence_penalty: float):
    """What to minimize, and the loss in nats per token: logits (B, T, V), ids (B, T + 1)."""
    objective = loss = next_token_loss(logits, ids)
    if confidence_penalty:  # Pereyra et al., 2017, arXiv:1701.06548
        objective = loss - confidence_penalty * entropy(logits)
    return objective, loss.detach()


# -------------------------------------------------------------------------------------------------
# the state of a run, and one step


class Run:
    """Everything that training changes and a checkpoint stores."""

    def __init__(self, config: Config, dataset: Dataset, device: torch.device, dtype: torch.dtype):
        """config: with vocab_size. dtype: of matrix products; the weights are float32."""
        self.config, self.dataset, self.dtype = config, dataset, dtype
        self.batches = Batches(dataset.train, config)
        torch.manual_seed(config.seed)
        self.model = GPT(config).to(device)
        self.wrapped_model = self.model  # accelerate() may compile or distribute it
        self.objective_and_loss = objective_and_loss  # accelerate() may compile it
        self.graph = None  # accelerate() may have the steps recorded
        self.ema_model = copy.deepcopy(self.model) if config.ema_decay else None
        self.optimizers = make_optimizers(self.model, config)
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.step = self.best_step = self.patience_start = 0
        self.best_val_loss = math.inf
        self.id = uuid.uuid4().hex[:8]

    def accelerate(self, compiled: bool) -> None:
        """Compiles, distributes or records the steps; the weights stay those of self.model."""
        on_gpu = self.model.device.type == "cuda"
        if compiled:
            self.wrapped_model = compile_model(self.model)
            if on_gpu:
                self.objective_and_loss = torch.compile(objective_and_loss)
        if distributed.world_size() > 1:
            # cos and sin need no synchronization; before torch 2.13 this option had another name
            option = "forward_sync_buffers" if torch.__version__ >= (2, 13) else "broadcast_buffers"
            self.wrapped_model = DistributedDataParallel(self.wrapped_model, **{option: False})
        elif on_gpu and self.config.compile is not False and not self.scaler.is_enabled():
            self.graph = Graph()  # not in float16: its scaler waits for the GPU

    @property
    def eval_model(self) -> GPT:
        """The model to evaluate, save and sample: the moving average if there is one."""
        return self.ema_model or self.model

    def update(self, step: int):
        """Trains on the batch of a step: optimize(), then the moving average of the weights.

        Returns the loss on this process's sequences, and the norm of the whole batch's gradient
        before clipping, both as tensors on the device.
        """
        config, device = self.config, self.model.device
        ids, lr = self.batches(step), learning_rate(step, config)
        if device.type == "cuda":
            ids = ids.pin_memory()  # so that copying does not wait for the GPU
        ids = ids.to(device, non_blocking=ids.is_pinned())
        if config.dropout:  # a resumed run must draw the same numbers
            seeds = np.random.SeedSequence((config.seed, step, distributed.rank()))
            torch.manual_seed(int(seeds.generate_state(1)[0]))
        if self.graph:
            results = self.graph(self.optimize, ids, torch.full((), lr, device=device))
            loss, norm = (result.clone() for result in results)  # the next step overwrites them
        else:
            loss, norm = self.optimize(ids, lr)

        # update the moving average; a low decay at first soon forgets the random initial weights
        if self.ema_model:
            decay = min(config.ema_decay, (1 + step) / (10 + step))
            with torch.no_grad():
                weights, average = list(self.model.parameters()), list(self.ema_model.parameters())
                torch._foreach_lerp_(average, weights, 1 - decay)
        return loss, norm

    def optimize(self, ids, lr: float | torch.Tensor):
        """Forward and backward passes, clipping, the optimizers' steps; returns loss and norm.

        On a GPU it may be recorded (Graph): then only its arguments and random numbers change from
        step to step.
        """
        config, device = self.config, self.model.device
        micro_batches = ids.split(config.micro_batch_size or len(ids))
        loss = torch.zeros((), device=device)

        # accumulate the gradient over the micro-batches; the last one averages it over processes
        for i, micro_batch in enumerate(micro_batches):
            accumulating = distributed.world_size() > 1 and i < len(micro_batches) - 1
            with self.wrapped_model.no_sync() if accumulating else nullcontext():
                with autocast(device, self.dtype):
                    logits = self.wrapped_model(micro_batch[:, :-1])
                objective, micro_loss = self.objective_and_loss(
                    logits, micro_batch, config.confidence_penalty
                )
                share = len(micro_batch) / len(ids)
                self.scaler.scale(objective * share).backward()
            loss += micro_loss * share

        # clip the gradient
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.grad_clip or math.inf)

        # step, unless float16 overflowed (scaler.step would skip only the optimizer whose own
        # gradients are not finite)
        overflowed = self.scaler.is_enabled() and not norm.isfinite()
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            if not overflowed:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.scaler.update()
        return loss, norm

    def sample(self, length: int) -> str:
        """A text of `length` tokens, or a whole document; equal weights give equal texts."""
        model, device, tokenizer = self.eval_model, self.model.device, self.dataset.tokenizer
        start = torch.tensor([tokenizer.start_ids], device=device)
        generator = torch.Generator(device).manual_seed(self.config.seed)
        model.eval()
        ids = model.generate(start, length, temperature=0.8, generator=generator)
        model.train()
        text = tokenizer.decode(ids[0, start.size(1) :].tolist())
        return first_document(text, tokenizer)


# -------------------------------------------------------------------------------------------------
# training


def train(config: Config, saved: SavedModel | None = None) -> dict:
    """Trains as `config` says; writes checkpoints, metrics and curves into out_dir.

    saved: the checkpoint that config.resume or config.init_from names, if it is loaded already.
    Returns a dict: "steps", with "train_losses", "lrs" and "grad_norms"; "val_steps", with
    "val_losses"; "finished"; and "best_val_loss", on the whole validation split if finished. Only
    the last two in processes other than the first. Losses are in nats per token. Raises UserError,
    also if the loss diverges. Inside distributed.group() the processes share the work of one run.
    """
    # device, precision, memory
    device, device_reason = pick_device(config.device)
    dtype, dtype_reason = pick_dtype(config.dtype, device)
    torch.set_float32_matmul_precision("high")  # float32 products on a GPU use TF32
    reuse_memory()

    # data
    processes, micro_batch = distributed.world_size(), config.micro_batch_size or 1
    if config.batch_size % (processes * micro_batch):
        parts = f" in micro-batches of {micro_batch}" if config.micro_batch_size else ""
        raise UserError(
            f"batch_size={config.batch_size} can't be divided among {processes} processes{parts}",
            status=2,
        )
    distributed.on_first(prepare_missing, config.dataset)
    distributed.on_first(load_dataset, config.dataset)  # may download the files of GPT-2's BPE
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)

    # model and optimizers: from scratch, from this run's checkpoint, or from another model
    run = Run(config, dataset, device, dtype)
    flops = flops_per_token(config) * config.tokens_per_step * config.max_steps
    compiled, compile_reason = pick_compile(config.compile, device, flops)
    decisions = {
        "device": (device, device_reason),
        "dtype": (str(dtype).removeprefix("torch."), dtype_reason),
        "compile": (str(compiled).lower(), compile_reason),
    }
    if config.resume:
        run_state.resume(run, saved or checkpoint.load(config.path("last.pt")))
        more = "; a higher max_steps would continue it" if run.step == config.max_steps else ""
        decisions["start"] = (f"step {run.step:,}", f"resumed from {config.path('last.pt')}{more}")
    elif config.init_from:
        run_state.init_from(run, saved or load_model(config.init_from))
        decisions["start"] = ("step 0", f"with the weights of {config.init_from}")
    run.accelerate(compiled)
    print_summary(run, decisions)
    distributed.on_first(run_state.prepare_folder, run)

    # train
    path, may_overflow = config.path("metrics.jsonl"), run.scaler.is_enabled()
    with Metrics(path, config, run.id, run.step, may_overflow) as metrics:
        finished = loop(run, metrics)
        run.graph = None  # frees its memory
        with metrics.clock.paused():
            loss = conclude(run, metrics) if finished else run.best_val_loss
    if not finished:
        print_resume_command(config, run.step)
    curves = summarize(read_metrics(path)) if distributed.is_first() else {}
    return curves | {"best_val_loss": loss, "finished": finished}


def loop(run: Run, metrics: Metrics) -> bool:
    """Trains from run.step on. Returns whether the run finished: a signal may stop it."""
    config, timer = run.config, SaveTimer(run.config.save_interval)
    with Progress(config, run.step, metrics) as progress, StopSignals() as signals:
        for step in range(run.step, config.max_steps + 1):
            run.step = step
            last = step == config.max_steps
            evaluate = last or step % config.eval_interval == 0
            # all processes must agree, or one would wait for the others forever
            stop, save = distributed.any_process(
                signals.received or progress.output_closed, timer.due(step)
            )

            # evaluate and save; flush first: it raises Diverged, and the last good checkpoint stays
            if evaluate or stop or save:
                metrics.flush()
                with metrics.clock.paused():
                    best = evaluate and evaluate_run(run, metrics, progress)
                    metrics.sync()
                    run_state.save(run, best)
                    if evaluate and step and not last and distributed.is_first():
                        draw_curves(config, metrics)
                timer.saved()

            # end: at the last step, when the loss no longer improves, or after a signal
            impatient = run_state.out_of_patience(config, step, run.patience_start)
            if evaluate and not last and impatient:
                progress.print(f"no improvement in {config.patience} evaluations: stopping early")
                last = True
            if last or stop:
                return last

            # print a sample
            if config.sample_interval and step and step % config.sample_interval == 0:
                metrics.flush()
                with metrics.clock.paused():
                    text = run.sample(200)
                    metrics.write(step, {"sample": text})
                    progress.print(f"--- sample at step {step:,} ---\n{escape_controls(text)}\n---")

            # one update; reading its loss waits for the device, so only every log_interval steps
            loss, norm = run.update(step)
            metrics.add(step, learning_rate(step, config), loss, norm)
            if step % config.log_interval == 0 or step + 1 == config.max_steps:
                progress.log(step, metrics.flush())


def evaluate_run(run: Run, metrics: Metrics, progress: Progress) -> bool:
    """Evaluates and prints. Returns whether this is the best model so far.

    Untrained weights never count as best.
    """
    limit = max(run.config.eval_tokens, run.config.block_size)  # at least one window
    loss = mean_loss(run.eval_model, run.dataset.val, run.dtype, limit)
    trained = run.step > 0 or run.config.init_from is not None
    best = trained and loss < run.best_val_loss
    if best:
        run.best_step = run.patience_start = run.step
        run.best_val_loss = loss
    metrics.write(run.step, {"val/loss": loss})
    progress.print(
        f"step {run.step:>6,} | validation loss {loss:.4f}"
        + (f" on ~{limit:,} tokens" if limit < len(run.dataset.val) else "")
        + f" | {run.dataset.bits_per_byte(loss):.4f} bits/byte"
        + (" | best" if best else "")
    )
    return best


def draw_curves(config: Config, metrics: Metrics) -> Path | None:
    """Draws the curves so far. Returns the figure, or None if it can't be drawn."""
    path = config.path("curves.png")
    try:
        draw({config.run_name: metrics.curves}, path)
    except (ImportError, OSError, UserError) as error:
        print(f"note: {path} is not drawn: {one_line(error)}")
        return None
    return path


def conclude(run: Run, metrics: Metrics) -> float:
    """Evaluates and samples the best model. Returns its loss on the whole validation split."""
    config, dataset, model = run.config, run.dataset, run.eval_model
    distributed.barrier()  # process 0 may still be writing the checkpoint
    path = config.path("best.pt")
    best, loss = checkpoint.load(path), run.best_val_loss
    model.load_state_dict(best.model)
    if len(dataset.val) > config.eval_tokens:
        loss = mean_loss(model, dataset.val, run.dtype)
        metrics.write(run.step, {"val/whole_loss": loss})
    if distributed.is_first():
        text = run.sample(500)
        metrics.write(run.step, {"sample": text})
        curves = draw_curves(config, metrics)
        metrics.wandb.log_files(run.step, curves, path if config.wandb_log_model else None)
        print(
            f"best model (step {best.step:,}): validation loss {loss:.4f} on all"
            f" {len(dataset.val):,} tokens, {dataset.bits_per_byte(loss):.4f} bits per byte"
        )
        print(f"--- sample ---\n{escape_controls(text)}\n---")
        print(f"sample from it: {command_for('sample.py')} --ckpt {quote(str(path))}")
        if curves:
            print(f"curves: {curves}")
    return loss


@command
def main(argv: list[str]) -> int:
    with distributed.group():
        config, saved = load_config(argv)
        finished = train(config, saved)["finished"]
    return 0 if finished else 130  # as after Ctrl-C


if __name__ == "__main__":
    distributed.exit_process(main())
