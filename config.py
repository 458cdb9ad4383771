"""Every setting with its default and its meaning, and where its value comes from.

Precedence: command line > on_cpu > config file > default. A config file is plain Python whose public names are
settings; `on_cpu = dict(...)` in it holds what differs when the device is the CPU.
"""

import argparse
import difflib
import inspect
import re
import runpy
import traceback
import types
import typing
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import checkpoint
import distributed
import pretrained
from cli import Parser, UserError
from device import pick_device
from model import GPTConfig

DEFAULT_FILE = "configs/shakespeare_char.py"
RUN = ("out_dir", "run_name")  # what names a run's files
SCHEDULE = ("learning_rate", "min_lr", "warmup_steps", "max_steps")  # of the learning rate
BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True)
class Config(GPTConfig):
    """Every setting of a run. The comment behind each is its text in --help."""

    # data
    dataset: str = "shakespeare_char"  # folder in data/ that prepare.py made: <corpus>_<tokenizer>
    batch_order: Literal["shuffled", "random"] = "shuffled"  # each window once an epoch, or windows drawn at random
    # optimization
    batch_size: int = 64  # sequences in one optimizer step, over all micro-batches and processes
    micro_batch_size: int | None = None  # sequences that go through the model at once; none: a process's whole share
    optimizer: Literal["adamw", "muon"] = "adamw"  # muon: Muon for the matrices inside the blocks, AdamW for the rest
    learning_rate: float = 1e-3  # peak, reached at the end of the warmup
    min_lr: float | None = None  # where the cosine ends; none: learning_rate / 10
    warmup_steps: int = 100  # steps of linear rise from 0 to learning_rate
    max_steps: int = 5000  # optimizer updates in the run
    weight_decay: float = 0.1  # on matrices only: not on embeddings, gains and biases
    beta1: float = 0.9  # AdamW's momentum
    beta2: float = 0.95  # AdamW's memory of squared gradients
    grad_clip: float = 1.0  # longest gradient norm that is let through; 0: any
    ema_decay: float = 0.0  # of a moving average of the weights, which is then what is evaluated and saved; 0: none
    # evaluation, logging, saving
    eval_interval: int = 250  # steps between evaluations; each one saves, and redraws the curves
    eval_tokens: int = 1_000_000  # largest part of the validation split that is used before the end of the run
    log_interval: int = 10  # steps between lines of the log
    patience: int | None = None  # evaluations without a better loss after which the run ends; none: any number
    save_interval: int | str = "10min"  # steps, or minutes, between saves beside those of evaluations; 0: none
    sample_interval: int = 500  # steps between samples; 0: only at the end
    out_dir: str = "out"  # where checkpoints, metrics and curves go
    run_name: str = "run"  # their names: <out_dir>/<run_name>_best.pt, ...
    resume: bool = False  # go on with the run of this name, from its _last.pt and with its settings
    init_from: str | None = None  # checkpoint, or gpt2, whose weights and architecture a new run starts from
    wandb_mode: Literal["auto", "disabled", "offline", "online"] = "auto"  # auto: the variable WANDB_MODE, or disabled
    wandb_project: str = "llm-to-vla-capstone"  # project in Weights & Biases
    wandb_log_model: bool = False  # at the end, also keep the best checkpoint there, as an artifact
    # machine
    seed: int = 1337  # of the weights, the order of the batches, dropout and samples
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest at hand
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # of matrix products; auto: what is fast here
    compile: bool | Literal["auto"] = "auto"  # torch.compile; auto: on CUDA, and in long runs on a CPU

    def problems(self) -> list[str]:
        found = super().problems()
        counts = (
            "batch_size",
            "micro_batch_size",
            "max_steps",
            "eval_interval",
            "eval_tokens",
            "log_interval",
            "patience",
        )
        for name in counts:
            if (value := getattr(self, name)) is not None and value < 1:
                found.append(f"{name} must be at least 1, not {value}")
        for name in ("warmup_steps", "weight_decay", "grad_clip", "sample_interval", "min_lr", "seed"):
            if (value := getattr(self, name)) is not None and not 0 <= value < float("inf"):
                found.append(f"{name} must be at least 0, not {value}")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value >= 2**63:
                found.append(f"{name} must be below 2^63, not {value}")
        if not 0 < self.learning_rate < float("inf"):
            found.append(f"learning_rate must be above 0, not {self.learning_rate}")
        elif self.final_lr > self.learning_rate:
            found.append(f"min_lr ({self.min_lr}) must not be above learning_rate ({self.learning_rate})")
        if self.warmup_steps > self.max_steps:
            found.append(f"warmup_steps ({self.warmup_steps}) must not be above max_steps ({self.max_steps})")
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            found.append(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size ({self.micro_batch_size})"
            )
        if not re.fullmatch(r"\d+|\d+(\.\d+)?min", str(self.save_interval)):
            found.append(f"save_interval must be steps or minutes, such as 500 or 10min, not {self.save_interval!r}")
        if not re.fullmatch(r"[^/\\\0]+", self.run_name):
            found.append(f"run_name must be a plain name without slashes, not {self.run_name!r}")
        return found

    def path(self, ending: str) -> Path:
        """A file of this run, such as out/capstone_best.pt for "best.pt"."""
        return Path(self.out_dir) / f"{self.run_name}_{ending}"

    @property
    def final_lr(self) -> float:
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr

    def save_due(self, step: int, seconds: float) -> bool:
        """Whether save_interval asks for a save at this step, `seconds` after the last one."""
        number, in_minutes = str(self.save_interval).removesuffix("min"), str(self.save_interval).endswith("min")
        if in_minutes:
            return 0 < 60 * float(number) <= seconds
        return int(number) > 0 and step % int(number) == 0

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size


