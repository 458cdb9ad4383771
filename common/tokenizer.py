"""Text <-> token ids: characters, bytes, or a byte-pair encoding, GPT-2's or a trained one.

>>> tokenizer = CharTokenizer("abc")
>>> tokenizer.encode("cab").tolist()
[2, 0, 1]
>>> tokenizer.decode([2, 0, 1])
'cab'
"""

import codecs
import os
import re
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from common import bpe
from common.errors import listed

CODE_POINTS = 0x110000  # of Unicode
END_OF_TEXT = "<|endoftext|>"  # between documents of BPE tokens
NUL = "\0"  # between documents of characters or bytes, unless --separator says otherwise
UNKNOWN, UNKNOWN_BYTE = 0xFFFFFFFF, 0xFF


class UnknownCharacters(ValueError):
    """The text has `characters` (sorted) that the tokenizer has no id for."""

    def __init__(self, characters: str):
        self.characters = characters
        shown = listed([repr(character) for character in characters])
        super().__init__(f"characters that the tokenizer does not know: {shown}")


def code_points(text: str) -> np.ndarray:
    """The Unicode code point of each character, uint32."""
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


class Tokenizer:
    """What all tokenizers share.

    Each has kind, vocab_size, start_ids, encode, decode and stream_decoder.
    separator: what is between two documents in its training data; None if that is one text.
    divider: the text between two documents of a file (prepare.py's --separator); None if documents
    were files, or fields of JSON Lines.
    """

    separator: str | None
    divider: str | None = None

    def to_dict(self) -> dict:
        """What from_dict() makes an equal tokenizer of."""
        marks = {"separator": self.separator, "divider": self.divider}
        return {"kind": self.kind} | {name: mark for name, mark in marks.items() if mark}

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """ids of texts with the separator between them, or a blank line if there is none."""
        return self.encode((self.separator or "\n\n").join(texts))


class CharTokenizer(Tokenizer):
    """One id for each different character of a text, in the order of their code points."""

    kind = "char"

    def __init__(self, characters: str, separator: str | None = None):
        """characters: the vocabulary; the id of a character is its index."""
        self.characters, self.separator = characters, separator
        self._codes = code_points(characters)  # id -> code point
        if len(np.unique(self._codes)) != len(self._codes):
            raise ValueError("duplicate character in the vocabulary")
        if not set(separator or "") <= set(characters):
            raise ValueError(f"the separator {separator!r} is not in the vocabulary")
        self._ids = np.full(CODE_POINTS, UNKNOWN, dtype=np.uint32)  # code point -> id
        self._ids[self._codes] = np.arange(len(self._codes))
        ascii_ids = np.minimum(self._ids[:128], UNKNOWN_BYTE).astype(np.uint8)
        self._ascii = bytes(ascii_ids).ljust(256, bytes([UNKNOWN_BYTE]))  # for bytes.translate

    @property
    def vocab_size(self) -> int:
        return len(self.characters)

    @property
    def start_ids(self) -> list[int]:
        """What a text without a prompt starts from: the separator, or else a newline, or id 0."""
        if self.separator:
            return self.encode(self.separator).tolist()
        return [max(0, self.characters.find("\n"))]

    def encode(self, text: str) -> np.ndarray:
        """ids (uint8 or uint32), one for each character. Raises UnknownCharacters."""
        if text.isascii():  # three times as fast
            ids = text.encode("ascii").translate(self._ascii)
            if UNKNOWN_BYTE not in ids:
                return np.frombuffer(ids, dtype=np.uint8)
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
        return super().to_dict() | {"characters": self.characters}


class ByteTokenizer(Tokenizer):
    """The 256 bytes of UTF-8: can encode any text and needs no training."""

    kind = "byte"
    vocab_size = 256

    def __init__(self, separator: str | None = None):
        self.separator = separator

    @property
    def start_ids(self) -> list[int]:
        """What a text without a prompt starts from: the separator, or else a newline."""
        return self.encode(self.separator or "\n").tolist()

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


class BPETokenizer(ByteTokenizer):
    """GPT-2's byte-pair encoding, through tiktoken: 50,257 tokens, about 4 bytes of English each.

    Its files are downloaded once, to data/downloads/gpt2_bpe. Raises UserError if that fails.

    separator: END_OF_TEXT, which is a single token, or None if the training data is one document.
    """

    kind = "bpe"

    def __init__(self, separator: str | None = END_OF_TEXT):
        import tiktoken  # here, because the other tokenizers don't need it

        from common import gpt2_bpe

        super().__init__(separator)
        os.environ["TIKTOKEN_CACHE_DIR"] = str(gpt2_bpe.fetch())
        self._encoding = tiktoken.get_encoding("gpt2")

    @property
    def vocab_size(self) -> int:
        return self._encoding.n_vocab

    @property
    def start_ids(self) -> list[int]:
        """What a text without a prompt starts from: the end-of-text token, or else a newline."""
        return [self._encoding.eot_token] if self.separator else self.encode("\n").tolist()

    def encode(self, text: str) -> np.ndarray:
        """ids (uint32); "<|endoftext|>" in the text is text like any other. Thread-safe."""
        encode = partial(self._encoding.encode_to_numpy, disallowed_special=())
        try:
            return encode(text)
        except ValueError:  # GPT-2's regular expression can't match very long white space
            return np.concatenate([encode(part) for part in re.split(r"(\s{1000})", text)])

    def encode_documents(self, texts: Sequence[str]) -> np.ndarray:
        """ids of texts with the end-of-text token between them, or a blank line if it is unused."""
        if not self.separator:
            return super().encode_documents(texts)
        ids = [self.encode(texts[0])]
        for text in texts[1:]:
            ids += [np.array(self.start_ids, dtype=np.uint32), self.encode(text)]
        return np.concatenate(ids)

    def to_bytes(self, ids: Sequence[int]) -> bytes:
        return self._encoding.decode_bytes(np.asarray(ids).tolist())

    def to_dict(self) -> dict:
        state = super().to_dict()
        if not state.pop("separator", None):
            state["separator"] = None
        return state


