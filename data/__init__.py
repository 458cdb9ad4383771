"""The corpora: one small module each, that says in `ABOUT` what the text is and finds it in `load(folder)`."""

from dataclasses import dataclass
from typing import Callable, Iterable


@dataclass(frozen=True)
class Corpus:
    """Text as documents, and where it came from.

    documents and validation are called once for each pass over the text; every call gives the same documents in
    the same order. Without validation, prepare.py holds back a part: whole documents, or the end of a single one.
    """

    source: str  # one line for people, kept in meta.json
    documents: Callable[[], Iterable[str]]
    validation: Callable[[], Iterable[str]] | None = None
