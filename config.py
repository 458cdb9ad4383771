"""Every setting of a run, its default and its meaning.

Values come from four places, from lowest to highest precedence: the defaults below, a config file,
its on_cpu block (on a CPU only), and the command line.
common/arguments.py combines them.
"""

import difflib
import inspect
import math
import re
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from types import UnionType
from typing import Literal, Union, get_args, get_origin, get_type_hints

from common.errors import UserError
from model import GPTConfig


@dataclass(frozen=True)
class Config(GPTConfig):
    """GPTConfig's settings and those of a run; the comments are the texts of --help."""

    # data
    dataset: str = "shakespeare_char"  # folder in data/ that prepare.py made: <corpus>_<tokenizer>
    batch_order: Literal["shuffled", "random"] = "shuffled"  # shuffled: every window once an epoch
    # optimization
    batch_size: int = 64  # sequences per optimizer step, over all micro-batches and processes
    micro_batch_size: int | None = None  # sequences per forward pass; none: the whole batch
    optimizer: Literal["adamw", "muon", "normuon"] = "adamw"  # muon, normuon: blocks' matrices only
    learning_rate: float = 1e-3  # peak, reached at the end of the warmup
    min_lr: float | None = None  # learning rate at the end of the cosine; none: learning_rate / 10
    warmup_steps: int = 100  # steps over which the learning rate rises linearly to its peak
    max_steps: int = 5000  # optimizer steps
    weight_decay: float = 0.1  # for matrices only: not for embeddings, gains and biases
    confidence_penalty: float = 0.0  # minimize the loss minus this times the predictions' entropy
    momentum: float = 0.95  # decay of Muon's and NorMuon's mean gradient
    beta1: float = 0.9  # decay of AdamW's mean gradient
    beta2: float = 0.95  # decay of AdamW's mean squared gradient, and of NorMuon's squared updates
    grad_clip: float = 1.0  # clip gradients to this norm; 0: no clipping
    ema_decay: float = 0.0  # decay of a moving average of weights, to evaluate and save; 0: off
    # evaluation, logging, saving
    eval_interval: int = 250  # steps between evaluations, each with a save and a plot of the curves
    eval_tokens: int = 1_000_000  # validation tokens per evaluation; the final one uses all
    log_interval: int = 10  # steps between lines of the log
    patience: int | None = None  # stop after this many evaluations without improvement; none: never
    save_interval: int | str = "10min"  # extra saves, every N steps or minutes (10min); 0: none
    sample_interval: int = 500  # steps between samples; 0: only at the end
    out_dir: str = "out"  # folder for checkpoints, metrics and curves
    run_name: str = "run"  # prefix of the run's files: <out_dir>/<run_name>_best.pt, ...
    resume: bool = False  # continue the run of this name from its _last.pt, with its settings
    init_from: str | None = None  # checkpoint (or gpt2) whose weights a new run starts from
    wandb_mode: Literal["auto", "disabled", "offline", "online"] = "auto"  # auto: see WANDB_MODE
    wandb_project: str | None = None  # W&B project; none: WANDB_PROJECT or llm-to-vla-capstone
    wandb_log_model: bool = False  # upload the best checkpoint as an artifact when the run ends
    # machine
    seed: int = 1337  # seed of the initial weights, the order of batches, dropout and samples
    device: str = "auto"  # cpu, cuda, cuda:1, mps; auto: the fastest available
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"  # precision of the matmuls
    compile: bool | Literal["auto"] = "auto"  # auto: long runs only; false: no CUDA graph either

    def problems(self) -> list[str]:
        found = super().problems()
        at_least_1 = ("batch_size", "micro_batch_size", "max_steps", "patience")
        at_least_1 += ("eval_interval", "eval_tokens", "log_interval")
        at_least_0 = ("weight_decay", "confidence_penalty", "grad_clip", "min_lr")
        at_least_0 += ("warmup_steps", "sample_interval", "seed")
        for least, names in ((1, at_least_1), (0, at_least_0)):
            for name in names:
                value = getattr(self, name)
                if value is not None and not least <= value < math.inf:
                    found.append(f"{name} must be at least {least}, not {value}")
        for name in ("momentum", "beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                found.append(f"{name} must lie in [0, 1), not {getattr(self, name)}")
        for name, value in vars(self).items():
            if isinstance(value, int) and value >= 2**63:
                found.append(f"{name} must be below 2^63, not {value}")
        if not 0 < self.learning_rate < math.inf:
            found.append(f"learning_rate must be above 0 and finite, not {self.learning_rate}")
        elif self.final_lr > self.learning_rate:
            found.append(
                f"min_lr ({self.min_lr}) must not be above learning_rate ({self.learning_rate})"
            )
        if 1 <= self.max_steps < self.warmup_steps:
            found.append(
                f"warmup_steps ({self.warmup_steps}) must not be above max_steps ({self.max_steps})"
            )
        if self.micro_batch_size and self.batch_size % self.micro_batch_size:
            found.append(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size"
                f" ({self.micro_batch_size})"
            )
        if not re.fullmatch(r"\d+|\d+(\.\d+)?min", str(self.save_interval)):
            found.append(
                "save_interval must be steps or minutes, such as 500 or 10min,"
                f" not {self.save_interval!r}"
            )
        if re.search(r"[/\\]", self.dataset):
            found.append(f"dataset must be the name of a folder in data/, not {self.dataset!r}")
        if not re.fullmatch(r"[^/\\\0\ud800-\udfff]+", self.run_name):
            found.append(f"run_name must be valid UTF-8 without slashes, not {self.run_name!r}")
        try:
            Path(self.out_dir).expanduser()
        except RuntimeError:
            found.append(f"out_dir {self.out_dir!r} names an unknown user")
        return found

    @property
    def folder(self) -> Path:
        """Where this run's files are: out_dir, with a ~ expanded."""
        return Path(self.out_dir).expanduser()

    def path(self, ending: str) -> Path:
        """A file of this run, such as out/capstone_best.pt for "best.pt"."""
        return self.folder / f"{self.run_name}_{ending}"

    @property
    def final_lr(self) -> float:
        return self.learning_rate / 10 if self.min_lr is None else self.min_lr

    @property
    def tokens_per_step(self) -> int:
        return self.batch_size * self.block_size


# -------------------------------------------------------------------------------------------------
# settings by name


@dataclass(frozen=True)
class Setting:
    name: str
    types: tuple  # of its values; a Literal stands for the values it lists
    default: object
    help: str
    choices: list


def read_settings() -> dict[str, Setting]:
    """All settings in the order of the source, each with its trailing comment as its help.

    vocab_size is not a setting: it comes from the dataset.
    """
    source = inspect.getsource(GPTConfig) + inspect.getsource(Config)
    comments = dict(re.findall(r"^    (\w+): .*?  # (.*)$", source, flags=re.MULTILINE))
    hints = get_type_hints(Config)
    settings = {}
    for field in fields(Config):
        if field.name == "vocab_size":
            continue
        if field.name not in comments:
            raise TypeError(f"the setting {field.name} needs a comment after it, on the same line")
        hint, text = hints[field.name], comments[field.name]
        union = get_origin(hint) in (UnionType, Union)
        kinds = get_args(hint) if union else (hint,)
        choices = [c for kind in kinds if get_origin(kind) is Literal for c in get_args(kind)]
        if len(choices) > 1:
            text += f" ({', '.join(choices)})"
        settings[field.name] = Setting(field.name, kinds, field.default, text, choices)
    return settings


SETTINGS = read_settings()
NAMES_ELSEWHERE = {  # in nanoGPT and transformers
    "lr": "learning_rate",
    "wd": "weight_decay",
    "bs": "batch_size",
    "n_ctx": "block_size",
    "iters": "max_steps",
    "n_embd": "d_model",
    "hidden_size": "d_model",
    "max_iters": "max_steps",
    "epochs": "max_steps",
    "lr_decay_iters": "max_steps",
    "warmup_iters": "warmup_steps",
    "min_learning_rate": "min_lr",
    "gradient_accumulation_steps": "micro_batch_size",
    "eval_iters": "eval_tokens",
    "decay_lr": "min_lr",
    "wandb_log": "wandb_mode",
    "wandb_run_name": "run_name",
}
BOOLEANS = {"true": True, "false": False}


def convert(setting: Setting, value: object) -> object:
    """Returns value, text from a command line or a value from a config file, as the setting's type.

    Raises ValueError.
    """
    kinds, text = setting.types, value.lower() if isinstance(value, str) else None
    if type(None) in kinds and (value is None or text == "none"):
        return None
    if isinstance(value, str | bool) and value in setting.choices:
        return value
    if str(value).lower() in setting.choices:  # None for "none", "RMSNorm" for "rmsnorm"
        return str(value).lower()
    if bool in kinds and (isinstance(value, bool) or text in BOOLEANS):
        return BOOLEANS.get(text, value)
    if not isinstance(value, bool) and (int in kinds or float in kinds):
        with suppress(ValueError, TypeError, OverflowError):
            number = float(value)
            if float in kinds:
                return number
            if number.is_integer():  # 1e3 is a whole number too
                # exact: a float has only 53 bits
                return int(value) if str(value).isdigit() else int(number)
    if str in kinds and text:
        return value
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    wanted = [*setting.choices, *(names[kind] for kind in kinds if kind in names)]
    wanted += ["none"] if type(None) in kinds else []
    raise ValueError(f"{setting.name} must be {' or '.join(map(str, wanted))}, not {value!r}")


def intended(name: str) -> str | None:
    """The setting that an unknown name was probably meant to be."""
    name = str(name).lower()  # a key of a config file's on_cpu can be anything
    near = difflib.get_close_matches(name, [*SETTINGS, "on_cpu"], n=1, cutoff=0.7)
    return NAMES_ELSEWHERE.get(name) or (near[0] if near else None)


def unknown_setting(name: str) -> str:
    """The error message for a name that is not a setting."""
    if name == "vocab_size":
        return "vocab_size comes from the dataset and can't be set"
    meant = intended(name)
    hint = "python train.py --help lists them all"
    if meant not in (None, name):
        hint = f"did you mean {meant}?"
    return f"unknown setting {name}: {hint}"


def make_config(values: dict) -> Config:
    """A Config of these settings. Raises one UserError that names everything wrong with them."""
    problems, converted = [], {}
    for name, value in values.items():
        if name not in SETTINGS:
            problems.append(unknown_setting(name))
            continue
        try:
            converted[name] = convert(SETTINGS[name], value)
        except ValueError as error:
            problems.append(str(error))
    try:
        config = Config(**converted)
    except ValueError as error:
        # settings that could not be converted have their defaults here: drop what it says of them
        wrong = values.keys() - converted.keys()
        lines = str(error).splitlines()
        problems += [line for line in lines if not wrong & set(re.findall(r"\w+", line))]
    if problems:
        raise UserError("; ".join(problems), status=2)
    return config
