import json
import os
import re
import sys
import sysconfig
import types
import weakref
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT, contents, verses
from server import reply, serve

import prepare
from common import files, survey
from common.dataset import load_dataset
from common.errors import UserError
from data import END, Corpus, documents


def decoded(name: str) -> tuple[str, str]:
    """The text of both splits of a dataset."""
    dataset = load_dataset(name)
    return dataset.tokenizer.decode(dataset.train), dataset.tokenizer.decode(dataset.val)


def documents_of(name: str) -> tuple[list[str], list[str]]:
    """The documents in both splits of a dataset."""
    separator = load_dataset(name).tokenizer.separator
    train, val = decoded(name)
    return train.split(separator), val.split(separator)


def small_pieces(monkeypatch, size: int) -> None:
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    monkeypatch.setattr(prepare, "JOB_CHARACTERS", size)


# one text


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_end_of_a_single_text_is_held_back(folder, kind, capsys):
    text = verses(300) + "é\r\n\U0001f600\n"
    Path("my notes.txt").write_bytes(text.encode())
    assert prepare.main([f"notes_{kind}", "--input", "my notes.txt"]) == 0
    train, val = decoded(f"notes_{kind}")
    assert train + val == text
    assert len(train) == int(len(text) * 0.9)
    meta = load_dataset(f"notes_{kind}").meta
    for split, part in (("train", train), ("val", val)):
        assert meta[split]["characters"] == len(part)
        assert meta[split]["bytes"] == len(part.encode())
    printed = capsys.readouterr().out
    assert f"{len(train):,} characters" in printed
    assert meta["sha256"] in printed


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
@pytest.mark.parametrize("count", [1, 9])
def test_the_size_of_pieces_changes_nothing(folder, kind, count, monkeypatch, request):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    names = [f"{i}.txt" for i in range(count)]
    for i, name in enumerate(names):
        text = verses(i * 20 + 20, seed=i) + "é\n\n  漢字 \n😀\r\n" * 9
        Path(name).write_bytes(text.encode())
    prepare.prepare(f"docs_{kind}", names, val_fraction=0.3)
    whole = contents(folder / "data" / f"docs_{kind}")
    small_pieces(monkeypatch, 157)
    prepare.prepare(f"docs_{kind}", names, val_fraction=0.3)
    assert contents(folder / "data" / f"docs_{kind}") == whole


def test_bpe_of_pieces_is_bpe_of_the_whole(bpe, monkeypatch):
    text = verses(100) + "\n\n  indented\r\n\tmore  \n \n\n" + "漢字 😀 \u00a0\n\nend of it\n" * 20
    Path("a.txt").write_bytes(text.encode())
    small_pieces(monkeypatch, 150)
    prepare.prepare("a_bpe", ["a.txt"], val_fraction=0.001)
    dataset = load_dataset("a_bpe")
    whole = dataset.tokenizer.encode(text)
    same = len(dataset.train) - 2  # the last tokens of train were cut by the split
    assert dataset.train[:same].tolist() == whole[:same].tolist()
    assert "".join(decoded("a_bpe")) == text


@pytest.mark.parametrize("word", ["word", "end.", "漢字", "a" * 30])
@pytest.mark.parametrize("space", ["\n", " ", "\r\n", "\n\n  ", "\u3000"])
def test_pieces_are_cut_between_a_word_and_white_space(folder, monkeypatch, word, space):
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    Path("a.txt").write_bytes((word + space).encode() * 100)
    first, *others = files.read_pieces(Path("a.txt"))
    assert len(others) > 3
    for piece in others:
        assert piece.startswith(space[0])
        assert not first[-1].isspace()
        first = piece


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_byte_order_mark_is_not_part_of_the_text(folder, kind):
    text = "é a\r\nb " * 20
    Path("marked.txt").write_bytes(text.encode("utf-8-sig"))
    prepare.prepare(f"marked_{kind}", ["marked.txt"])
    assert "".join(decoded(f"marked_{kind}")) == text


