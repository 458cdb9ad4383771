"""enwik8: the first 10^8 bytes of an English Wikipedia dump of 2006, the classic benchmark of compressors."""

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from common import download, files
from common.errors import UserError
from data import Corpus

ABOUT = "100 MB, or less with --limit BYTES: enwik8, English Wikipedia of 2006; more text than a 10M model can learn by heart"
URL = "http://mattmahoney.net/dc/enwik8.zip"
SHA256 = "547994d9980ebed1288380d652999f38a14fe291a6247c157c3d33d4932534bc"
TRAIN_END, VALIDATION_END = 90_000_000, 95_000_000


def load(folder: Path, *, limit: int | None = None) -> Corpus:
    """Whole: one text, with the standard split 90/5/5, whose last part, for tests, is left out. With a limit: articles.

    limit: bytes of enwik8. Raises UserError.
    """
    path = download.fetch(URL, Path(folder, "enwik8.zip"), SHA256)
    if limit is None:
        return Corpus(
            f"enwik8, {URL}, split 90/5/5",
            lambda: _text(path, 0, TRAIN_END),
            validation=lambda: _text(path, TRAIN_END, VALIDATION_END),
            continuous=True,
        )
    if next(_articles(path, limit), None) is None:
        raise UserError(
            f"--limit {limit:,}: not one whole article of enwik8 is that short; try 1,000,000 bytes"
        )
    return Corpus(
        f"enwik8, {URL}, articles of the first {limit:,} bytes", lambda: _articles(path, limit)
    )


def _open(path: Path) -> BinaryIO:
    return zipfile.ZipFile(path).open("enwik8")


def _text(path: Path, start: int, end: int) -> Iterator[str]:
    """The text between two bytes, in pieces, without the characters that start and end cut in two."""
    with _open(path) as file:
        file.seek(start)
        for piece in files.cut(iter(lambda: file.read(min(files.PIECE, end - file.tell())), b"")):
            yield piece.decode("utf-8", errors="ignore")


def _articles(path: Path, limit: int) -> Iterator[str]:
    """The articles, <page>...</page>, that end within the first bytes."""
    with _open(path) as file:
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
