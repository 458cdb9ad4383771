"""Text files: finding them, reading them in pieces, and writing files atomically."""

import codecs
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError

BLOCK_BYTES = 1 << 16  # read from a file at once; small enough for the CPU cache
LONGEST_WORD = 10_000  # characters


def find(inputs: Iterable[str], patterns: Sequence[str]) -> list[Path]:
    """The inputs that are files, and the matching files in inputs that are folders.

    Raises UserError if an input does not exist, or a folder has no matching file.
    """
    files = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(
                file
                for file in path.rglob("*")
                if file.is_file() and any(fnmatch.fnmatch(file.name, p) for p in patterns)
            )
            if not found:
                wanted = " or ".join(patterns)
                raise UserError(f"no {wanted} in {path}; choose other files with --pattern '*.py'")
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"there is no file {path}")
    return files


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, line ends unchanged, without a byte order mark.

    Raises UserError.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise not_utf8(path, error, 0) from None


def read_pieces(path: Path) -> Iterator[str]:
    """Yields the text of a UTF-8 file in pieces that `cut` makes, without a byte order mark.

    Raises UserError.
    """
    with open(path, "rb") as file:
        blocks = iter(lambda: file.read(BLOCK_BYTES), b"")
        try:
            yield from cut(codecs.iterdecode(blocks, "utf-8-sig"))
        except UnicodeDecodeError as error:
            raise not_utf8(path, error, file.tell() - len(error.object)) from None


def not_utf8(path: str | Path, error: UnicodeDecodeError, offset: int) -> UserError:
    """offset: where in the file the bytes begin that could not be decoded."""
    where = f"byte {offset + error.start:,} is {error.object[error.start]:#04x}"
    return UserError(f"{path} is not UTF-8 text ({where}): convert it to UTF-8 first")


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Yields a text in pieces, about as long as its blocks, that can be tokenized one by one.

    A piece ends between a word and the white space after it: GPT-2's tokens never cross that
    place. Only if the last LONGEST_WORD characters are without one, it ends anywhere.
    """
    rest = ""
    for block in blocks:
        text = rest + block
        end = len(text)
        for i in range(end - 1, max(0, end - LONGEST_WORD), -1):
            if text[i].isspace() and not text[i - 1].isspace():
                end = i
                break
        yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls write(file) on a temporary file, then renames it to path once it is on the disk.

    Creates the folder. If anything fails, path is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some file systems can't sync a folder (FUSE, CIFS, VirtualBox)
            os.fsync(folder)
        os.close(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file atomically."""
    write_atomically(path, lambda file: file.write(content))