def test_the_error_for_other_encodings_counts_bytes_from_the_start_of_the_file(folder, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    Path("a.txt").write_bytes(b"\xef\xbb\xbf" + b"0123456\n" * 200 + "é".encode()[:1])
    with pytest.raises(UserError, match="byte 1,603 is 0xc3"):
        prepare.prepare("a_byte", ["a.txt"])


# documents


def test_documents_are_split_whole_with_a_separator(folder):
    texts = [f"document {i}: {verses(1, seed=i)}" for i in range(20)]
    Path("texts/deep").mkdir(parents=True)
    for i, text in enumerate(texts):
        where = "texts/deep" if i % 2 else "texts"
        Path(where, f"{i:02}.{'md' if i % 3 else 'txt'}").write_text(text)
    Path("texts/picture.png").write_bytes(b"\x89PNG")
    Path("texts/empty.txt").write_text("")
    prepare.prepare("texts_char", ["texts"], val_fraction=0.2)
    train, val = documents_of("texts_char")
    assert sorted(train + val) == sorted(texts)
    meta = load_dataset("texts_char").meta
    assert meta["documents"] == 20
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == sum(map(len, texts))
    assert meta["train"]["tokens"] == meta["train"]["bytes"] + len(train) - 1


@pytest.mark.parametrize(
    "sizes, fraction, low, high",
    [
        ([2_000, 140_706], 0.1, 0.01, 0.02),  # whole documents can't come nearer
        ([140_706, 2_000], 0.1, 0.01, 0.02),
        ([100_000] + [1_000] * 300, 0.1, 0.099, 0.101),
        ([1] * 500 + [10_000] * 20, 0.1, 0.09, 0.11),
        ([10] * 10, 0.001, 0.1, 0.1),  # at least one document
        ([10] * 10, 0.999, 0.9, 0.9),  # and one to train on
        ([5, 5], 0.1, 0.5, 0.5),
        ([int(100 * 1.2**i) for i in range(50)], 0.1, 0.095, 0.105),
    ],
)
def test_the_split_is_by_size(folder, sizes, fraction, low, high, capsys):
    texts = [f"{i:04}".ljust(size, "x") for i, size in enumerate(sizes)]
    prepare.make_dataset("sizes_byte", "byte", Corpus("", lambda: documents(texts)), fraction)
    meta = load_dataset("sizes_byte").meta
    assert low <= meta["val"]["bytes"] / sum(map(len, texts)) <= high
    far = abs(meta["val"]["bytes"] / sum(map(len, texts)) - fraction) > 0.2 * fraction
    assert ("of the text is for validation instead of" in capsys.readouterr().out) == far


def test_another_split_is_another_dataset(folder):
    texts = [f"document {i}" for i in range(10, 60)]  # any five are of equal size
    prints = set()
    for seed in (1337, 1338):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(survey, "SPLIT_SEED", seed)
            prepare.make_dataset("docs_byte", "byte", Corpus("", lambda: documents(texts)))
        prints.add(load_dataset("docs_byte").fingerprint)
    assert len(prints) == 2


def test_the_fingerprint_of_a_single_text_is_that_of_earlier_versions(dataset):
    assert load_dataset("verses_char").fingerprint == (
        "c850c0bb74f7268d8455c3971ce1dd3ac98e9b9f2d1785373a8ddb96ccf55713"
    )


def test_equal_documents_count_once(folder, capsys):
    texts = ["one", "two", "one", "three", "two", "one"]
    prepare.make_dataset("docs_char", "char", Corpus("", lambda: documents(texts)), 0.3)
    train, val = documents_of("docs_char")
    assert sorted(train + val) == ["one", "three", "two"]
    assert load_dataset("docs_char").meta["documents"] == 3
    assert "3 of 6 documents are copies of others" in capsys.readouterr().out


@pytest.mark.parametrize("size", [1 << 16, 7])
@pytest.mark.parametrize("copied", [str, lambda s: s + "\n \n", lambda s: s.replace("\n", "\r\n")])
def test_a_text_and_its_copy_are_a_single_text(folder, copied, size):
    text = verses(50)
    first, second = (
        [one[i : i + size] for i in range(0, len(one), size)] for one in (text, copied(text))
    )
    prepare.make_dataset("docs_char", "char", Corpus("", lambda: [*first, END, *second]))
    assert "".join(decoded("docs_char")) == text
    assert "\r" not in load_dataset("docs_char").tokenizer.characters


def test_documents_that_differ_within_a_line_are_no_copies(folder):
    texts = ["one two", "one  two", "onetwo", " one two", "one\ntwo"]
    prepare.make_dataset("docs_char", "char", Corpus("", lambda: documents(texts)))
    assert load_dataset("docs_char").meta["documents"] == 5


def test_documents_of_white_space_are_left_out(folder):
    texts = ["\n", "one", " \n", "", "\n two"]
    prepare.make_dataset("docs_char", "char", Corpus("", lambda: documents(texts)), 0.5)
    assert sorted(decoded("docs_char")) == ["\n two", "one"]


def chosen(sizes: list[int]) -> np.ndarray:
    """The sizes of the documents for validation, a tenth of documents of these sizes."""
    texts = [chr(0x100 + i) * size for i, size in enumerate(sizes)]
    found = survey.survey(Corpus("", lambda: documents(texts)))
    return np.array(sizes)[survey.assign(found, 0.1) == survey.VAL]


def test_a_near_target_is_reached(capsys):
    for short in range(400, 600, 10):
        sizes = chosen([90] * 5 + [1] * short)
        assert sizes.sum() == pytest.approx(0.1 * (450 + short), rel=0.2)
    assert set(chosen([20_000] * 9 + [1_000])) >= {20_000}
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("long", [10, 12, 20])
def test_short_documents_do_not_crowd_out_long_ones(long):
    sizes = chosen([10_000] * long + [130] * 90)
    assert (sizes == 10_000).any()
    assert (sizes == 130).sum() < 45


def test_validation_that_takes_most_short_documents_is_mentioned(capsys):
    assert set(chosen([50_000] * 2 + [130] * 90)) == {130}
    assert "of the text of the other 90: divide the longest" in capsys.readouterr().out


def test_bpe_puts_its_end_of_text_token_between_documents(bpe):
    texts = [f"document {i}" for i in range(4)]
    prepare.make_dataset("docs_bpe", "bpe", Corpus("", lambda: documents(texts)), 0.25)
    train, val = decoded("docs_bpe")
    assert sorted([*train.split("<|endoftext|>"), val]) == texts
    assert (load_dataset("docs_bpe").train == 50256).sum() == 2


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_document_may_come_in_pieces(folder, kind):
    text = ["one", END, "t", "", "wo", END, END, "", END, "", "three", END, "four"]
    prepare.make_dataset(f"docs_{kind}", kind, Corpus("", lambda: text), 0.25)
    train, val = documents_of(f"docs_{kind}")
    assert sorted(train + val) == ["four", "one", "three", "two"]
    assert load_dataset(f"docs_{kind}").meta["documents"] == 4


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_memory_is_bounded_for_any_document_and_number_of_cores(folder, kind, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    monkeypatch.setattr(prepare, "JOB_CHARACTERS", 10)
    alive = weakref.WeakSet()
    most = 0

    class Piece(str):
        """A str that can be counted while it is alive."""

    def text():
        nonlocal most
        for document in "ab":
            for i in range(500):
                piece = Piece(f"{document}iece {i:03}\n")
                alive.add(piece)
                most = max(most, len(alive))
                yield piece
            yield END

    prepare.make_dataset(f"long_{kind}", kind, Corpus("", text), 0.5)
    assert most <= 2 * prepare.MAX_WORKERS + 2
    texts = ["".join(f"{document}iece {i:03}\n" for i in range(500)) for document in "ab"]
    assert sorted(decoded(f"long_{kind}")) == texts


def test_the_number_of_workers_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(prepare, "JOB_CHARACTERS", 50)
    for i in range(30):
        Path(f"{i}.txt").write_text(verses(i % 7 + 1, seed=i))
    written = []
    for workers in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        prepare.prepare("docs_char", [f"{i}.txt" for i in range(30)])
        written.append(contents(folder / "data"))
    assert written[0] == written[1]


def test_a_corpus_can_have_its_own_validation_documents(folder):
    corpus = Corpus(
        "", lambda: documents(["one two", "three"]), validation=lambda: documents(["four"])
    )
    prepare.make_dataset("own_byte", "byte", corpus)
    assert documents_of("own_byte") == (["one two", "three"], ["four"])


def test_one_text_with_its_own_validation_text_has_no_separators(folder):
    corpus = Corpus("", lambda: ["one ", "two"], validation=lambda: ["thr", "ee"])
    prepare.make_dataset("own_char", "char", corpus)
    assert decoded("own_char") == ("one two", "three")
    assert load_dataset("own_char").tokenizer.characters == " ehnortw"


# options


def test_a_limit_keeps_the_validation_text_of_a_corpus():
    corpus = Corpus("", lambda: documents(["one", "two"]), validation=lambda: ["three"])
    for limit, text in ((4, "onet"), (2, "on")):
        limited = survey.limited(corpus, limit)
        assert "".join(filter(None, limited.text())) == text
        assert list(limited.validation()) == ["three"]


def test_a_limit_takes_the_beginning_of_a_text(folder, monkeypatch):
    text = "é" * 600
    Path("a.txt").write_text(text)
    for size in (1 << 16, 100):
        small_pieces(monkeypatch, size)
        prepare.prepare("a_byte", ["a.txt"], limit=1001)
        assert "".join(decoded("a_byte")) == text[:500]
    assert load_dataset("a_byte").meta["limit"] == 1001


@pytest.mark.parametrize("sizes, documents_left", [([600, 300, 200], 3), ([5_000, 600], 1)])
def test_a_limit_takes_the_first_bytes_of_the_documents(folder, sizes, documents_left):
    texts = [letter * size for letter, size in zip("abc", sizes)]
    corpus = survey.limited(Corpus("", lambda: documents(texts)), 1000)
    assert "".join(filter(None, corpus.text())) == "".join(texts)[:1000]
    prepare.make_dataset("docs_byte", "byte", corpus, 0.5)
    assert load_dataset("docs_byte").meta["documents"] == documents_left


def test_an_option_with_several_values_may_be_repeated(folder):
    Path("a.txt").write_text("one " * 20)
    Path("b.txt").write_text("two " * 20)
    assert prepare.main(["a_char", "--input", "a.txt", "--input", "b.txt"]) == 0
    assert load_dataset("a_char").meta["documents"] == 2
    Path("c.jsonl").write_text('{"x": "one", "y": "two"}\n')
    fields = ["--field", "x", "--field", "y"]
    assert prepare.main(["c_char", "--input", "c.jsonl", *fields, "--val_fraction", "0.5"]) == 0
    assert "".join(decoded("c_char")) == "one\n\ntwo"


def test_a_pattern_selects_files(folder):
    Path("src").mkdir()
    for name in ("a.py", "b.py", "c.txt"):
        Path("src", name).write_text(f"# {name}\n")
    assert prepare.main(["code_byte", "--input", "src", "--pattern", "*.py"]) == 0
    assert sorted(decoded("code_byte")) == ["# a.py\n", "# b.py\n"]


@pytest.mark.parametrize(
    "name, options, texts",
    [
        ("python_byte", [], ["# abc\n", "# own\n"]),
        ("python_byte", ["--pattern", "*.pyi"], ["# abc\n", "# typed\n"]),
        ("shakespeare_byte", ["--pattern", "*.py*"], ["# own\n", "# typed\n"]),
    ],
)
def test_inputs_are_added_to_python_and_replace_any_other_corpus(
    folder, monkeypatch, name, options, texts
):
    Path("lib").mkdir()
    Path("src").mkdir()
    Path("lib/abc.py").write_text("# abc\n")
    Path("src/own.py").write_text("# own\n")
    Path("src/own.pyi").write_text("# typed\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "lib")
    assert prepare.main([name, "--input", "src", *options]) == 0
    assert sorted(decoded(name)) == texts


def test_the_tokenizer_of_another_dataset(dataset):
    Path("few.txt").write_text("a fool sees a fool.\n" * 20)
    prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses_char")
    few = load_dataset("few_char")
    assert few.tokenizer.to_dict() == load_dataset("verses_char").tokenizer.to_dict()
    assert decoded("few_char")[0].startswith("a fool sees")

    Path("few.txt").write_text("A fool sees a fool?\n" * 20)
    with pytest.raises(UserError, match=r"does not know: '\?', 'A'; replace them with"):
        prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses_char")
    with pytest.raises(UserError, match="verses_char uses char tokens, not byte tokens"):
        prepare.prepare("few_byte", ["few.txt"], tokenizer_of="verses_char")
    with pytest.raises(UserError, match="dataset names are <corpus>_<tokenizer>.*got 'verses'"):
        prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses")
    assert load_dataset("few_char").fingerprint == few.fingerprint


def test_line_ends_of_windows_fit_the_tokenizer_of_a_text_without_them(dataset):
    Path("few.txt").write_bytes(b"a fool sees a fool.\r\n" * 20)
    prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses_char")
    assert "".join(decoded("few_char")) == "a fool sees a fool.\n" * 20


@pytest.mark.parametrize(
    "separator, used, between", [(None, None, "\n\n"), ("t", "t", "t")], ids=["blank line", "given"]
)
def test_documents_in_the_tokenizer_of_a_text_without_documents(dataset, separator, used, between):
    corpus = Corpus("", lambda: documents(["a fool", "my lord", "a sea"]))
    prepare.make_dataset("docs_char", "char", corpus, 0.3, None, "verses_char", False, separator)
    assert load_dataset("docs_char").tokenizer.separator == used
    assert decoded("docs_char")[0].count(between) == 1


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_documents_take_the_separator_of_the_other_tokenizer(folder, kind):
    prepare.make_dataset(
        f"a_{kind}", kind, Corpus("", lambda: documents(["a b", "b a", "a a"])), separator="--"
    )
    corpus = Corpus("", lambda: documents(["b b", "a b", "b a"]))
    prepare.make_dataset(f"b_{kind}", kind, corpus, tokenizer_of=f"a_{kind}")
    assert load_dataset(f"b_{kind}").tokenizer.separator == "--"


def test_documents_need_a_blank_line_that_the_other_tokenizer_knows(folder):
    Path("a.txt").write_text("abc " * 99)
    prepare.prepare("a_char", ["a.txt"])
    corpus = Corpus("", lambda: documents(["abc", "a", "b"]))
    with pytest.raises(UserError, match="has no newline to put between documents"):
        prepare.make_dataset("b_char", "char", corpus, 0.3, tokenizer_of="a_char")


def test_a_separator_that_the_other_tokenizer_does_not_know_becomes_a_blank_line(dataset, capsys):
    Path("names.txt").write_text("a fool|my lord|a sea")
    prepare.prepare("n_char", ["names.txt"], tokenizer_of="verses_char", separator="|")
    assert decoded("n_char")[0].count("\n\n") == 1
    assert "does not know all of '|': a blank line takes its place" in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_the_other_tokenizers_separator_in_a_text_gets_a_warning(folder, kind, capsys):
    first = Corpus("", lambda: documents(["a-b", "b a", "a a"]))
    prepare.make_dataset(f"a_{kind}", kind, first, separator="--")
    assert "is in the text" not in capsys.readouterr().out
    second = Corpus("", lambda: documents(["b b", "a--b", "b a"]))
    prepare.make_dataset(f"b_{kind}", kind, second, tokenizer_of=f"a_{kind}")
    assert "'--' is in the text" in capsys.readouterr().out


def test_unknown_characters_can_be_replaced(dataset, capsys):
    text = "a fóol\u2026 3 sees\u2014\u201cw\u00e4r\u201d and a fool sees a fool.\n"
    Path("few.txt").write_bytes((text * 20).encode())
    prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses_char", replace_unknown=True)
    assert "".join(decoded("few_char")) == "a fool...  seeswar and a fool sees a fool.\n" * 20
    assert "'ó' with 'o'" in capsys.readouterr().out


def test_what_is_left_out_counts_even_if_other_characters_become_longer(dataset):
    Path("few.txt").write_bytes(("a fool\u2026\u2026\u2026 \u4e00\u4e01" * 20).encode())
    with pytest.raises(UserError, match="would leave out 17% of the text"):
        prepare.prepare("few_char", ["few.txt"], tokenizer_of="verses_char", replace_unknown=True)


def test_substitutes_are_the_most_similar_known_characters():
    found = survey.substitutes("“’éﬁ3—\t", "abefi' -")
    assert found == {"“": "'", "’": "'", "é": "e", "ﬁ": "fi", "3": "", "—": "--", "\t": " "}


def test_white_space_and_fractions_keep_their_meaning():
    assert survey.substitutes("\n\u2028\xbd", "abc 0123/") == {
        "\n": " ",
        "\u2028": " ",
        "\xbd": " 1/2",
    }
    assert survey.substitutes("\u2028\xbd", "abc\n0123") == {"\u2028": "\n", "\xbd": ""}
    assert survey.substitutes("/_\f", "abc \n") == {"/": " ", "_": " ", "\f": "\n"}


def test_more_characters_than_ids_are_refused(folder):
    text = "".join(chr(code) for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000)
    Path("all.txt").write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match="65,535"):
        prepare.prepare("all_char", ["all.txt"])
    assert not Path("data/all_char").exists()


# datasets on disk


def test_preparing_twice_gives_the_same_files(dataset):
    first = contents(dataset / "data")
    prepare.prepare("verses_char", ["verses.txt"])
    assert contents(dataset / "data") == first


def test_ctrl_c_leaves_the_old_dataset(dataset):
    before = contents(dataset)
    passes = []

    def text():
        passes.append("")
        yield verses(10)
        if len(passes) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare.make_dataset("verses_char", "char", Corpus("", text))
    assert contents(dataset) == before


def test_leftovers_of_a_killed_process_are_removed(dataset):
    left = Path("data/verses_char/.new-abc")
    left.mkdir()
    (left / "train.bin").write_bytes(b"1234")
    prepare.prepare("verses_char", ["verses.txt"])
    assert sorted(os.listdir("data/verses_char")) == ["meta.json", "train.bin", "val.bin"]


def test_a_dataset_that_another_process_is_preparing_is_left_to_it(dataset):
    with prepare.new_folder(Path("data/verses_char")) as other:
        with pytest.raises(UserError, match="another program is preparing data/verses_char"):
            prepare.prepare("verses_char", ["verses.txt"])
        assert other.exists()
    prepare.prepare("verses_char", ["verses.txt"])
    assert sorted(os.listdir("data/verses_char")) == ["meta.json", "train.bin", "val.bin"]


@pytest.mark.parametrize("kind", ["char", "byte"])
@pytest.mark.parametrize("second", ["one twö", "one six", "one", "one two three"])
def test_a_text_that_changes_between_the_passes_is_refused(dataset, kind, second):
    before = contents(dataset)
    texts = iter(["one two", second])
    with pytest.raises(UserError, match="changed while it was being read"):
        prepare.make_dataset(f"verses_{kind}", kind, Corpus("", lambda: [next(texts)]), 0.5)
    assert contents(dataset) == before


def test_a_dataset_that_windows_refuses_to_replace_stays(dataset, monkeypatch):
    def refuse(source, target):
        raise PermissionError(13, "in use", str(source), None, str(target))

    before = contents(dataset)
    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(UserError, match="train.bin is in use"):
        prepare.prepare("verses_char", ["verses.txt"])
    assert contents(dataset) == before


def test_a_missing_dataset_is_prepared_once(folder, monkeypatch, capsys):
    Path("lib").mkdir()
    for name in ("a", "b"):
        Path("lib", f"{name}.py").write_text(f"# {name}\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "lib")
    prepare.prepare_missing("python_byte")
    assert "prepare.py python_byte" in capsys.readouterr().out
    prepare.prepare_missing("python_byte")
    assert capsys.readouterr().out == ""


def test_without_arguments_it_lists_the_corpora(capsys):
    assert prepare.main([]) == 0
    assert "shakespeare" in capsys.readouterr().out


def test_a_script_in_the_data_folder_is_not_a_corpus(folder, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "data.clean", types.ModuleType("data.clean"))
    monkeypatch.setattr(prepare, "corpora", lambda: ["clean", "shakespeare"])
    assert prepare.main([]) == 0
    assert "clean" not in capsys.readouterr().out
    assert prepare.main(["clean_char"]) == 2
    Path("notes.txt").write_text(verses(100))
    assert prepare.main(["clean_char", "--input", "notes.txt"]) == 0


def test_options_without_a_dataset_are_refused(folder, capsys):
    assert prepare.main(["--input", "notes.txt", "notes_char"]) == 2
    assert "name the dataset before its options" in capsys.readouterr().err


def test_the_corpus_in_the_data_readme_works(folder, monkeypatch):
    readme = (ROOT / "data" / "README.md").read_text()
    module = types.ModuleType("data.darwin")
    exec(re.search(r"```python\n(.*?)```", readme, flags=re.DOTALL)[1], vars(module))
    monkeypatch.setitem(sys.modules, "data.darwin", module)
    monkeypatch.setattr(prepare, "corpora", lambda: ["darwin"])
    text = verses(100)
    with serve(lambda request: reply(request, text.encode())) as url:
        module.URL = f"{url}/pg1228.txt"
        assert prepare.main(["darwin_char"]) == 0
    assert "".join(decoded("darwin_char")) == text
    assert json.loads(Path("data/darwin_char/meta.json").read_text())["source"] == module.URL


@pytest.mark.parametrize(
    "texts", [("one text " * 9, "one text " * 9), ("a long text " * 9, "b" * 9)]
)
def test_without_several_training_documents_there_is_no_separator(folder, texts):
    for name, text in zip("ab", texts):
        Path(f"{name}.txt").write_text(text)
    prepare.prepare("texts_char", ["a.txt", "b.txt"])
    dataset = load_dataset("texts_char")
    assert dataset.tokenizer.separator is None
    assert "\0" not in dataset.tokenizer.characters


def test_a_separator_that_training_does_not_see_is_not_used(folder):
    Path("a.txt").write_text("one text " * 9 + "\n%\n" + "another text " * 9)
    prepare.prepare("texts_char", ["a.txt"], separator="\n%\n")
    tokenizer = load_dataset("texts_char").tokenizer
    assert tokenizer.separator is None
    assert "%" not in tokenizer.characters


def test_the_start_of_a_document_occurs_in_the_training_tokens(folder):
    for number in range(5):
        Path(f"{number}.txt").write_text(f"text {number}. " * 9)
    prepare.prepare("texts_char", ["."])
    dataset = load_dataset("texts_char")
    assert dataset.tokenizer.separator == "\0"
    assert dataset.tokenizer.start_ids[0] in dataset.train


def test_a_dataset_whose_replacement_is_interrupted_does_not_count_as_prepared(
    dataset, monkeypatch
):
    replace = os.replace

    def interrupted(source, target):
        if Path(source).name == "val.bin":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare("verses_char", ["verses.txt"])
    assert not prepare.is_prepared("verses_char")
