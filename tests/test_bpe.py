"""Vocabularies that are trained on the text of a dataset."""

import json
import os
import random
import re
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers import ROOT, TINY, contents, error_line, verses
from tokenizers import Tokenizer

import prepare
from common import bpe, files, survey
from common.dataset import load_dataset
from common.errors import UserError
from common.tokenizer import TrainedBPETokenizer, from_dict
from config import Config
from data import Corpus, documents
from export import describe_tokenizer
from train import train


def write(name: str, text: str) -> str:
    Path(name).write_bytes(text.encode())
    return name


def tokens_of(name: str) -> list[bytes]:
    return load_dataset(name).tokenizer.tokens


# training


def test_a_vocabulary_is_that_of_the_paper():
    """The merges of Sennrich et al., 2016, figure 1, apart from its end-of-word mark."""
    words = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    merged = bpe.train(["\n".join([word] * n) for word, n in words.items()], 4)
    assert merged == [b"es", b"est", b"lo", b"low"]


def test_tokens_stay_in_the_parts_of_the_text():
    text = "a_name = call(x, 12345)\n\n    # don't  stop: नमस्ते!\n" * 9
    merged = bpe.train([text], 1000)
    longest = [t.decode() for t in merged if not any(t != u and t in u for u in merged)]
    parts = ["a", "_", "name", " =", " call", "(", "x", ",", " 12345", ")", "\n\n   ", " #"]
    parts += [" don", "'t", " ", " stop", ":", " नमस", "्", "त", "े!", "\n"]
    assert set(longest) <= set(parts)
    assert {"name", " call", "\n\n   ", " नमस", " 12345"} <= set(longest)


def test_training_is_deterministic(tmp_path):
    """Not even the number of threads matters, or the order of the texts."""
    texts = [verses(30, seed=seed) + "é漢字😀\r\n" * seed for seed in range(40)]
    path = tmp_path / "texts.json"
    program = f"import json; from common import bpe; texts = json.load(open({str(path)!r}))"
    program += "; print(bpe.train(texts, 200))"
    printed = []
    for threads in ("1", "3"):
        path.write_text(json.dumps(texts))
        environment = {**os.environ, "RAYON_NUM_THREADS": threads, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", program]
        printed.append(subprocess.run(command, env=environment, capture_output=True).stdout)
        texts.reverse()
    assert printed[0] == printed[1] == f"{bpe.train(texts, 200)}\n".encode()


def test_tokens_have_at_most_128_bytes():
    assert 64 < max(map(len, bpe.train(["-" * 10_000 + "\n"] * 3, 1000))) <= 128


def test_long_words_are_cut_for_training_only():
    text = "word " * 9 + "x" * 2500 + " " * 1200 + "\nend"
    parts = bpe.PARTS.findall(text)
    assert "".join(parts) == text
    assert max(len(run) for part in parts for run in re.findall(r"\S+|\s+", part)) == 1000


# a dataset


def test_a_dataset_with_its_own_vocabulary(folder, capsys):
    text = verses(400)
    write("verses.txt", text)
    assert prepare.main(["verses_bpe270", "--input", "verses.txt"]) == 0
    dataset = load_dataset("verses_bpe270")
    tokenizer = dataset.tokenizer
    assert tokenizer.vocab_size == 270
    assert tokenizer.decode(dataset.train) + tokenizer.decode(dataset.val) == text
    assert len(dataset.train) < len(text) / 2
    assert tokenizer.start_ids == tokenizer.encode("\n").tolist()  # training shows no end of text
    printed = capsys.readouterr().out
    assert f"on {int(0.9 * len(text)):,} characters of the training part" in printed
    assert "  vocabulary of 270 tokens;" in printed
    assert "  most frequent tokens: '\\n' '.' " in printed
    assert "  longest tokens (words only): ' loves' ' lord' " in printed
    assert "embedding at the default width of 384: 103,680 of the model's 10,726,272" in printed
    assert "parameters (1%)" in printed


def test_the_end_of_text_token_separates_documents(folder):
    texts = [f"document {i}: {verses(9, seed=i)}" for i in range(20)]
    prepare.make_dataset("docs_bpe270", "bpe270", Corpus("", lambda: documents(texts)))
    dataset = load_dataset("docs_bpe270")
    assert dataset.tokenizer.start_ids == [269]
    parts = [dataset.tokenizer.decode(ids) for ids in (dataset.train, dataset.val)]
    assert sorted("<|endoftext|>".join(parts).split("<|endoftext|>")) == sorted(texts)
    assert (dataset.train == 269).sum() == 17


def test_a_vocabulary_is_trained_on_the_training_part_only(folder):
    for name, end in (("a", "zebra " * 100), ("b", "tiger " * 100)):
        prepare.prepare(f"{name}_bpe256", [write(f"{name}.txt", verses(400) + end)])
    assert tokens_of("a_bpe256") == tokens_of("b_bpe256")


def test_the_smallest_vocabulary_counts_the_bytes_and_the_end_of_text(folder):
    prepare.prepare("a_bpe256", [write("a.txt", verses(100))])
    tokens = tokens_of("a_bpe256")
    assert tokens[:128] == [bytes([byte]) for byte in range(128)]
    assert [len(token) for token in tokens[243:]].count(1) == 0
    assert len(tokens) == 255


def test_ids_of_the_largest_vocabulary_fit_into_uint16():
    pairs = [left + right for left in bpe.BYTES for right in bpe.BYTES]
    merged = pairs + [b"a" + pair for pair in pairs]
    tokenizer = TrainedBPETokenizer(merged[: 65_536 - 243 - 1])
    assert tokenizer.kind == "bpe65536"
    assert tokenizer.start_ids == [65_535]


def test_pieces_of_a_text_have_the_tokens_of_the_whole(folder, monkeypatch):
    text = verses(100) + "\n\n  indented\r\n\tmore  \n \n\n" + "漢字 😀 \u00a0\n\nend of it\n" * 20
    prepare.prepare("a_bpe270", [write("a.txt", text)], val_fraction=0.001)
    before = contents(Path("data"))
    monkeypatch.setattr(files, "BLOCK_BYTES", 150)
    monkeypatch.setattr(prepare, "JOB_CHARACTERS", 150)
    prepare.prepare("a_bpe270", ["a.txt"], val_fraction=0.001)
    assert contents(Path("data")) == before


def test_a_run_prepares_its_vocabulary(folder, monkeypatch):
    Path("lib").mkdir()
    for i in range(3):
        write(f"lib/{i}.py", f"# {i}\n" + verses(50, seed=i))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "lib")
    train(Config(**TINY | {"dataset": "python_bpe260", "max_steps": 1, "warmup_steps": 0}))
    assert load_dataset("python_bpe260").tokenizer.vocab_size == 260


