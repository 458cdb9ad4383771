from functools import cache

import numpy as np
import pytest

from common import bpe
from common.errors import UserError
from common.tokenizer import (
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TrainedBPETokenizer,
    UnknownCharacters,
    difference,
    first_document,
    from_dict,
    known_line_ends,
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
KINDS = ["char", "byte", "bpe", "bpe300"]


@cache
def make(kind):
    """A tokenizer of this kind that knows TEXTS."""
    if kind == "char":
        return CharTokenizer("".join(sorted(set("".join(TEXTS)))))
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe300":
        return TrainedBPETokenizer(bpe.train(TEXTS * 2, 300 - len(bpe.BYTES) - 1))
    try:
        return BPETokenizer()
    except UserError as error:  # no connection
        pytest.skip(str(error))


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(text, kind):
    tokenizer = make(kind)
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert all(ids < tokenizer.vocab_size)
    decode = tokenizer.stream_decoder()
    assert "".join(decode([i]) for i in ids.tolist()) == text


@pytest.mark.parametrize("kind", KINDS)
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
    with pytest.raises(UnknownCharacters, match="'x', 'ß'") as error:
        CharTokenizer("abc").encode("axbßx")
    assert error.value.characters == "xß"


def test_bytes_that_are_not_utf8_do_not_break_decoding():
    assert ByteTokenizer().decode([0xFF, ord("a")]) == "\ufffda"


def test_a_stream_decoder_keeps_unfinished_characters():
    decode = ByteTokenizer().stream_decoder()
    assert [decode([b]) for b in "é!".encode()] == ["", "é", "!"]


@pytest.mark.parametrize(
    "characters, separator, start_ids",
    [
        ("\nab", None, [0]),
        ("\t\nab", None, [1]),
        ("ab", None, [0]),
        ("\nab", "b", [2]),
        ("\nab", "\n\n", [0, 0]),
    ],
)
def test_a_text_starts_after_a_separator_or_a_newline(characters, separator, start_ids):
    assert CharTokenizer(characters, separator).start_ids == start_ids


@pytest.mark.parametrize("kind", KINDS)
def test_documents_are_encoded_with_the_separator_between_them(kind):
    tokenizer = make(kind)
    if kind in ("char", "byte"):
        tokenizer.separator = "or"
    ids = tokenizer.encode_documents(["To be", "not", "é"])
    assert tokenizer.decode(ids) == tokenizer.separator.join(["To be", "not", "é"])
    tokenizer.divider = "\n%\n"
    again = from_dict(tokenizer.to_dict())
    assert (again.separator, again.divider) == (tokenizer.separator, "\n%\n")
    tokenizer.divider = None
    if kind in ("char", "byte"):
        tokenizer.separator = None


@pytest.mark.parametrize("space", [" ", "\n", " \n", "\u00a0"])
@pytest.mark.parametrize("kind", ["bpe", "bpe300"])
def test_bpe_encodes_a_million_white_space_characters(kind, space):
    tokenizer = make(kind)
    text = "before the space" + space * 1_000_000 + "after the space"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    start = tokenizer.encode("before the space").tolist()
    assert ids[: len(start)].tolist() == start


def test_errors_about_many_characters_are_short():
    many = "".join(map(chr, range(0x4E00, 0x9FFF)))
    with pytest.raises(UnknownCharacters) as error:
        CharTokenizer("abc").encode(many)
    assert len(str(error.value)) < 300
    assert len(difference(CharTokenizer("abc"), CharTokenizer(many))) < 500


def test_line_ends_of_windows_are_known_to_every_tokenizer():
    assert known_line_ends("a\r\nb", CharTokenizer("\nab")) == "a\nb"
    assert known_line_ends("a\r\nb", CharTokenizer("\n\rab")) == "a\r\nb"
    assert known_line_ends("a\r\nb", ByteTokenizer()) == "a\r\nb"


def test_the_first_document_ends_before_the_separator():
    assert first_document("ab\ncd\n", CharTokenizer("\nabcd", "\n")) == "ab"
    assert first_document("ab\ncd\n", CharTokenizer("\nabcd")) == "ab\ncd\n"


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"kind": "words"},
        {"kind": "char"},
        {"kind": "char", "characters": "aa"},
        {"kind": "char", "characters": "ab", "separator": "c"},
        {"kind": "bpe", "separator": "c"},
        {"kind": "bpe246", "merged": ["ab"], "separator": "c"},
        {"kind": "bpe246"},
        {"kind": "bpe247", "merged": ["ab"]},
        {"kind": "bpe246", "merged": ["a"]},
        {"kind": "bpe247", "merged": ["ab", "ab"]},
        {"kind": "bpe245", "merged": ["Ā"]},
        {"kind": "bpe245", "merged": [1]},
    ],
)
def test_invalid_states_are_refused(state):
    with pytest.raises(ValueError):
        from_dict(state)


def test_bpe_is_gpt2s():
    tokenizer = make("bpe")
    assert tokenizer.vocab_size == 50257
    assert tokenizer.start_ids == [50256]
    assert tokenizer.encode("Hello world").tolist() == [15496, 995]  # as published with GPT-2
    assert tokenizer.decode([50256]) == "<|endoftext|>"


@pytest.mark.parametrize("kind", ["bpe", "bpe300"])
def test_without_documents_bpe_starts_a_text_with_a_newline(kind):
    tokenizer = from_dict(make(kind).to_dict() | {"separator": None})
    assert tokenizer.decode(tokenizer.start_ids) == "\n"
    assert tokenizer.decode(tokenizer.encode_documents(["a", "b"])) == "a\n\nb"
    assert from_dict(tokenizer.to_dict()).separator is None
    assert from_dict(make(kind).to_dict()).start_ids == [make(kind).vocab_size - 1]


@pytest.mark.parametrize("kind", ["bpe", "bpe300"])
def test_bpe_reads_its_end_of_text_mark_in_a_text_as_text(kind):
    tokenizer = make(kind)
    ids = tokenizer.encode("a <|endoftext|> in a text")
    assert tokenizer.vocab_size - 1 not in ids
    assert tokenizer.decode(ids) == "a <|endoftext|> in a text"


@pytest.mark.parametrize(
    "model, dataset, words",
    [
        (CharTokenizer("ab"), CharTokenizer("ab"), None),
        (ByteTokenizer(), ByteTokenizer(), None),
        (CharTokenizer("ab"), ByteTokenizer(), "char tokens, the dataset byte tokens"),
        (CharTokenizer("abc"), CharTokenizer("bcd"), "for 'd', the dataset has no token for 'a'"),
        (CharTokenizer("ab"), CharTokenizer("ba"), "the same characters have different ids"),
        (TrainedBPETokenizer([b"ab"]), TrainedBPETokenizer([b"ab"], None), None),
        (TrainedBPETokenizer([b"ab"]), TrainedBPETokenizer([b"ba"]), "on different texts"),
        (
            TrainedBPETokenizer([b"ab"]),
            TrainedBPETokenizer([]),
            "bpe245 tokens, the dataset bpe244",
        ),
    ],
)
def test_differences_between_tokenizers_are_said(model, dataset, words):
    found = difference(model, dataset)
    assert found is None if words is None else words in found
