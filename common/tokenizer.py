"""Text <-> token ids: by characters, by bytes, or by GPT-2's byte-pair encoding.

>>> tokenizer = CharTokenizer("abc")
>>> tokenizer.encode("cab").tolist()
[2, 0, 1]
>>> tokenizer.decode([2, 0, 1])
'cab'
"""

import codecs
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

CODE_POINTS = 0x110000  # how many Unicode has
UNKNOWN = 0xFFFFFFFF


class UnknownCharacters(ValueError):
    """Text with characters that the tokenizer has no id for; `characters` holds them, sorted."""

    def __init__(self, characters: str):
        self.characters = characters
        shown = " ".join(repr(character) for character in characters[:10])
        more = f" and {len(characters) - 10} more" if len(characters) > 10 else ""
        super().__init__(f"characters that the tokenizer has never seen: {shown}{more}")


def code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class CharTokenizer:
    """One id for each different character of a text, in the order of their code points."""

    kind = "char"

    def __init__(self, characters: str):
        """characters: the vocabulary, each character once; a character's id is its place."""
        self.characters = characters
        self._codes = code_points(characters)  # id -> code point
        if len(np.unique(self._codes)) != len(self._codes):
            raise ValueError("a character stands twice in the vocabulary")
        self._ids = np.full(CODE_POINTS, UNKNOWN, dtype=np.uint32)  # code point -> id
        self._ids[self._codes] = np.arange(len(self._codes))

    @classmethod
    def from_text(cls, texts: Iterable[str]) -> "CharTokenizer":
        """The tokenizer that knows every character of the texts."""
        seen = np.zeros(CODE_POINTS, dtype=bool)
        for text in texts:
            seen[code_points(text)] = True
        return cls("".join(map(chr, np.flatnonzero(seen))))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def start_id(self) -> int:
        """The id that a text without a prompt starts from: a new line, where the vocabulary has one."""
        return max(0, self.characters.find("\n"))

    @property
    def separator(self) -> np.ndarray:
        """The ids that stand between two documents: a blank line."""
        return self.encode("\n\n")

    def encode(self, text: str) -> np.ndarray:
        """ids (uint32), one for each character. Raises UnknownCharacters."""
        ids = self._ids[code_points(text)]
        if len(ids) and ids.max() == UNKNOWN:
            raise UnknownCharacters("".join(sorted(set(text) - set(self.characters))))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return (
            self._codes[np.asarray(ids, dtype=np.int64)]
            .tobytes()
            .decode("utf-32-le", "surrogatepass")
        )

    def stream_decoder(self) -> Callable[[Sequence[int]], str]:
        """A function from the next ids to the text that they complete."""
        return self.decode

    def to_dict(self) -> dict:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer:
    """The 256 bytes of UTF-8: every text can be encoded, and there is nothing to learn."""

    kind = "byte"
    vocab_size = 256
    start_id = ord("\n")
    separator = np.frombuffer(b"\n\n", dtype=np.uint8)  # between two documents

    def encode(self, text: str) -> np.ndarray:
        """ids (uint8), one for each byte of the text in UTF-8."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are no UTF-8 become U+FFFD, as a model may well produce them."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(np.asarray(ids, dtype=np.uint8))

    def stream_decoder(self) -> Callable[[Sequence[int]], str]:
        """A function from the next ids to the text that they complete: it holds back an unfinished character."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda ids: decoder.decode(self.to_bytes(ids))

    def to_dict(self) -> dict:
        return {"kind": self.kind}


class BPETokenizer(ByteTokenizer):
    """GPT-2's byte-pair encoding, through tiktoken: 50,257 tokens of about 4 bytes of English each.

    The files with its merges are fetched once, into data/downloads/gpt2_bpe. Raises UserError where they can't be had.
    """

    kind = "bpe"

    def __init__(self):
        import tiktoken  # here: characters and bytes do without

        from common import gpt2_bpe

        os.environ["TIKTOKEN_CACHE_DIR"] = str(gpt2_bpe.fetch(Path("data/downloads")))
        self._encoding = tiktoken.get_encoding("gpt2")
        self.vocab_size = self._encoding.n_vocab
        self.start_id = self._encoding.eot_token
        self.separator = np.array(
            [self._encoding.eot_token], dtype=np.uint32
        )  # the end-of-text token

    def encode(self, text: str) -> np.ndarray:
        """ids (uint32) of a text; "<|endoftext|>" in it is text like any other. Several threads may call this at once."""
        return np.asarray(self._encoding.encode_to_numpy(text, disallowed_special=()))

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(np.asarray(ids).tolist())


Tokenizer = CharTokenizer | ByteTokenizer | BPETokenizer
KINDS = ("char", "byte", "bpe")


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer whose to_dict() gave this. Raises ValueError where it can't have been one."""
    match state:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "bpe"}:
            return BPETokenizer()
    raise ValueError(f"not a tokenizer: {str(state)[:80]}")


def difference(one: Tokenizer, other: Tokenizer) -> str | None:
    """How the tokens of two tokenizers differ, in words; None where they are the same."""
    if one.kind != other.kind:
        return f"its tokens are those of {one.kind}, not of {other.kind}"
    if one.to_dict() == other.to_dict():
        return None
    lacking, spare = (
        sorted(set(a.characters) - set(b.characters)) for a, b in ((other, one), (one, other))
    )
    shown = [
        f"{what} {''.join(found)!r}"
        for what, found in (("lacks", lacking), ("alone has", spare))
        if found
    ]
    return (
        f"of their characters its tokenizer {' and '.join(shown)}"
        if shown
        else "their characters' ids differ"
    )
