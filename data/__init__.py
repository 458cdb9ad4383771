"""The corpora: one small module each, that says in `ABOUT` what the text is and finds it in `load(folder)`."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Corpus:
    """Text as documents, and where it came from.

    documents and validation are called once for each pass over the text; every call gives the same documents in
    the same order. A document is a str; one that may be large can be an iterable of its pieces instead. Where the corpus has no validation documents of its own, prepare.py holds some back; of a
    continuous text it holds back the end.
    """

    source: str  # one line for people, kept in meta.json
    documents: Callable[[], Iterable[str | Iterable[str]]]
    validation: Callable[[], Iterable[str]] | None = None
    continuous: bool = False  # the documents are pieces of one text: nothing stands between them


def cut_safely(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes of UTF-8, cut anew where no character and no token of GPT-2's reaches across."""
    rest = b""
    for block in blocks:
        block = rest + block
        end = block.rfind(b"\n")  # no token joins the end of a word to the new line after it
        while end > 0 and not 32 < block[end - 1] < 127:
            end = block.rfind(b"\n", 0, end)
        if end <= 0:  # one endless line: at least no character is cut in two
            end = len(block) - 1
            while end > max(0, len(block) - 4) and block[end] & 0xC0 == 0x80:
                end -= 1
        if end:
            yield block[:end]
        rest = block[end:]
    if rest:
        yield rest
