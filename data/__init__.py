"""The corpora: one small module each, that says in `ABOUT` what the text is and finds it in `load(folder)`."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """Text as documents, and where it came from.

    A document is a str or, so that it need not fit into memory, an iterable of the pieces of one.

    documents and validation are called once for each pass over the text; every call gives the same documents in
    the same order. Where the corpus has no validation documents of its own, prepare.py holds some back; of a
    continuous text it holds back the end.
    """

    source: str  # one line for people, kept in meta.json
    documents: Callable[[], Iterable[str | Iterable[str]]]
    validation: Callable[[], Iterable[str | Iterable[str]]] | None = None
    continuous: bool = False  # the documents are pieces of one text: nothing stands between them
