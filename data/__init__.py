"""The corpora, one small module each: `ABOUT` describes the text, `load(folder)` finds it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

END = None  # in a stream of text: the end of a document
Text = Iterable[str | None]  # documents in pieces of any length, with END after each document


@dataclass(frozen=True)
class Corpus:
    """Text, and where it came from.

    text and validation are called once for each pass; every call must give the same stream. If the
    corpus has no validation text of its own, prepare.py holds some back: whole documents if there
    are several, else the end of the only one.
    """

    source: str  # one line for people, kept in meta.json
    text: Callable[[], Text]
    validation: Callable[[], Text] | None = None

    def texts(self) -> list[Text]:
        """The text and, if the corpus has its own, the validation text."""
        return [self.text(), *([self.validation()] if self.validation else [])]


def documents(texts: Iterable[str]) -> Iterator[str | None]:
    """The stream in which each of these texts is a document."""
    for text in texts:
        yield text
        yield END
