"""Text in files: finding them, and reading them a few pieces at a time."""

import codecs
import fnmatch
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from common.errors import UserError

PIECE = 1 << 20  # bytes that are read at once


def find(inputs: Iterable[str], patterns: Sequence[str]) -> list[Path]:
    """The files among the inputs, and those in folders among them that match a pattern. Raises UserError."""
    files = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(
                p
                for p in path.rglob("*")
                if p.is_file() and any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)
            )
            if not found:
                raise UserError(
                    f"the folder {path} holds no {' or '.join(patterns)}; --pattern '*.py' takes other files"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"there is no file {path}")
    return files


def read_pieces(path: Path) -> Iterator[str]:
    """The text of a file, piece by piece, without a byte order mark. Raises UserError if it is not UTF-8."""
    offset = 0
    with open(path, "rb") as file:
        if file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8:
            offset = len(codecs.BOM_UTF8)
        file.seek(offset)
        for piece in cut(iter(lambda: file.read(PIECE), b"")):
            try:
                text = piece.decode("utf-8")
            except UnicodeDecodeError as error:
                where = f"byte {offset + error.start:,} is {piece[error.start]:#04x}"
                raise UserError(
                    f"{path} is not UTF-8 text: {where}; with another encoding, convert it first"
                ) from None
            yield text
            offset += len(piece)


def cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a text in UTF-8, in pieces about as long as the blocks, that can be tokenized one by one.

    No token reaches across a cut, and no character is halved; one endless line is cut between any two characters.
    """
    rest = b""
    for block in blocks:
        piece = rest + block
        end = piece.rfind(
            b"\n"
        )  # no token of GPT-2's joins the end of a word to the new line after it
        while (
            end > 0 and piece[max(0, end - 4) : end].decode("utf-8", "ignore")[-1:].strip() == ""
        ):  # white space
            end = piece.rfind(b"\n", 0, end)
        if end <= 0:
            end = len(piece) - 1
            while (
                end > max(0, len(piece) - 4) and piece[end] & 0xC0 == 0x80
            ):  # a character has 4 bytes at most
                end -= 1
        if end:
            yield piece[:end]
        rest = piece[end:]
    if rest:
        yield rest


def read_text(path: str) -> str:
    """The text of a UTF-8 file, line ends and all, without a byte order mark. Raises UserError."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
        ) from None


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
        os.fsync(folder)
        os.close(folder)
