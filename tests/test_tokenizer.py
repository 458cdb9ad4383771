from functools import cache

import numpy as np
import pytest

from common.errors import UserError
from common.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    UnknownCharacters,
    difference,
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
    """A tokenizer of this kind that knows TEXTS."""
    if kind == "char":
        return CharTokenizer("".join(sorted(set("".join(TEXTS)))))
    if kind == "byte":
        return ByteTokenizer()
    try:
        return BPETokenizer()
    except UserError as error:  # no connection
        pytest.skip(str(error))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_round_trip(text, kind):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(ids < tokenizer.vocab_size)
    decode = tokenizer.stream_decoder()
    assert "".join(decode([i]) for i in ids.tolist()) == text


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_a_tokenizer_can_be_saved(kind):
    tokenizer = make(kind)
    again = from_dict(tokenizer.to_dict())
    text = "".join(TEXTS)
    assert again.vocab_size == tokenizer.vocab_size
    assert np.array_equal(again.encode(text), tokenizer.encode(text))


def test_char_ids_are_indices_into_the_vocabulary():
    assert CharTokenizer("abn").encode("nab").tolist() == [2, 0, 1]


def test_byte_ids_are_bytes():
    assert bytes(ByteTokenizer().encode("é!")) == "é!".encode()


def test_unknown_characters_are_named():
    with pytest.raises(UnknownCharacters, match="'x' 'ß'") as error:
        CharTokenizer("abc").encode("axbßx")
    assert error.value.characters == "xß"


def test_bytes_that_are_not_utf8_do_not_break_decoding():
    assert ByteTokenizer().decode([0xFF, ord("a")]) == "\ufffda"


def test_a_stream_decoder_keeps_unfinished_characters():
    decode = ByteTokenizer().stream_decoder()
    assert [decode([b]) for b in "é!".encode()] == ["", "é", "!"]


@pytest.mark.parametrize("characters, start_id", [("\nab", 0), ("\t\nab", 1), ("ab", 0)])
def test_a_text_starts_after_a_newline_if_there_is_one(characters, start_id):
    assert CharTokenizer(characters).start_id == start_id


@pytest.mark.parametrize(
    "state", [{}, {"kind": "words"}, {"kind": "char"}, {"kind": "char", "characters": "aa"}]
)
def test_invalid_states_are_refused(state):
    with pytest.raises(ValueError):
        from_dict(state)


def test_bpe_is_gpt2s():
    tokenizer = make("bpe")
    assert tokenizer.vocab_size == 50257
    assert tokenizer.start_id == 50256
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]  # as published with GPT-2
    assert tokenizer.decode([50256]) == "<|endoftext|>"


def test_bpe_reads_its_end_of_text_mark_in_a_text_as_text():
    assert 50256 not in make("bpe").encode("a <|endoftext|> in a text")


@pytest.mark.parametrize(
    "model, dataset, words",
    [
        (CharTokenizer("ab"), CharTokenizer("ab"), None),
        (ByteTokenizer(), ByteTokenizer(), None),
        (CharTokenizer("ab"), ByteTokenizer(), "the model uses char tokens, the dataset byte tokens"),
        (CharTokenizer("abc"), CharTokenizer("bcd"), "no token for 'd', the dataset has no token for 'a'"),
        (CharTokenizer("ab"), CharTokenizer("ba"), "the same characters have different ids"),
    ],
)  # fmt: skip
def test_differences_between_tokenizers_are_said(model, dataset, words):
    found = difference(model, dataset)
    assert found is None if words is None else words in found
