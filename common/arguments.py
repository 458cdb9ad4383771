"""Where the values of the settings come from: command line, config file, checkpoint.

Precedence: command line > on_cpu > config file > default. A config file is plain Python whose
public names are settings; its `on_cpu = dict(...)` applies to runs on a CPU only.
"""

import argparse
import ast
import difflib
import runpy
import textwrap
import traceback
from collections import defaultdict
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from types import ModuleType

from common import checkpoint, distributed
from common.checkpoint import Checkpoint, SavedModel
from common.cli import Parser
from common.device import pick_device
from common.errors import UserError
from common.files import ROOT
from common.gpt2 import load_model
from config import BOOLEANS, SETTINGS, Config, convert, intended, make_config, unknown_setting
from model import GPTConfig

DEFAULT_FILE = "configs/shakespeare_char.py"
ARCHITECTURE = [field.name for field in fields(GPTConfig) if field.name in SETTINGS]
# what a checkpoint's weights determine: all but dropout
SHAPE = [name for name in ARCHITECTURE if name != "dropout"]
# what a resumed run can't change
FIXED = [*ARCHITECTURE, "dataset", "seed", "batch_size", "batch_order", "optimizer", "init_from"]
SET_BY_INIT_FROM = [*SHAPE, "learning_rate", "min_lr", "weight_decay"]
WHICH_RUN = ("resume", "out_dir", "run_name")
# what decides where the other settings come from; an on_cpu block can't set it
SOURCES = (*WHICH_RUN, "init_from", "device")
FINE_TUNING_DIVISOR = 10  # of the learning rate of training from scratch
INDENT = " " * 9
NO_STATEMENTS = (ast.Compare, ast.Dict, ast.Set, ast.Tuple)  # alone on a line, they do nothing


def load_config(argv: list[str]) -> tuple[Config, SavedModel | None]:
    """The settings that a command line asks for, and what the run starts from, if anything.

    argv: [config file] [--setting=value ...]. Prints which file and block the settings come from.
    Raises UserError.
    """
    file, given, on_cpu_allowed = parse_arguments(argv)
    path, values, on_cpu = file or DEFAULT_FILE, {}, {}
    try:
        path = find_file(path)
        values, on_cpu = read_file(path)
    except UserError:
        resumes = BOOLEANS.get(given.get("resume", "").lower())
        if file or not resumes or "run_name" not in given:
            raise  # else the run has its settings: it does not need the default file
    early = make_config({name: v for name, v in (values | given).items() if name in SOURCES})
    device, _ = pick_device(early.device)
    if not on_cpu_allowed or device.type != "cpu":
        on_cpu = {}
    chosen_for_fine_tuning = {*given, *([*values, *on_cpu] if fine_tunes(values) else [])}

    # an interrupted run: its own settings, overridden by the command line only
    last = early.path("last.pt")
    if early.resume:
        saved = checkpoint.load(last)
        changes = given | {"out_dir": early.out_dir, "run_name": early.run_name, "resume": True}
        config = resumed_config(saved, changes)
        if file or values.get("run_name") == early.run_name:
            report_unused(path, values, on_cpu, given, config)
        return config, saved

    # another model's weights: its architecture, and a learning rate for fine-tuning
    print(f"config   {path}")
    saved = None
    if early.init_from:
        saved = load_model(early.init_from)
        if clash := [name for name in SHAPE if name in given]:
            problem = f"{early.init_from} determines the architecture: drop {', '.join(clash)}"
            raise UserError(problem, status=2)
        model = saved.settings()
        shape = {name: getattr(model, name) for name in SHAPE}
        if changes := {n: v for n, v in shape.items() if n in values and values[n] != v}:
            report(f"model    {early.init_from} determines the architecture:", changes, values)
        values |= shape
        on_cpu = {name: value for name, value in on_cpu.items() if name not in SHAPE}

    # a new run
    on_cpu = {name: value for name, value in on_cpu.items() if name not in given}
    if on_cpu:
        title = "on_cpu   on a CPU, the config's on_cpu block applies (--on_cpu=false ignores it):"
        report(title, on_cpu, values)
    values |= on_cpu
    values |= shorter_warmup(values | given, given)
    config = make_config(values | given)
    if early.init_from:
        config = make_config(values | given | fine_tuning(config, chosen_for_fine_tuning))

    # torchrun has restarted the processes: go on with this run, but not with another of its name
    if distributed.restarted() and last.exists():
        begun = checkpoint.load(last)
        if replace(begun.settings(), vocab_size=None, resume=False) == config:
            return replace(config, resume=True), begun
    return config, saved


