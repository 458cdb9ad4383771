"""enwik8: the first 10^8 bytes of English Wikipedia in 2006, a classic compression benchmark."""

import codecs
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common import download, files
from common.errors import UserError
from data import Corpus, documents

ABOUT = (
    "100 MB, or less with --limit BYTES: enwik8, English Wikipedia of 2006;"
    " too much for a 10M model to memorize"
)
URL = "http://mattmahoney.net/dc/enwik8.zip"
SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
TRAIN_END, VALIDATION_END = 90_000_000, 95_000_000


def load(folder: Path, *, limit: int | None = None) -> Corpus:
    """All of enwik8, or with a limit the articles in its first `limit` bytes. Raises UserError.

    All of it is one text with the standard split 90/5/5, without the last part (for testing).
    """
    path = download.fetch(URL, Path(folder, "enwik8.zip"), SHA256)
    if limit is None:
        return Corpus(
            f"enwik8, {URL}, split 90/5/5",
            lambda: text(path, 0, TRAIN_END),
            validation=lambda: text(path, TRAIN_END, VALIDATION_END),
        )
    if next(articles(path, limit), None) is None:
        raise UserError(
            f"--limit {limit:,} is shorter than enwik8's first article; try --limit 1000000"
        )
    source = f"enwik8, {URL}, articles of the first {limit:,} bytes"
    return Corpus(source, lambda: documents(articles(path, limit)))


def open_zip(path: Path) -> BinaryIO:
    return zipfile.ZipFile(path).open("enwik8")


def text(path: Path, start: int, end: int) -> Iterator[str]:
    """Yields the text between two bytes in pieces, without characters cut by start or end."""
    with open_zip(path) as file:
        file.seek(start)
        blocks = iter(lambda: file.read(min(files.BLOCK_BYTES, end - file.tell())), b"")
        yield from files.cut(codecs.iterdecode(blocks, "utf-8", errors="ignore"))


def articles(path: Path, limit: int) -> Iterator[str]:
    """Yields the articles, <page>...</page>, that end within the first `limit` bytes."""
    with open_zip(path) as file:
        page = []
        for line in file:
            limit -= len(line)
            if limit < 0:
                return
            if line.strip() == b"<page>":
                page = []
            page.append(line)
            if line.strip() == b"</page>":
                yield b"".join(page).decode("utf-8").strip()