@dataclass(frozen=True)
class Setting:
    name: str
    type: object
    default: object
    help: str


def read_settings() -> dict[str, Setting]:
    """The settings in the order of the source, each with the comment that stands behind it there."""
    source = inspect.getsource(GPTConfig) + inspect.getsource(Config)
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, flags=re.MULTILINE))
    hints = typing.get_type_hints(Config)
    settings = {}
    for field in fields(Config):
        choices = [str(choice).lower() for option in options_of(hints[field.name]) for choice in choices_of(option)]
        listed = f" ({', '.join(choices)})" if len(choices) > 1 else ""
        settings[field.name] = Setting(field.name, hints[field.name], field.default, comments[field.name] + listed)
    return settings


def options_of(hint: object) -> tuple:
    """The types of a union; any other type is its own only option."""
    return typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else (hint,)


def choices_of(option: object) -> tuple:
    """The values that a Literal allows."""
    return typing.get_args(option) if typing.get_origin(option) is Literal else ()


SETTINGS = read_settings()


def convert(setting: Setting, value: object) -> object:
    """value as the setting's type: text from a command line, or a value from a config file. Raises ValueError."""
    options = options_of(setting.type)
    choices = [choice for option in options for choice in choices_of(option)]
    text = isinstance(value, str)
    if type(None) in options and (value is None or text and value.lower() == "none"):
        return None
    if value in choices:
        return value
    if bool in options and (isinstance(value, bool) or text and value.lower() in BOOLEANS):
        return BOOLEANS[value.lower()] if text else value
    if not isinstance(value, bool) and (int in options or float in options):
        try:
            number = float(value)
        except (ValueError, TypeError, OverflowError):
            pass
        else:
            if float in options:
                return number
            if number.is_integer():  # 1e3 is a whole number too
                return int(value) if str(value).isdigit() else int(number)
    if str in options and text:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "none"}
    wanted = choices + [names[option] for option in options if option in names]
    raise ValueError(f"{setting.name} must be {' or '.join(map(str, wanted))}, not {value!r}")


def nearest(name: str) -> str:
    """A hint at the setting that was meant."""
    found = difflib.get_close_matches(str(name).lower(), SETTINGS, n=1)
    return f"did you mean {found[0]}?" if found else "python train.py --help lists all"


def read_file(path: str) -> tuple[dict, dict]:
    """The settings of a config file, and of its on_cpu block, as they stand there."""
    try:
        open(path).close()  # of a folder, runpy would run its __main__.py
        names = runpy.run_path(path)
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror}", status=2) from None
    except (Exception, SystemExit) as error:
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
        line = getattr(error, "lineno", None) or (lines or [1])[-1]
        raise UserError(f"config file {path}, line {line}: {type(error).__name__}: {error}", status=2) from None
    values = {k: v for k, v in names.items() if not k.startswith("_") and not isinstance(v, types.ModuleType)}
    on_cpu = values.pop("on_cpu", {})
    if not isinstance(on_cpu, dict):
        raise UserError(f"config file {path}: on_cpu must be a dict(...), not {on_cpu!r}", status=2)
    return values, on_cpu