def fine_tunes(values: dict) -> bool:
    """Whether a config file starts from another model's weights: then its values are for that."""
    return str(values.get("init_from")).lower() != "none"


def report(title: str, changes: dict, values: dict) -> None:
    """Prints changes of settings, and which values of the config file they override."""
    listed = []
    for name, value in changes.items():
        overridden = name in values and values[name] != value
        listed.append(f"{name}={value}" + (f" instead of {values[name]}" if overridden else ""))
    print(title)
    print(textwrap.fill(", ".join(listed), 98, initial_indent=INDENT, subsequent_indent=INDENT))


def report_unused(path: str, values: dict, on_cpu: dict, given: dict, config: Config) -> None:
    """Prints which settings of a config file differ from those of a run that is resumed."""
    unused, set_by_init_from = {}, ()
    if config.init_from:
        set_by_init_from = SHAPE if fine_tunes(values) else SET_BY_INIT_FROM
    for name in SETTINGS:
        in_file = [block[name] for block in (values, on_cpu) if name in block]
        with suppress(ValueError):
            in_file = [convert(SETTINGS[name], value) for value in in_file]
        value = getattr(config, name)
        expected = name in given or name in WHICH_RUN or name in set_by_init_from
        if in_file and value not in in_file and not expected:
            unused[name] = f"{name}={in_file[-1]} (the run has {value})"
    if unused:
        listed = ", ".join(unused.values())
        print(f"the run keeps its own settings, so these of {path} are not used: {listed}")
    if free := [name for name in unused if name not in FIXED]:
        print(f"to change {', '.join(free)}, use the command line")
    if fixed := [name for name in unused if name in FIXED]:
        print(f"{', '.join(fixed)} can be changed in a new run only")


