"""What all commands share: exit statuses, and one-line messages for errors the user can fix."""

import argparse
import functools
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from common.errors import UserError, one_line
from common.files import ROOT

MARK = "\0"  # before the value of a text option: argparse removes "--" and refuses "-x"
INSTALL = {"gguf": "gguf", "llama_cpp": "llama-cpp-python"}  # names of modules and packages
LESS_MEMORY = {  # what to try, by command
    "train.py": "a smaller micro_batch_size or a smaller model",
    "sample.py": "a smaller --num_samples or --max_new_tokens",
}


def number(kind: type, accepts: Callable[[float], bool], wanted: str) -> Callable[[str], float]:
    """A type for argparse: an int or a float for which accepts(value) is true.

    wanted: completes the error message, "must be ...".
    """

    def parse(text: str) -> float:
        value = kind(text)
        if not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {wanted}, not {text}")
        return value

    parse.__name__ = "whole number" if kind is int else "number"  # in "invalid ... value"
    return parse


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from low to high."""
    return number(int, lambda n: low <= n <= high, f"from {low:,} to {high:,}")


class Parser(argparse.ArgumentParser):
    """An ArgumentParser without abbreviations, whose errors are one line.

    description: its first line is shown (it is None under `python -OO`).
    """

    def __init__(self, description: str | None = None, **options):
        first_line = (description or "").partition("\n")[0]
        super().__init__(description=first_line, allow_abbrev=False, **options)
        self.text_options = set()

    def error(self, message: str):
        hint = f"see python {self.prog} --help"
        if message.startswith("unrecognized arguments") and message.endswith(".pt"):
            hint = f"did you mean --ckpt {message.split()[-1]}?"
        raise UserError(f"{message} ({hint})", status=2)

    def add_text(self, option: str, type: Callable[[str], str] = str, **options) -> None:
        """Adds an option whose value may be any text, even if it begins with a dash."""
        self.text_options.add(option)
        self.add_argument(option, type=lambda value: type(value.removeprefix(MARK)), **options)

    def parse_known_args(self, args=None, namespace=None):
        marked = []  # `--stop --` and `--stop=--` as `--stop=<MARK>--`
        rest = list(sys.argv[1:] if args is None else args)
        while rest:
            argument = rest.pop(0)
            option, equals, value = argument.partition("=")
            if option not in self.text_options:
                # a shell expands ~ in `--out ~/x`, but not in `--out=~/x`
                marked.append(option + equals + os.path.expanduser(value))
            elif equals:
                marked.append(f"{option}={MARK}{value}")
            elif rest and rest[0].partition("=")[0] not in self._option_string_actions:
                marked.append(f"{option}={MARK}{rest.pop(0)}")
            else:
                marked.append(option)  # without a value, which argparse refuses
        known, others = super().parse_known_args(marked, namespace)
        for name, value in vars(known).items():  # "$FILE" is empty if the shell has no FILE
            empty = value == "" or isinstance(value, list) and "" in value
            if empty and f"--{name}" not in self.text_options:
                self.error(f"{name} must not be empty")
        return known, others


def command(main: Callable[[list[str]], int | None]) -> Callable[..., int]:
    """Turns main(argv) into a command that returns an exit status.

    Errors that the user can fix are shown in one line; others keep their traceback.
    """

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        # none if the shell has closed them (>&- 2>&-); a file opened later would get their number
        sys.stdout = sys.stdout or open(os.devnull, "w")
        sys.stderr = sys.stderr or open(os.devnull, "w")
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # print "?" for what the terminal can't show
                stream.reconfigure(errors="replace")
        if hasattr(sys.stdin, "reconfigure"):  # keep what is not UTF-8; encode() reports it
            sys.stdin.reconfigure(errors="surrogateescape")
        try:
            return main(sys.argv[1:] if argv is None else argv) or 0
        except UserError as error:
            return fail(error, error.status)
        except BrokenPipeError:  # `python sample.py | head`: the reader has closed the pipe
            discard_output()
            return 1
        except OSError as error:  # a full disk, an unwritable folder, a file that vanished
            where = f": {error.filename}" if error.filename else ""
            return fail(f"{error.strerror or error}{where}")
        except (MemoryError, RuntimeError) as error:  # torch's out of memory is a RuntimeError
            full = re.search("out of memory|allocate memory|calculation overflowed", str(error))
            if isinstance(error, RuntimeError) and not full:
                raise
            script = Path(main.__code__.co_filename).name
            return fail(
                f"out of memory: try {LESS_MEMORY.get(script, 'a smaller model')} ({error})"
            )
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130

    return run


def discard_output() -> None:
    """Sends what is printed from now on nowhere: nobody reads it anymore."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def unescape(text: str) -> str:
    r"""Replaces \n, \r, \t, \0 and \\, as typed in a shell, by the characters they stand for."""
    meanings = {"n": "\n", "r": "\r", "t": "\t", "0": "\0", "\\": "\\"}
    return re.sub(r"\\([nrt0\\])", lambda match: meanings[match[1]], text)


def escape_controls(text: str) -> str:
    r"""The text as it is safe to print: on a terminal, control characters become \x1b and the like.

    Newlines and tabs stay.
    """
    if not sys.stdout.isatty():
        return text
    controls = r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]|\r(?!\n)"
    return re.sub(controls, lambda match: repr(match[0])[1:-1], text)


def fail(message: object, status: int = 1) -> int:
    """Prints the message on one line and returns the exit status."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    return status


def optional_package(name: str) -> ModuleType:
    """Imports a module of a package that few users need. Raises UserError if it is missing."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.split(".")[0]
        install = INSTALL.get(package, "transformers safetensors tokenizers")
        problem = "is not installed"
        if importlib.util.find_spec(package):
            problem = f"can't be imported ({one_line(error)})"
        raise UserError(f"{package} {problem}: pip install {install}") from None


def command_for(script: str) -> str:
    """How to run a script of the project, such as train.py, from the current folder."""
    return f"python {quote(script if Path.cwd() == ROOT else str(ROOT / script))}"


def quote(argument: str) -> str:
    """The argument quoted for this system's command line."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)