# large texts


def test_a_sample_of_a_large_text_is_spread_over_it(monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_CHARACTERS", 20_000)
    words = [f"{i:08}" for i in range(20_000)]
    pieces = [("train", i, word) for i, word in enumerate(words)] + [("val", -1, "never")] * 99
    chosen = survey.training_sample(pieces, 160_000)
    assert chosen == survey.training_sample(pieces, 160_000)
    assert len(set(chosen)) == len(chosen)
    assert set(chosen) <= set(words)
    assert 18_000 < len("".join(chosen)) < 22_000
    assert 9_000 < sum(map(int, chosen)) / len(chosen) < 11_000


def test_copies_of_documents_do_not_make_the_sample_smaller(folder, monkeypatch, capsys):
    monkeypatch.setattr(survey, "SAMPLE_CHARACTERS", 100_000)
    parts = [verses(20, seed) for seed in range(30)]
    Path("texts.txt").write_text("|".join(parts * 20))
    prepare.prepare("texts_bpe260", ["texts.txt"], separator="|")
    characters = load_dataset("texts_bpe260").meta["train"]["characters"]
    assert f"training a vocabulary on {characters:,} characters" in capsys.readouterr().out


def test_a_long_document_is_sampled_in_parts(monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_CHARACTERS", 20_000)
    monkeypatch.setattr(survey, "BLOCK_BYTES", 200)
    text = verses(4_000)
    chosen = survey.training_sample([("train", 0, text)], len(text))
    assert 16_000 < len("".join(chosen)) < 24_000
    assert all(part in text for part in chosen)


def test_a_sample_has_a_limited_number_of_different_words(monkeypatch):
    monkeypatch.setattr(survey, "SAMPLE_WORD_BYTES", 10_000)
    different = [("train", i, f"字{i:07}") for i in range(5_000)]
    assert len(survey.training_sample(different, 40_000)) == 1_000  # of 10 bytes each
    same = [("train", i, "字0000000") for i in range(5_000)]
    assert len(survey.training_sample(same, 40_000)) == 5_000


# bad input


@pytest.mark.parametrize(
    "name, words",
    [
        ("verses_bpe255", "a trained vocabulary has 256 to 65,536 tokens (bpe256 to bpe65536)"),
        ("verses_bpe65537", "a trained vocabulary has 256 to 65,536 tokens"),
        ("verses_bpe" + "9" * 5000, "dataset names are <corpus>_<tokenizer>"),
        ("verses_bpe0512", "or bpe with a vocabulary size, such as bpe4096; got 'verses_bpe0512'"),
        ("verses_bpe4k", "dataset names are"),
        ("verses_bpe٥٠٠", "dataset names are"),
        ("verses_bpe16384", "use a smaller vocabulary (..._bpe256) or"),
    ],
)
def test_impossible_vocabularies_are_refused(folder, capsys, name, words):
    write("verses.txt", verses(100))
    before = contents(folder)
    assert prepare.main([name, "--input", "verses.txt"]) in (1, 2)
    assert words in error_line(capsys)
    assert {path for path in contents(folder) if path.name != "data"} == set(before)


def test_the_largest_vocabulary_that_a_text_fills_is_named(folder):
    write("a.txt", "a")
    with pytest.raises(
        UserError, match=r"only 244 tokens, not 256: use a smaller vocabulary \(\.\.\._by"
    ):
        prepare.prepare("a_bpe256", ["a.txt"])
    write("verses.txt", verses(100))
    with pytest.raises(UserError) as error:
        prepare.prepare("verses_bpe4096", ["verses.txt"])
    most = int(str(error.value).split(" only ")[1].split()[0])
    prepare.prepare(f"verses_bpe{most}", ["verses.txt"])
    with pytest.raises(UserError, match=f"only {most} tokens, not {most + 1}"):
        prepare.prepare(f"verses_bpe{most + 1}", ["verses.txt"])


# the vocabulary of another dataset


def test_the_vocabulary_of_another_dataset(folder, capsys):
    prepare.prepare("a_bpe270", [write("a.txt", verses(200))])
    write("b.txt", "A line\n\nAnother é line\n\nThe last")
    options = ["--input", "b.txt", "--tokenizer_of", "a_bpe270", "--separator", r"\n\n"]
    assert prepare.main(["b_bpe270", *options]) == 0
    tokenizer = load_dataset("b_bpe270").tokenizer
    assert tokenizer.tokens == tokens_of("a_bpe270")
    assert tokenizer.start_ids == [269]  # these are documents
    capsys.readouterr()
    assert prepare.main(["b_bpe400", *options]) == 2
    expected = "a_bpe270 uses bpe270 tokens, not bpe400 tokens: name yours ..._bpe270"
    assert expected in error_line(capsys)


def test_a_model_is_fine_tuned_with_its_own_vocabulary_only(folder, tiny):
    for name in ("a_bpe270", "b_bpe270", "b_bpe260"):
        prepare.prepare(name, [write(name, verses(200, seed=ord(name[0])))])
    once = {"max_steps": 1, "warmup_steps": 0}
    train(tiny(dataset="a_bpe270", run_name="first", **once))
    more = {"run_name": "more", "init_from": "out/first_best.pt", **once}
    advice = "prepare it as <name>_bpe270 with --tokenizer_of a_bpe270$"
    for name, problem in (
        ("b_bpe270", "both use bpe270 tokens, but they were trained on different texts"),
        ("b_bpe260", "the model uses bpe270 tokens, the dataset bpe260 tokens"),
    ):
        with pytest.raises(UserError, match=f"{problem}; {advice}"):
            train(tiny(dataset=name, **more))
    prepare.prepare("b_bpe270", ["b_bpe270"], tokenizer_of="a_bpe270")
    train(tiny(dataset="b_bpe270", **more))


# transformers


def theirs_of(ours: TrainedBPETokenizer) -> Tokenizer:
    """The same as a tokenizer of `tokenizers`."""
    return Tokenizer.from_str(json.dumps(describe_tokenizer(ours)))


def test_random_texts_have_equal_ids_in_transformers():
    rng = random.Random(0)
    for alphabet in ("ab", "a b", "aA1_ \n", "é漢 '"):
        texts = ["".join(rng.choices(alphabet, k=2_000)) for _ in range(3)]
        ours = TrainedBPETokenizer(bpe.train(texts, 200))
        theirs = theirs_of(ours)
        tokens = [token.decode("utf-8", "ignore") for token in ours.tokens[len(bpe.BYTES) :]]
        for _ in range(500):
            text = "".join(rng.choices([*alphabet, *tokens], k=rng.randint(1, 20)))
            assert theirs.encode(text).ids == ours.encode(text).tolist(), text


def test_all_kinds_of_characters_have_equal_ids_in_transformers():
    """Both libraries have tables of letters, numbers and white space of their own."""
    text = "".join(f"a{mark} {mark}b1{mark}{mark}2 " for mark in "_é1.\u0301 \n" * 20)
    ours = TrainedBPETokenizer(bpe.train([text], 200))
    theirs = theirs_of(ours)
    codes = [*range(0x1000), *range(0x1000, 0xD800, 127), *range(0xE000, 0x110000, 127)]
    for i in range(0, len(codes), 32):
        text = "".join(f"a{c} {c}b1{c}{c}2 " for c in map(chr, codes[i : i + 32]))
        assert theirs.encode(text).ids == ours.encode(text).tolist()


def test_merges_of_transformers_are_all_pairs_that_make_a_token():
    ids, merges = bpe.vocab_and_merges([b"a", b"b", b" ", b"aa", b"aaa", b" b"])
    assert ids == {"a": 0, "b": 1, "Ġ": 2, "aa": 3, "aaa": 4, "Ġb": 5}
    assert merges == ["a a", "a aa", "aa a", "Ġ b"]
    ours = TrainedBPETokenizer([b"abc"])  # not made of two tokens, but a whole part of a text
    assert theirs_of(ours).encode("abc").ids == ours.encode("abc").tolist() == [243]


def test_a_checkpoint_keeps_the_vocabulary_as_plain_text():
    ours = TrainedBPETokenizer([b"ab", "é".encode()])
    state = json.loads(json.dumps(ours.to_dict()))
    assert state == {
        "kind": "bpe246",
        "merged": ["ab", "\xc3\xa9"],
        "separator": "<|endoftext|>",
    }
    assert from_dict(state).encode("abé").tolist() == [243, 244]
