"""Trains a GPT on a prepared dataset.

python train.py [config file] [--setting=value ...]     (python train.py --help lists every setting)
"""

import math
import os
import signal
import time
import uuid
from dataclasses import asdict, replace
from functools import lru_cache
from pathlib import Path

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
from metrics import Metrics
from model import GPT, count_parameters
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
        offset = rng.integers(min(T, len(self.tokens) - self.windows * T))
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


def make_optimizer(model: GPT, config: Config) -> torch.optim.Optimizer:
    """AdamW that decays the matrices alone: gains and biases are scales, not directions, and an embedding's row
    would shrink in every step in which its token does not occur."""
    groups = model.parameter_groups()
    claimed = [id(parameter) for group in groups.values() for parameter in group]
    assert len(claimed) == len(set(claimed)) and set(claimed) == {id(p) for p in model.parameters()}
    decay = {"matrices": config.weight_decay, "embeddings": 0.0, "gains and biases": 0.0}
    return torch.optim.AdamW(
        [{"params": group, "weight_decay": decay[name]} for name, group in groups.items() if group],
        lr=config.learning_rate,
        betas=(config.beta1, config.beta2),
        fused=True,
    )


def seed_dropout(*key: int) -> None:
    torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


# ---------------------------------------------------------------------------------------------------------------------
# what a person sees


def describe(config: Config, dataset: Dataset, model: GPT, epochs: float, choices: dict[str, tuple]) -> None:
    """Prints the one block at the start of a run."""
    groups = {name: sum(p.numel() for p in group) for name, group in model.parameter_groups().items()}
    print(f"data    {dataset.name}: {len(dataset.train):,} tokens to train on, {len(dataset.val):,} to validate on, "
          f"vocabulary of {config.vocab_size:,}")  # fmt: skip
    print(f"model   {count_parameters(config):,} parameters: " + ", ".join(f"{n:,} in {k}" for k, n in groups.items()))
    print(f"run     {config.max_steps:,} steps of {config.tokens_per_step:,} tokens: {epochs:.1f} epochs")
    print("machine " + ", ".join(f"{name} {value} ({reason})" for name, (value, reason) in choices.items()))


def sample(model: GPT, dataset: Dataset, config: Config, length: int = 200) -> str:
    """A text of `length` tokens, the same whenever the weights are the same."""
    device = model.token_embedding.weight.device
    generator = torch.Generator(device).manual_seed(config.seed)
    start = torch.tensor([[dataset.tokenizer.start_id]], device=device)
    model.eval()
    ids = model.generate(start, length, temperature=0.8, generator=generator)
    model.train()
    return dataset.tokenizer.decode(ids[0, 1:].tolist())


class StopSignals:
    """Ctrl-C or SIGTERM sets `received`, so that the loop can finish its step and save; a second one stops at once."""

    def __enter__(self):
        self.received = False
        self.previous = {}
        for number in (signal.SIGINT, signal.SIGTERM):
            try:
                self.previous[number] = signal.signal(number, self.handle)
            except ValueError:  # not in the main thread: whoever runs us there handles signals
                pass
        return self

    def handle(self, number, frame):
        if self.received:
            raise KeyboardInterrupt
        self.received = True
        print("\nstopping after this step; once more stops at once")

    def __exit__(self, *_):
        for number, handler in self.previous.items():
            signal.signal(number, handler)


# ---------------------------------------------------------------------------------------------------------------------
# the loop