def shorter_warmup(values: dict, given: dict) -> dict:
    """A warmup that fits into the run, if the one in `values` does not and was not `given`."""
    if "warmup_steps" in given:
        return {}
    try:
        names = ("warmup_steps", "max_steps")
        warmup, steps = (
            convert(SETTINGS[name], values.get(name, SETTINGS[name].default)) for name in names
        )
    except ValueError:  # make_config reports it
        return {}
    if warmup <= steps or steps < 1:
        return {}
    print(f"warmup   {steps // 10} steps instead of {warmup}, because the run has only {steps}")
    return {"warmup_steps": steps // 10}


def fine_tuning(config: Config, chosen: set[str]) -> dict:
    """Cautious values for settings that were not chosen for fine-tuning: lower learning rates, and
    at most the default weight decay, so that the model forgets little.
    """
    changes = {}
    if "learning_rate" not in chosen:
        changes["learning_rate"] = config.learning_rate / FINE_TUNING_DIVISOR
        if config.min_lr and "min_lr" not in chosen:
            changes["min_lr"] = config.min_lr / FINE_TUNING_DIVISOR
        elif config.min_lr and config.min_lr > changes["learning_rate"]:
            raise UserError(
                f"min_lr={config.min_lr:g} is above the learning rate for fine-tuning,"
                f" {changes['learning_rate']:g}: set --learning_rate too",
                status=2,
            )
    if "weight_decay" not in chosen and config.weight_decay > Config.weight_decay:
        changes["weight_decay"] = Config.weight_decay
    if changes:
        listed = [
            f"{n}={value:g} instead of {getattr(config, n):g}" for n, value in changes.items()
        ]
        print(f"tuning   {', '.join(listed)} (the command line overrides)")
    return changes


def resumed_config(saved: Checkpoint, changes: dict) -> Config:
    """The settings of a run that continues from `saved`. Raises UserError if one is not allowed."""
    before = saved.settings()
    config = make_config({name: getattr(before, name) for name in SETTINGS} | changes)
    changed = [name for name in SETTINGS if getattr(config, name) != getattr(before, name)]
    texts = {
        name: f"{name}={getattr(config, name)} (was {getattr(before, name)})" for name in changed
    }
    if refused := [texts[name] for name in changed if name in FIXED]:
        problem = f"a resumed run can't have {', '.join(refused)}; start a new one without --resume"
        raise UserError(problem, status=2)
    others = [texts[name] for name in changed if name not in WHICH_RUN]
    if others:
        print(f"changed for the rest of the run: {', '.join(others)}")
    return config


def parse_arguments(argv: list[str]) -> tuple[str | None, dict[str, str], bool]:
    """Returns the config file's path if one is given, the settings, and whether on_cpu may apply.

    The values of the settings are still text. Raises UserError that names all problems.
    """
    parser = Parser(
        prog="train.py",
        usage="train.py [config file] [--setting=value ...]",
        description=f"Trains a GPT. Without a config file: {DEFAULT_FILE}.",
    )
    parser.add_argument("file", nargs="?", help="Python file with what differs from the defaults")
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
    argv = [
        f"{argument}=true" if argument in flags and after.lower() not in BOOLEANS else argument
        for argument, after in zip(argv, [*argv[1:], ""])
    ]

    known, others = parser.parse_known_args(argv)
    given = vars(known)
    path, on_cpu = given.pop("file"), given.pop("on_cpu").lower()
    problems = []
    if "=" in given.values():
        problems.append("settings are written --name=value, without spaces")
    if on_cpu not in BOOLEANS:
        problems.append(f"on_cpu must be true or false, not {on_cpu!r}")
    for argument in others:
        if argument.startswith("--config"):
            problems.append("the config file is given by its path alone, without --config")
        elif argument.startswith("-"):
            problems.append(unknown_setting(argument.removeprefix("--").split("=")[0]))
        elif not problems:  # else it may be the value of an unknown setting
            problems.append(f"unexpected argument {argument!r}; settings are written --name=value")
    if problems:
        raise UserError("; ".join(problems), status=2)
    return path, given, BOOLEANS[on_cpu]


def find_file(path: str) -> str:
    """The path of a config file in the current folder or the project's. Raises UserError."""
    if Path(path).exists():
        return path
    if (ROOT / path).exists():
        return str(ROOT / path)
    if "=" in path:
        raise UserError(f"{path}: settings are written --name=value", status=2)
    files = sorted((ROOT / "configs").glob("*.py"))
    configs = {file.stem: f"configs/{file.name}" for file in files}
    near = [configs[name] for name in difflib.get_close_matches(Path(path).stem, configs, n=1)]
    if Path(f"{path}.py").exists():
        near = [f"{path}.py"]
    hint = f"did you mean {near[0]}?" if near else f"available: {', '.join(configs.values())}"
    raise UserError(f"config file {path} not found; {hint}", status=2)


def local_settings(scope: ast.stmt) -> list[tuple[str, int]]:
    """The settings that are assigned in a function, a class or an `if __name__ == "__main__"` block
    and not used there, with their lines.
    """
    names = [node for node in ast.walk(scope) if isinstance(node, ast.Name)]
    used = {node.id for node in names if isinstance(node.ctx, ast.Load)}
    for node in ast.walk(scope):
        used |= set(node.names) if isinstance(node, ast.Global) else set()
    return [(n.id, n.lineno) for n in names if n.id in SETTINGS and n.id not in used]


def without_effect(tree: ast.Module) -> list[str]:
    """The lines of a config file that set nothing, and the settings that it sets more than once."""
    problems = []
    lines = defaultdict(list)  # line numbers of the assignments to each setting
    for node in tree.body:
        targets = node.targets if isinstance(node, ast.Assign) else []
        if isinstance(node, ast.AnnAssign) and node.value:
            targets = [node.target]
        for name in [name for target in targets for name in ast.walk(target)]:
            stored = isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
            if stored and name.id in {*SETTINGS, "on_cpu"}:
                lines[name.id].append(str(node.lineno))
    for node in ast.walk(tree):
        annotates = isinstance(node, ast.AnnAssign) and not node.value
        if annotates or isinstance(node, ast.Expr) and isinstance(node.value, NO_STATEMENTS):
            problems.append(f"line {node.lineno} sets nothing; write name = value")
        keys = [ast.unparse(key) for key in node.keys if key] if isinstance(node, ast.Dict) else []
        problems += [
            f"{key} is set more than once, in line {node.lineno}"
            for key in sorted(set(keys))
            if keys.count(key) > 1
        ]
        guard = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        if guard or isinstance(node, ast.FunctionDef | ast.ClassDef):
            problems += [
                f"line {line} sets nothing: {name} is inside {ast.unparse(node).splitlines()[0]}"
                for name, line in local_settings(node)
            ]
    problems += [
        f"{name} is set more than once, in lines {' and '.join(numbers)}"
        for name, numbers in lines.items()
        if len(numbers) > 1
    ]
    return problems


def never_read(tree: ast.Module) -> set[str]:
    """The variables that a config file assigns but does not use."""
    variables = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
    used = {node.id for node in variables if isinstance(node.ctx, ast.Load)}
    return {node.id for node in variables} - used


def read_file(path: str) -> tuple[dict, dict]:
    """The settings in a config file, and those in its on_cpu block. Raises UserError."""
    if path.endswith(".pt"):
        raise UserError(
            f"{path} is a checkpoint, not a config file: --init_from={path} starts from its"
            " weights, --resume continues the run that --run_name names",
            status=2,
        )
    if Path(path).suffix != ".py":
        raise UserError(f"a config file is a Python file, not {path}", status=2)
    try:
        source = Path(path).read_bytes()  # refuses a folder, whose __main__.py runpy would run
    except OSError as error:
        raise UserError(f"can't read the config file {path}: {error.strerror}", status=2) from None
    try:
        tree = ast.parse(source, path)
        problems, unused = without_effect(tree), never_read(tree)
        names = runpy.run_path(path)
    except (Exception, SystemExit) as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [1, *(frame.lineno for frame in frames if frame.filename == path)]
        syntax = isinstance(error, SyntaxError) and error.filename == path  # not of an import
        line = (error.lineno if syntax else None) or lines[-1]
        reason = error.msg if syntax else error
        message = f"config file {path}, line {line}: {type(error).__name__}: {reason}"
        raise UserError(message, status=2) from None
    values = {}
    for name, value in names.items():
        if name in SETTINGS or name in ("on_cpu", "vocab_size"):
            values[name] = value
        elif name.startswith("_") or callable(value) or isinstance(value, ModuleType):
            pass  # an import or a function
        elif intended(name) or name in unused:
            problems.append(
                f"{unknown_setting(name)} (a helper variable needs a name like _{name})"
            )
    on_cpu = values.pop("on_cpu", {})
    if not isinstance(on_cpu, dict):
        raise UserError(f"config file {path}: on_cpu must be a dict(...), not {on_cpu!r}", status=2)
    problems += [unknown_setting(name) for name in [*values, *on_cpu] if name not in SETTINGS]
    problems += [f"on_cpu can't set {name}" for name in SOURCES if name in on_cpu]
    if problems:
        raise UserError(f"config file {path}: {'; '.join(problems)}", status=2)
    return values, on_cpu
