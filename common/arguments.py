"""Where the values of the settings come from: command line, config file, checkpoint.

Precedence: command line > on_cpu > config file > default. A config file is plain Python whose
public names are settings; its `on_cpu = dict(...)` applies to runs on a CPU only.
"""

import argparse
import runpy
import traceback
from dataclasses import fields
from types import ModuleType

from common import checkpoint, distributed, gpt2
from common.checkpoint import Checkpoint, SavedModel
from common.cli import Parser
from common.device import pick_device
from common.errors import UserError
from config import BOOLEANS, SETTINGS, Config, make_config, unknown
from model import GPTConfig

DEFAULT_FILE = "configs/shakespeare_char.py"
ARCHITECTURE = [field.name for field in fields(GPTConfig) if field.name in SETTINGS]


def load_config(argv: list[str]) -> tuple[Config, SavedModel | None]:
    """The settings that a command line asks for, and what the run starts from, if anything.

    argv: [config file] [--setting=value ...]. Raises UserError.
    """
    path, given, on_cpu_allowed = parse_arguments(argv)
    values, on_cpu = read_file(path)
    places = ("resume", "out_dir", "run_name", "init_from", "device")
    start = make_config({name: v for name, v in (values | given).items() if name in places})

    # an interrupted run: its own settings, overridden by the command line only
    last = start.path("last.pt")
    if start.resume or distributed.restarted() and last.exists():
        saved = checkpoint.load(last)
        changes = given | {"out_dir": start.out_dir, "run_name": start.run_name, "resume": True}
        return resumed_config(saved, changes), saved

    # another model's weights: its architecture, and everything else as in a new run
    saved = None
    if start.init_from:
        saved = gpt2.load(start.init_from)
        if clash := [name for name in ARCHITECTURE if name in given and name != "dropout"]:
            names = ", ".join(clash)
            raise UserError(f"{start.init_from} determines the architecture: drop {names}", 2)
        model = saved.settings()
        shape = {name: getattr(model, name) for name in ARCHITECTURE if name != "dropout"}
        values |= shape
        on_cpu = {name: value for name, value in on_cpu.items() if name not in shape}

    # a new run
    device, _ = pick_device(start.device)
    on_cpu = {name: value for name, value in on_cpu.items() if name not in given}
    if not on_cpu or not on_cpu_allowed or device.type != "cpu":
        return make_config(values | given), saved
    config = make_config(values | on_cpu | given)
    shown = ", ".join(f"{name}={value}" for name, value in on_cpu.items())
    print(f"on_cpu: without a GPU, {path} sets {shown} (--on_cpu=false ignores these)")
    return config, saved


def resumed_config(saved: Checkpoint, changes: dict) -> Config:
    """The settings of a run that continues from `saved`. Raises UserError if a change can't be."""
    before = saved.settings()
    config = make_config({name: getattr(before, name) for name in SETTINGS} | changes)
    changed = [name for name in SETTINGS if getattr(config, name) != getattr(before, name)]
    shown = {
        name: f"{name}={getattr(config, name)} (was {getattr(before, name)})" for name in changed
    }
    fixed = [*ARCHITECTURE, "dataset", "seed", "batch_size", "batch_order", "optimizer"]
    if refused := [shown[name] for name in changed if name in fixed]:
        listed = ", ".join(refused)
        raise UserError(f"a resumed run can't have {listed}; start a new one without --resume", 2)
    others = [shown[name] for name in changed if name not in ("out_dir", "run_name", "resume")]
    if others:
        print(f"changed for the rest of the run: {', '.join(others)}")
    return config


def parse_arguments(argv: list[str]) -> tuple[str, dict[str, str], bool]:
    """Returns the config file's path, the settings on the command line, and --on_cpu.

    The values of the settings are still text. Raises UserError that names all problems.
    """
    parser = Parser(
        prog="train.py",
        usage="train.py [config file] [--setting=value ...]",
        description=f"Trains a GPT. Without a config file: {DEFAULT_FILE}.",
    )
    parser.add_argument(
        "file",
        nargs="?",
        default=DEFAULT_FILE,
        help="Python file with what differs from the defaults",
    )
    parser.add_argument(
        "--on_cpu",
        default="true",
        metavar="true",
        help="use the config file's on_cpu block on a CPU",
    )
    group = parser.add_argument_group("settings")
    for name, setting in SETTINGS.items():
        default, text = setting.default, setting.help.replace("%", "%%")
        shown = str(default).lower() if isinstance(default, bool | None) else default
        group.add_argument(f"--{name}", default=argparse.SUPPRESS, metavar=shown, help=text)

    # `--resume --seed=2` means `--resume=true --seed=2`
    flags = {f"--{name}" for name, setting in SETTINGS.items() if setting.types == (bool,)}
    followers = [*argv[1:], ""]
    for i, argument in enumerate(argv):
        if argument in flags and followers[i].lower() not in BOOLEANS:
            argv = [*argv[:i], f"{argument}=true", *argv[i + 1 :]]

    known, others = parser.parse_known_args(argv)
    given = vars(known)
    path, on_cpu = given.pop("file"), given.pop("on_cpu").lower()
    problems = []
    if on_cpu not in BOOLEANS:
        problems.append(f"on_cpu must be true or false, not {on_cpu!r}")
    for argument in others:
        if argument.startswith("-"):
            problems.append(unknown(argument.removeprefix("--").split("=")[0]))
        elif not problems:  # else it may be the value of an unknown setting
            problems.append(f"unexpected argument {argument!r}; settings are written --name=value")
    if problems:
        raise UserError("; ".join(problems), status=2)
    return path, given, BOOLEANS[on_cpu]


def read_file(path: str) -> tuple[dict, dict]:
    """The settings in a config file, and those in its on_cpu block. Raises UserError."""
    try:
        open(path).close()  # runpy would run the __main__.py of a folder
        names = runpy.run_path(path)
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror}", status=2) from None
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [1, *(frame.lineno for frame in frames if frame.filename == path)]
        line = getattr(error, "lineno", None) or lines[-1]
        message = f"config file {path}, line {line}: {type(error).__name__}: {error}"
        raise UserError(message, status=2) from None
    values = {
        name: value
        for name, value in names.items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    on_cpu = values.pop("on_cpu", {})
    if not isinstance(on_cpu, dict):
        raise UserError(f"config file {path}: on_cpu must be a dict(...), not {on_cpu!r}", status=2)
    return values, on_cpu
