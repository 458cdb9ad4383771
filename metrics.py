"""A run's metrics: one JSON object a line in <run_name>_metrics.jsonl, and the same to Weights & Biases."""

import json
import os
from dataclasses import asdict
from pathlib import Path

from config import Config


def read(path: Path) -> list[dict]:
    """The lines of a metrics file; a last line that was cut short is left out."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


class Metrics:
    """Writes `step`, `tokens`, `seconds` (of training, without evaluation) and what was measured at that step."""

    def __init__(self, path: Path, config: Config, run_id: str, start: int):
        """Starts a new file, or goes on with an old one from step `start`, without what it has of later steps."""
        kept = [line for line in read(path) if line["step"] < start] if start and path.exists() else []
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
        os.replace(temporary, path)
        self.seconds_before = kept[-1]["seconds"] if kept else 0.0
        self.tokens_per_step = config.tokens_per_step
        self.file = open(path, "a", encoding="utf-8")
        self.wandb = start_wandb(config, run_id)

    def write(self, step: int, seconds: float, **measured: float) -> None:
        """measured: train_loss becomes "train/loss", and so on."""
        values = {name.replace("_", "/", 1): value for name, value in measured.items()}
        seconds = round(self.seconds_before + seconds, 3)
        line = {"step": step, "tokens": step * self.tokens_per_step, "seconds": seconds, **values}
        self.file.write(json.dumps(line) + "\n")
        if self.wandb:
            self.wandb.log(line)

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        if self.wandb:
            self.wandb.finish()


def start_wandb(config: Config, run_id: str):
    """The Weights & Biases run, or None where there is none; whatever is wrong with it, training goes on."""
    mode = config.wandb_mode
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "disabled")
    if mode == "disabled":
        return None
    try:
        import wandb

        if mode == "online" and not wandb.login(prompt=False):
            raise wandb.errors.UsageError("no API key: run `wandb login`, or set WANDB_API_KEY")
        run = wandb.init(
            project=config.wandb_project,
            name=f"{config.run_name}-{config.n_layers}L-{config.d_model}d",
            config=asdict(config),
            id=run_id,
            resume="allow",
            mode=mode,
            dir=config.out_dir,
            settings=wandb.Settings(init_timeout=30, silent=True),
        )
        run.define_metric("*", step_metric="step")
        return run
    except ImportError:
        print("Weights & Biases is off: not installed (pip install wandb)")
    except Exception as error:  # the network, the account, the service: never a reason to lose a run
        print(f"Weights & Biases is off: {str(error).splitlines()[0]}")
    return None
