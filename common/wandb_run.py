"""Logging to Weights & Biases."""

import functools
import os
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import ModuleType

from common.cli import quote
from common.errors import one_line
from config import Config

PROJECT = "llm-to-vla-capstone"
LOGIN_TIMEOUT = 60  # seconds that wandb waits for an API key to be typed


def harmless(method):
    """Makes a method of WandbRun return at once if logging is disabled, and catch all errors.

    The network, the account or the service must not end a training run.
    """

    @functools.wraps(method)
    def call(self, *args):
        if self.run is None:
            return
        try:
            method(self, *args)
        except Exception as error:
            print(f"Weights & Biases is disabled for the rest of the run: {one_line(error)}")
            run, self.run = self.run, None
            with suppress(Exception):
                run.finish(exit_code=1)
            self.print_upload_command()

    return call


class WandbRun:
    """A run in Weights & Biases, if wandb_mode or the variables of the environment ask for one.

    Offline, each part of a resumed run gets its own id, and a group ties the parts together. If two
    parts shared an id, `wandb sync` of the second would replace the first.
    """

    def __init__(self, config: Config, run_id: str):
        self.run, self.samples = None, []
        self.run_id, self.folder = run_id, config.folder / "wandb"
        mode = config.wandb_mode if config.wandb_mode != "auto" else mode_of_environment()
        if mode == "disabled":
            if config.wandb_mode == "auto" and (config.wandb_project or config.wandb_log_model):
                print("note: Weights & Biases is off; --wandb_mode=online or offline turns it on")
            return
        if mode not in ("offline", "online"):
            print(f"Weights & Biases is disabled: WANDB_MODE={mode} is not online or offline")
            return
        try:
            self.run = start(config, run_id, mode, self.folder)
        except ImportError as error:
            print(f"Weights & Biases is disabled: {one_line(error)} (pip install wandb)")
        except Exception as error:  # the network, the account, the service
            print(f"Weights & Biases is disabled: {one_line(error)}")

    @harmless
    def log(self, values: dict) -> None:
        """values: numbers by name, with the `step` they belong to."""
        self.run.log(values)

    @harmless
    def log_sample(self, step: int, text: str) -> None:
        """Logs the table of all samples so far, with this one."""
        import wandb

        self.samples.append([step, text])
        self.run.log({"step": step, "samples": wandb.Table(["step", "text"], self.samples)})

    @harmless
    def log_files(self, step: int, curves: Path | None, best: Path | None) -> None:
        """Logs the figure of the curves, and the best checkpoint as an artifact."""
        import wandb

        if curves:
            self.run.log({"step": step, "curves": wandb.Image(str(curves))})
        if best:
            self.run.log_artifact(str(best), name=f"{self.run_id}-best", type="model")

    @harmless
    def finish(self, exit_code: int) -> None:
        self.run.finish(exit_code=exit_code)
        self.print_upload_command()

    def print_upload_command(self) -> None:
        """Prints the command that uploads all parts of the run that were offline, if any."""
        if parts := sorted(map(str, self.folder.glob(f"offline-run-*-{self.run_id}-*"))):
            print("upload to Weights & Biases: wandb sync", *map(quote, parts))


def mode_of_environment() -> str:
    """The mode that WANDB_DISABLED and WANDB_MODE ask for."""
    if os.environ.get("WANDB_DISABLED", "").lower() in ("true", "1", "yes", "y", "on", "t"):
        return "disabled"
    mode = os.environ.get("WANDB_MODE") or "disabled"
    return "offline" if mode == "dryrun" else mode  # its old name


def log_in(wandb: ModuleType) -> None:
    """Logs in to Weights & Biases. Raises ValueError if no API key is set."""
    before = os.environ.get("WANDB_MODE")
    os.environ["WANDB_MODE"] = "online"  # login() would obey another mode
    try:
        if not wandb.login(timeout=LOGIN_TIMEOUT):
            raise ValueError("no API key found: run `wandb login` or set WANDB_API_KEY")
    finally:
        del os.environ["WANDB_MODE"]
        if before is not None:
            os.environ["WANDB_MODE"] = before


def start(config: Config, run_id: str, mode: str, folder: Path):
    """Starts a run in W&B, or continues it; returns wandb's Run."""
    # if the home folder is read-only, its service would log to the terminal
    os.environ.setdefault("WANDB_CACHE_DIR", str(folder.absolute() / "cache"))
    os.environ.setdefault("WANDB_DATA_DIR", str(folder.absolute() / "data"))
    import wandb

    if mode == "online":
        log_in(wandb)
    run = wandb.init(
        project=config.wandb_project or os.environ.get("WANDB_PROJECT") or PROJECT,
        name=f"{config.run_name}-{config.n_layers}L-{config.d_model}d",
        config=asdict(config),
        id=run_id if mode == "online" else f"{run_id}-{uuid.uuid4().hex[:8]}",
        group=run_id,
        resume="allow" if mode == "online" else None,
        mode=mode,
        dir=folder.parent.absolute(),  # its service has its own working directory
        settings=wandb.Settings(init_timeout=30, silent=True),
    )
    run.define_metric("*", step_metric="step")
    if mode == "online":
        print(f"Weights & Biases: {run.url}")
    return run