class TrainedBPETokenizer(BPETokenizer):
    """A byte-pair encoding that was trained on a text, through tiktoken.

    Its ids are the bytes of UTF-8, the merged tokens, and as the last one the end-of-text token;
    all of them count in the size that its kind names, such as bpe4096.
    """

    def __init__(self, merged: Sequence[bytes], separator: str | None = END_OF_TEXT):
        """merged: see common.bpe.train."""
        import tiktoken

        self.merged, self.separator = list(merged), separator
        self.tokens = [*bpe.BYTES, *merged]  # without the end-of-text token
        ranks = {token: i for i, token in enumerate(self.tokens)}
        if len(ranks) < len(self.tokens):
            raise ValueError("duplicate token in the vocabulary")
        self.kind = f"bpe{len(ranks) + 1}"
        self._encoding = tiktoken.Encoding(
            self.kind,
            pat_str=bpe.PATTERN,
            mergeable_ranks=ranks,
            special_tokens={END_OF_TEXT: len(ranks)},
        )

    def to_dict(self) -> dict:
        merged = [token.decode("latin-1") for token in self.merged]
        return Tokenizer.to_dict(self) | {"merged": merged}


KINDS = ("char", "byte", "bpe")  # and bpe256 to bpe65536


def trained_size(kind: str) -> int | None:
    """The vocabulary size in a kind such as "bpe4096"; None for the other kinds."""
    match = re.fullmatch("bpe([1-9][0-9]{0,8})", kind)
    return int(match[1]) if match else None


def from_dict(state: dict) -> Tokenizer:
    """The tokenizer whose to_dict() gave `state`. Raises ValueError if there is none."""
    tokenizer = None
    match {"separator": None} | state:
        case {
            "kind": "char",
            "characters": str(characters),
            "separator": str() | None as separator,
        }:
            tokenizer = CharTokenizer(characters, separator)
        case {"kind": "byte", "separator": str() | None as separator}:
            tokenizer = ByteTokenizer(separator)
        case {"kind": "bpe"} if "separator" not in state:  # GPT-2's own
            tokenizer = BPETokenizer()
        case {"kind": "bpe", "separator": "<|endoftext|>" | None as separator}:
            tokenizer = BPETokenizer(separator)
        case {"merged": list(merged), "separator": "<|endoftext|>" | None as separator} if all(
            isinstance(token, str) for token in merged
        ):
            tokens = [token.encode("latin-1") for token in merged]
            tokenizer = TrainedBPETokenizer(tokens, separator)
    divider = state.get("divider")
    if not tokenizer or tokenizer.kind != state["kind"] or not isinstance(divider, str | None):
        raise ValueError(f"not a tokenizer: {str(state)[:80]}")
    tokenizer.divider = divider
    return tokenizer


def difference(model: Tokenizer, dataset: Tokenizer) -> str | None:
    """How the ids of a model's tokenizer differ from a dataset's, in words; None if they don't."""
    if model.kind != dataset.kind:
        return f"the model uses {model.kind} tokens, the dataset {dataset.kind} tokens"
    if isinstance(model, TrainedBPETokenizer) and model.merged != dataset.merged:
        return f"both use {model.kind} tokens, but they were trained on different texts"
    if model.kind != "char" or model.characters == dataset.characters:
        return None
    differences = []
    if missing := sorted(set(dataset.characters) - set(model.characters)):
        differences.append(f"the model has no token for {listed(list(map(repr, missing)))}")
    if extra := sorted(set(model.characters) - set(dataset.characters)):
        differences.append(f"the dataset has no token for {listed(list(map(repr, extra)))}")
    return ", ".join(differences) or "the same characters have different ids"


def known_line_ends(text: str, tokenizer: Tokenizer) -> str:
    """The text, with "\\r\\n" and "\\r" as newlines if the tokenizer does not know "\\r"."""
    if tokenizer.kind == "char" and "\r" not in tokenizer.characters:
        return text.replace("\r\n", "\n").replace("\r", "\n")
    return text


def first_document(text: str, tokenizer: Tokenizer) -> str:
    """The text up to the end of its first document, if the tokenizer's data has documents."""
    return text.partition(tokenizer.separator)[0] if tokenizer.separator else text


def find_end_id(tokenizer: Tokenizer) -> int | None:
    """The token that ends a document, if there is one."""
    if tokenizer.separator and len(tokenizer.start_ids) == 1:
        return tokenizer.start_ids[0]
    return None
