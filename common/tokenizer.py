"""Text <-> token ids: characters, bytes, or GPT-2's byte-pair encoding.

>>> tokenizer = CharTokenizer("abc")
>>> tokenizer.encode("cab").tolist()
[2, 0, 1]
>>> tokenizer.decode([2, 0, 1])
'cab'
"""

import codecs
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

CODE_POINTS = 0x110000  # of Unicode
UNKNOWN = 0xFFFFFFFF


class UnknownCharacters(ValueError):
    """The text has `characters` (sorted) that the tokenizer has no id for."""

    def __init__(self, characters: str):
        self.characters = characters
        shown = " ".join(repr(character) for character in characters[:10])
        more = f" and {len(characters) - 10} more" if len(characters) > 10 else ""
        super().__init__(f"characters that the tokenizer does not know: {shown}{more}")


def code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class CharTokenizer:
    """One id for each different character of a text, in the order of their code points."""

    kind = "char"

    def __init__(self, characters: str):
        """characters: the vocabulary; the id of a character is its index."""
        self.characters = characters
        self._codes = code_points(characters)  # id -> code point
        if len(np.unique(self._codes)) != len(self._codes):
            raise ValueError("duplicate character in the vocabulary")
        self._ids = np.full(CODE_POINTS, UNKNOWN, dtype=np.uint32)  # code point -> id
        self._ids[self._codes] = np.arange(len(self._codes))

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def start_id(self) -> int:
        """The id that a text without a prompt starts from: a newline if there is one, else 0."""
        return max(0, self.characters.find("\n"))

    @property
    def separator(self) -> np.ndarray:
        """The ids between two documents: a blank line."""
        return self.encode("\n\n")

    def encode(self, text: str) -> np.ndarray:
        """ids (uint32), one for each character. Raises UnknownCharacters."""
        ids = self._ids[code_points(text)]
        if len(ids) and ids.max() == UNKNOWN:
            raise UnknownCharacters("".join(sorted(set(text) - set(self.characters))))
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        codes = self._codes[np.asarray(ids, dtype=np.int64)]
        return codes.tobytes().decode("utf-32-le", "surrogatepass")

    def stream_decoder(self) -> Callable[[Sequence[int]], str]:
        """A function that takes the next ids and returns the text they complete."""
        return self.decode

    def to_dict(self) -> dict:
        return {"kind": self.kind, "characters": self.characters}


class ByteTokenizer:
    """The 256 bytes of UTF-8: can encode any text and needs no training."""

    kind = "byte"
    vocab_size = 256
    start_id = ord("\n")
    separator = np.frombuffer(b"\n\n", dtype=np.uint8)  # between two documents

    def encode(self, text: str) -> np.ndarray:
        """ids (uint8), one for each byte of the text in UTF-8."""
        return np.frombuffer(text.encode("utf-8"), dtype=np.uint8)

    def decode(self, ids: Sequence[int]) -> str:
        """The text; bytes that are not UTF-8 (a model can produce them) become U+FFFD."""
        return self.to_bytes(ids).decode("utf-8", errors="replace")

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return bytes(np.asarray(ids, dtype=np.uint8))

    def stream_decoder(self) -> Callable[[Sequence[int]], str]:
        """A function that takes the next ids and returns the text they complete.

        It keeps the bytes of an unfinished character until the next call.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        return lambda ids: decoder.decode(self.to_bytes(ids))

    def to_dict(self) -> dict:
        return {"kind": self.kind}


class BPETokenizer(ByteTokenizer):
    """GPT-2's byte-pair encoding, through tiktoken: 50,257 tokens, about 4 bytes of English each.

    Its files are downloaded once, to data/downloads/gpt2_bpe. Raises UserError if that fails.
    """

    kind = "bpe"

    def __init__(self):
        import tiktoken  # here, because the other tokenizers don't need it

        from common import gpt2_bpe

        os.environ["TIKTOKEN_CACHE_DIR"] = str(gpt2_bpe.fetch(Path("data/downloads")))
        self._encoding = tiktoken.get_encoding("gpt2")
        self.vocab_size = self._encoding.n_vocab
        self.start_id = self._encoding.eot_token
        self.separator = np.array([self._encoding.eot_token], dtype=np.uint32)

    def encode(self, text: str) -> np.ndarray:
        """ids (uint32); "<|endoftext|>" in the text is text like any other. Thread-safe."""
        return np.asarray(self._encoding.encode_to_numpy(text, disallowed_special=()))

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(np.asarray(ids).tolist())


Tokenizer = CharTokenizer | ByteTokenizer | BPETokenizer
KINDS = ("char", "byte", "bpe")


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer that to_dict() was called on. Raises ValueError if state is not from to_dict()."""
    match state:
        case {"kind": "char", "characters": str(characters)}:
            return CharTokenizer(characters)
        case {"kind": "byte"}:
            return ByteTokenizer()
        case {"kind": "bpe"}:
            return BPETokenizer()
    raise ValueError(f"not a tokenizer: {str(state)[:80]}")


def difference(model: Tokenizer, dataset: Tokenizer) -> str | None:
    """How a model's tokenizer differs from a dataset's, in words; None if they are the same."""
    if model.kind != dataset.kind:
        return f"the model uses {model.kind} tokens, the dataset {dataset.kind} tokens"
    if model.to_dict() == dataset.to_dict():
        return None
    differences = []
    if missing := sorted(set(dataset.characters) - set(model.characters)):
        differences.append(f"the model has no token for {''.join(missing)!r}")
    if extra := sorted(set(model.characters) - set(dataset.characters)):
        differences.append(f"the dataset has no token for {''.join(extra)!r}")
    return ", ".join(differences) or "the same characters have different ids"
