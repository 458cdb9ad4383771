"""What every command shares: one clear line for what its user can mend, and an exit status."""

import argparse
import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable

from common.errors import UserError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that takes no abbreviations and says what is wrong in one line."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str):
        raise UserError(f"{message} (python {self.prog} --help lists everything)", status=2)


def command(main: Callable[[list[str]], None]) -> Callable[..., int]:
    """Turns main(argv) into a command that returns its exit status: no traceback for what a user can mend."""

    @functools.wraps(main)
    def run(argv: list[str] | None = None) -> int:
        for stream in (sys.stdout, sys.stderr):
            if hasattr(
                stream, "reconfigure"
            ):  # a terminal that can't show a character is no reason to stop
                stream.reconfigure(errors="replace")
        try:
            main(sys.argv[1:] if argv is None else argv)
        except UserError as error:
            return fail(error, error.status)
        except BrokenPipeError:  # `python sample.py | head`: nobody reads on
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except (
            OSError
        ) as error:  # a full disk, a folder that can't be written, a file that went away
            where = f": {error.filename}" if error.filename else ""
            return fail(f"{error.strerror or error}{where}")
        except (
            MemoryError,
            RuntimeError,
        ) as error:  # torch reports a full memory as a RuntimeError
            if isinstance(error, RuntimeError) and not re.search(
                "out of memory|allocate memory", str(error)
            ):
                raise
            return fail(
                f"not enough memory: less at once (train.py: micro_batch_size) or a smaller model ({error})"
            )
        except KeyboardInterrupt:
            print("\nstopped", file=sys.stderr)
            return 130
        return 0

    return run


def fail(message: object, status: int = 1) -> int:
    """Prints the message as one line, whatever stands in it, and gives back the exit status."""
    print("error:", *str(message).splitlines(), file=sys.stderr)
    return status


def quote(argument: str) -> str:
    """The argument as a person would have to type it in a command line of this system."""
    return subprocess.list2cmdline([argument]) if os.name == "nt" else shlex.quote(argument)