def parse_arguments(argv: list[str]) -> tuple[str, dict, bool]:
    """The config file's path, the settings given on the command line as text, and whether on_cpu may apply."""
    parser = Parser(
        prog="train.py",
        usage="train.py [config file] [--setting=value ...]",
        description=f"Trains a GPT. Without a config file: {DEFAULT_FILE}.",
    )
    parser.add_argument(
        "file", nargs="?", default=DEFAULT_FILE, help="a Python file that sets what differs from the defaults"
    )
    parser.add_argument(
        "--on_cpu", default="true", metavar="true", help="whether the config file's on_cpu block applies on a CPU"
    )
    group = parser.add_argument_group("settings")
    for setting in SETTINGS.values():
        if setting.name != "vocab_size":
            default = str(setting.default).lower() if isinstance(setting.default, bool | None) else setting.default
            group.add_argument(
                f"--{setting.name}",
                default=argparse.SUPPRESS,
                metavar=default,
                help=setting.help.replace("%", "%%"),
            )
    flags = {f"--{setting.name}" for setting in SETTINGS.values() if setting.type is bool}
    pairs = zip(argv, [*argv[1:], ""])  # a flag's value may be left out: what follows it need not be one
    argv = [f"{a}=true" if a in flags and b.lower() not in BOOLEANS else a for a, b in pairs]
    given, unknown = parser.parse_known_args(argv)
    values = vars(given)
    file, on_cpu = values.pop("file"), values.pop("on_cpu").lower()
    problems = [f"on_cpu must be true or false, not {on_cpu!r}"] if on_cpu not in BOOLEANS else []
    for argument in unknown:
        name = argument.removeprefix("--").split("=")[0]
        if name == "vocab_size":
            problems.append("vocab_size comes from the dataset and can't be set")
        elif argument.startswith("-"):
            problems.append(f"there is no setting {name}: {nearest(name)}")
        elif not problems:
            problems.append(f"don't know what to do with {argument!r}: settings are written --name=value")
    if problems:
        raise UserError("; ".join(problems), status=2)
    return file, values, BOOLEANS[on_cpu]


def make_config(values: dict) -> Config:
    """A Config of these settings, or one UserError that names everything that is wrong with them."""
    problems, good = [], {}
    for name, value in values.items():
        if name == "vocab_size":
            problems.append("vocab_size comes from the dataset and can't be set")
        elif name not in SETTINGS:
            problems.append(f"there is no setting {name}: {nearest(name)}")
        else:
            try:
                good[name] = convert(SETTINGS[name], value)
            except ValueError as error:
                problems.append(str(error))
    try:
        config = Config(**good)
    except ValueError as error:
        problems += str(error).splitlines()
    if problems:
        raise UserError("; ".join(problems), status=2)
    return config


def load_config(argv: list[str]) -> Config:
    """The Config of a command line: [config file] [--setting=value ...]. Raises UserError."""
    file, given, use_on_cpu = parse_arguments(argv)
    values, on_cpu = read_file(file)
    both = values | given
    resume = str(both.get("resume")).lower() == "true"
    [restarted] = distributed.any_process(distributed.restarts() > 0)  # torchrun counts on each machine by itself
    if resume or restarted:
        run = make_config({name: both[name] for name in RUN if name in both})
        if resume or run.path("last.pt").exists():
            return resumed_config(run, given)
    if (path := str(both.get("init_from"))).lower() != "none":
        architecture = architecture_of(path)
        if clash := sorted(architecture.keys() & given.keys()):
            raise UserError(f"the architecture is that of {path}: leave out {', '.join(clash)}", status=2)
        values, on_cpu = values | architecture, {k: v for k, v in on_cpu.items() if k not in architecture}
    device, _ = pick_device(str((values | given).get("device", Config.device)))
    changes = {name: value for name, value in on_cpu.items() if name not in given}
    if not use_on_cpu or device.type != "cpu" or not changes:
        return make_config(values | given)
    config = make_config(values | on_cpu | given)
    shown = ", ".join(f"{name}={value}" for name, value in changes.items())
    print(f"on_cpu: on the CPU {file} sets {shown} (--on_cpu=false leaves this out)")
    return config


def architecture_of(path: str) -> dict:
    """The settings of a checkpoint, or of GPT-2, that decide which weights there are. Raises UserError."""
    saved = pretrained.load(path)["config"]
    return {
        f.name: saved[f.name] for f in fields(GPTConfig) if f.name in saved and f.name not in ("vocab_size", "dropout")
    }


def saved_settings(state: dict) -> dict:
    """The settings of the run that a checkpoint is of."""
    return {name: value for name, value in state["config"].items() if name in SETTINGS and name != "vocab_size"}


def resumed_config(run: Config, given: dict) -> Config:
    """The config of the checkpoint that is resumed, changed by what is given on the command line alone.

    run: has the names of the run's files.
    """
    saved = saved_settings(checkpoint.load(run.path("last.pt")))
    new = make_config(saved | given | {"out_dir": run.out_dir, "run_name": run.run_name, "resume": True})
    fixed = [*(f.name for f in fields(GPTConfig)), "dataset", "seed", "batch_size", "batch_order", "optimizer"]
    changed = [name for name in fixed if name in saved and getattr(new, name) != saved[name]]
    if changed:
        shown = ", ".join(f"{name} (it was {saved[name]})" for name in changed)
        raise UserError(f"a resumed run can't change {shown}; start a new one without --resume", status=2)
    if changed := [name for name in SCHEDULE if name in saved and getattr(new, name) != saved[name]]:
        shown = ", ".join(f"{name}={getattr(new, name)} (it was {saved[name]})" for name in changed)
        print(f"changed schedule: {shown}; the learning rate goes on as if it had always been this one")
    return new
