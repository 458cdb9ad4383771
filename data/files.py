"""Text in files: finding them, and reading them a few pieces at a time."""

import codecs
import fnmatch
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from cli import UserError

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
                raise UserError(f"{path} is not UTF-8 text: {where}; with another encoding, convert it first") from None
            yield text
            offset += len(piece)


def cut(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The bytes of a text in UTF-8, in pieces about as long as the blocks, that can be tokenized one by one.

    No token reaches across a cut, and no character is halved; one endless line is cut between any two characters.
    """
    rest = b""
    for block in blocks:
        piece = rest + block
        end = piece.rfind(b"\n")  # no token of GPT-2's joins the end of a word to the new line after it
        while end > 0 and piece[max(0, end - 4) : end].decode("utf-8", "ignore")[-1:].strip() == "":  # white space
            end = piece.rfind(b"\n", 0, end)
        if end <= 0:
            end = len(piece) - 1
            while end > max(0, len(piece) - 4) and piece[end] & 0xC0 == 0x80:  # a character has 4 bytes at most
                end -= 1
        if end:
            yield piece[:end]
        rest = piece[end:]
    if rest:
        yield rest