def train(config: Config) -> dict:
    """Trains as `config` says and leaves checkpoints, metrics and curves in out_dir.

    Returns {"train_losses", "grad_norms", "lrs", "steps", "val_losses", "val_steps", "best_val_loss"}: lists with
    an entry for each step, or for each evaluation, of this call; losses in nats per token.
    Raises UserError for what a user can mend, divergence included.
    """
    device, device_reason = pick_device(config.device)
    dtype, dtype_reason = pick_dtype(config.dtype, device, config.d_model)
    compiled, compile_reason = pick_compile(config.compile, device)
    if not is_prepared(config.dataset):
        print(f"preparing {config.dataset}, as python prepare.py {config.dataset} would")
        prepare(config.dataset)
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    batches = Batches(dataset.train, config)

    torch.manual_seed(config.seed)
    torch.set_float32_matmul_precision("high")
    model = GPT(config).to(device)
    optimizer = make_optimizer(model, config)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    forward = torch.compile(model) if compiled else model
    describe(config, dataset, model, config.max_steps * config.batch_size / batches.windows, {
        "device": (device, device_reason),
        "dtype": (str(dtype).removeprefix("torch."), dtype_reason),
        "compile": (str(compiled).lower(), compile_reason),
    })  # fmt: skip

    out = Path(config.out_dir)
    best_path, last_path = out / f"{config.run_name}_best.pt", out / f"{config.run_name}_last.pt"
    metrics_path, curves_path = out / f"{config.run_name}_metrics.jsonl", out / f"{config.run_name}_curves.png"
    run_id = uuid.uuid4().hex[:8]
    if best_path.exists():
        previous = out / f"{config.run_name}_best.prev.pt"
        os.replace(best_path, previous)
        print(f"the best checkpoint of an earlier run is kept as {previous}")
    metrics = Metrics(metrics_path, config, run_id, start=0)
    result = {"train_losses": [], "grad_norms": [], "lrs": [], "steps": [], "val_losses": [], "val_steps": []}
    best_val_loss = math.inf
    pending = []  # (step, lr, loss, gradient norm) that are still on the device: reading them would wait for it
    seconds, started = 0.0, time.perf_counter()

    def collect() -> None:
        """Brings the pending losses and norms off the device, in one go, and writes them down."""
        if not pending:
            return
        losses, norms = torch.stack([torch.stack(entry[2:]) for entry in pending]).T.tolist()
        for (step, lr, *_), loss, norm in zip(pending, losses, norms):
            if not math.isfinite(loss) or not (math.isfinite(norm) or scaler.is_enabled()):
                raise UserError(f"step {step}: the loss is {loss}, the gradient norm {norm}; lower learning_rate,"
                                f" or raise warmup_steps; checkpoints from before are still in {out}")  # fmt: skip
            metrics.write(step, seconds, train_loss=loss, train_lr=lr, train_grad_norm=norm)
            for name, value in zip(("steps", "train_losses", "lrs", "grad_norms"), (step, loss, lr, norm)):
                result[name].append(value)
        pending.clear()
        metrics.flush()

    def save(path: Path, step: int, val_loss: float | None) -> None:
        checkpoint.save(path, {
            "model": model.state_dict(), "optimizer": optimizer.state_dict(), "config": asdict(config),
            "tokenizer": dataset.tokenizer.to_dict(), "step": step, "val_loss": val_loss,
            "best_val_loss": best_val_loss, "dataset_fingerprint": dataset.fingerprint, "run_id": run_id,
        })  # fmt: skip

    with StopSignals() as stop, tqdm(total=config.max_steps, unit="step", disable=None) as bar:
        for step in range(config.max_steps + 1):
            last = step == config.max_steps
            if step % config.eval_interval == 0 or last or stop.received:
                collect()
                val_loss = None
                if step % config.eval_interval == 0 or last:
                    val_loss = mean_loss(model, dataset.val, config.micro_batch, dtype, config.eval_tokens)
                    metrics.write(step, seconds, val_loss=val_loss)
                    metrics.flush()
                    result["val_losses"].append(val_loss)
                    result["val_steps"].append(step)
                    better = val_loss < best_val_loss
                    bar.write(f"step {step:>6,} | validation loss {val_loss:.4f} | "
                              f"{dataset.bits_per_byte(val_loss):.4f} bits per byte{' | best so far' * better}")  # fmt: skip
                    if better:
                        best_val_loss = val_loss
                        if step > 0:
                            save(best_path, step, val_loss)
                    draw([metrics_path], curves_path)
                if step > 0:
                    save(last_path, step, val_loss)
            if last or stop.received:
                break
            if config.sample_interval and step % config.sample_interval == 0 and step > 0:
                bar.write(f"--- a sample at step {step:,} ---\n{sample(model, dataset, config)}\n---")

            tick = time.perf_counter()
            lr = learning_rate(step, config)
            for group in optimizer.param_groups:
                group["lr"] = lr
            ids = batches(step).to(device, non_blocking=True)
            loss = torch.zeros((), device=device)
            for micro_step, part in enumerate(ids.split(config.micro_batch)):
                if config.dropout:
                    seed_dropout(config.seed, step, micro_step)
                with autocast(device, dtype):
                    logits = forward(part[:, :-1])
                share = F.cross_entropy(logits.float().flatten(0, 1), part[:, 1:].flatten()) * len(part) / len(ids)
                scaler.scale(share).backward()
                loss += share.detach()
            scaler.unscale_(optimizer)
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip or math.inf)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)
            pending.append((step, lr, loss, norm))
            bar.update()
            if step % config.log_interval == 0:
                collect()
            seconds += time.perf_counter() - tick
            if step % config.log_interval == 0 and bar.disable:
                done = step + 1
                left = (time.perf_counter() - started) / done * (config.max_steps - done)
                print(f"step {step:>6,} | loss {result['train_losses'][-1]:.4f} | lr {lr:.2e} | "
                      f"gradient norm {result['grad_norms'][-1]:.3f} | {done * config.tokens_per_step / seconds:,.0f} "
                      f"tokens/s | {int(left // 60)}:{int(left % 60):02} left", flush=True)  # fmt: skip
    metrics.close()
    result["best_val_loss"] = best_val_loss
    return result


@command
def main(argv: list[str]) -> None:
    train(load_config(argv))


if __name__ == "__main__":
    raise SystemExit(main())
