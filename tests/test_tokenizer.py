from functools import cache

import numpy as np
import pytest

from common.errors import UserError
from common.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    UnknownCharacters,
    from_dict,
)

TEXTS = [
    "To be, or not to be",
    "a\r\nb\rc\n\td",
    "naïve café — “quoted” …",
    "e\u0301 and é, \U0001f468\u200d\U0001f469\u200d\U0001f467, 🏳️‍🌈",
    "שלום עולם مرحبا",
    "nul \0 and \ufeff and \x7f",
    "",
]


@cache
def make(kind):
    """A tokenizer of this kind that knows TEXTS; GPT-2's files come from wherever the project finds them."""
    makers = {
        "char": lambda: CharTokenizer.from_text(TEXTS),
        "byte": ByteTokenizer,
        "bpe": BPETokenizer,
    }
    try:
        return makers[kind]()
    except UserError as error:  # neither its source nor a package index can be reached
        pytest.skip(str(error))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_round_trip(text, kind):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert len(ids) == len(text if kind == "char" else text.encode()) or kind == "bpe"
    assert len(ids) == 0 or ids.max() < tokenizer.vocab_size
    again = from_dict(tokenizer.to_dict())
    assert np.array_equal(again.encode(text), ids) and again.vocab_size == tokenizer.vocab_size
    decode = tokenizer.stream_decoder()
    assert "".join(decode([i]) for i in ids.tolist()) == text


def test_char_ids_are_places_in_the_sorted_vocabulary():
    tokenizer = CharTokenizer.from_text(["banana"])
    assert tokenizer.characters == "abn"
    assert tokenizer.encode("nab").tolist() == [2, 0, 1]


def test_unknown_characters_are_named():
    with pytest.raises(UnknownCharacters, match="'x' 'ß'") as error:
        CharTokenizer("abc").encode("axbßx")
    assert error.value.characters == "xß"


def test_bytes_that_are_no_text_do_not_break_decoding():
    assert ByteTokenizer().decode([0xFF, ord("a")]) == "\ufffda"
    decode = ByteTokenizer().stream_decoder()
    assert [decode([b]) for b in "é!".encode()] == ["", "é", "!"]


def test_a_text_starts_after_a_new_line_where_there_is_one():
    assert CharTokenizer("\nab").start_id == 0 and CharTokenizer("\tab\n"[::-1]).start_id == 0
    assert CharTokenizer("ab").start_id == 0 and CharTokenizer("\t\nab").start_id == 1
    assert ByteTokenizer().decode([ByteTokenizer.start_id]) == "\n"


@pytest.mark.parametrize(
    "state", [{}, {"kind": "words"}, {"kind": "char"}, {"kind": "char", "characters": "aa"}]
)
def test_what_is_no_tokenizer_is_refused(state):
    with pytest.raises(ValueError):
        from_dict(state)


def test_bpe_is_gpt2s():
    tokenizer = make("bpe")
    assert tokenizer.vocab_size == 50257 and tokenizer.start_id == 50256
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]  # as published with GPT-2
    assert 50256 not in tokenizer.encode("a <|endoftext|> in a text is text")
    assert tokenizer.decode([50256]) == "<|endoftext|>"
