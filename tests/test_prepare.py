import json
import os
import re
import signal
import sys
import sysconfig
import types
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import verses
from server import reply, serve

import prepare
from common import files
from common.dataset import load_dataset
from common.errors import UserError
from data import Corpus

ROOT = Path(__file__).parent.parent


def contents(folder) -> dict:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_file_becomes_a_contiguous_split_that_decodes_to_it(folder, kind, capsys):
    text = verses(300) + "é\r\n\U0001f600\n"
    (folder / "my notes.txt").write_bytes(text.encode())
    assert prepare.main([f"notes_{kind}", "--input", "my notes.txt"]) == 0
    dataset = load_dataset(f"notes_{kind}")
    train, val = dataset.tokenizer.decode(dataset.train), dataset.tokenizer.decode(dataset.val)
    assert train + val == text and len(train) == int(len(text) * 0.9)
    for split, part in (("train", train), ("val", val)):
        count = dataset.meta[split]
        assert (count["characters"], count["bytes"]) == (len(part), len(part.encode()))
        assert count["tokens"] == len(getattr(dataset, split))
    printed = capsys.readouterr().out
    assert (
        f"{len(train):,} characters" in printed
        and dataset.meta["sha256"] in printed
        and "the" in printed
    )


def test_a_file_larger_than_a_piece_gives_the_same_bytes(folder, monkeypatch):
    (folder / "a.txt").write_text(verses(200) + "äöü 漢字 😀" * 50, encoding="utf-8")
    prepare.prepare("a_byte", ["a.txt"])
    prepare.prepare("a_char", ["a.txt"])
    whole = contents(folder / "data")
    monkeypatch.setattr(files, "PIECE", 7)  # cuts nearly every multi-byte character
    monkeypatch.setattr(prepare, "PIECE", 7)
    prepare.prepare("a_byte", ["a.txt"])
    prepare.prepare("a_char", ["a.txt"])
    meta = json.loads(contents(folder / "data" / "a_char")["meta.json"])
    assert contents(folder / "data")["train.bin"] == whole["train.bin"]
    assert (
        meta["train"] == json.loads(whole["meta.json"])["train"]
        or meta["tokenizer"]["kind"] == "char"
    )
    dataset = load_dataset("a_char")
    assert dataset.tokenizer.decode([*dataset.train, *dataset.val]) == (folder / "a.txt").read_text(
        encoding="utf-8"
    )


def test_documents_are_split_whole_with_a_separator(folder):
    (folder / "texts" / "deep").mkdir(parents=True)
    documents = [f"document {i}: {verses(1, seed=i)}" for i in range(20)]
    for i, text in enumerate(documents):
        (
            folder / "texts" / ("deep" if i % 2 else "") / f"{i:02}.{'md' if i % 3 else 'txt'}"
        ).write_text(text)
    (folder / "texts" / "picture.png").write_bytes(b"\x89PNG")
    prepare.prepare("texts_char", ["texts"], val_fraction=0.2)
    dataset = load_dataset("texts_char")
    parts = {
        name: dataset.tokenizer.decode(getattr(dataset, name)).split("\n\n")
        for name in ("train", "val")
    }
    assert len(parts["val"]) == 4
    assert sorted(p.strip() for p in parts["train"] + parts["val"]) == sorted(
        d.strip() for d in documents
    )
    assert dataset.meta["val"]["bytes"] == sum(
        len(d) for d in documents if d.strip() in [p.strip() for p in parts["val"]]
    )


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_documents_larger_than_a_piece_give_the_same_bytes(folder, kind, monkeypatch, request):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    for i in range(9):
        (folder / f"{i}.txt").write_bytes((verses(i * 20, seed=i) + "é\n\n  漢字 \n" * 9).encode())
    (folder / "empty.txt").write_text("")
    names = ["empty.txt", *(f"{i}.txt" for i in range(9))]
    prepare.prepare(f"docs_{kind}", names, val_fraction=0.3)
    whole = contents(folder / "data" / f"docs_{kind}")
    monkeypatch.setattr(files, "PIECE", 200)
    monkeypatch.setattr(prepare, "PIECE", 200)
    prepare.prepare(f"docs_{kind}", names, val_fraction=0.3)
    assert contents(folder / "data" / f"docs_{kind}") == whole
    assert json.loads(whole["meta.json"])["documents"] == 9
    assert not any(
        isinstance(document, str) for document in prepare.read_inputs(names, None).documents()
    )


def use(monkeypatch, corpus):
    """Has prepare() take this corpus, whatever its input."""
    monkeypatch.setattr(prepare, "read_inputs", lambda inputs, pattern: corpus)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_document_may_come_in_pieces(folder, kind, monkeypatch):
    use(
        monkeypatch,
        Corpus("made up", lambda: ["one", iter(["t", "", "wo"]), [], "", ["", "three"], "four"]),
    )
    prepare.prepare(f"pieces_{kind}", ["-"], val_fraction=0.25)
    dataset = load_dataset(f"pieces_{kind}")
    train, val = dataset.tokenizer.decode(dataset.train), dataset.tokenizer.decode(dataset.val)
    assert sorted([*train.split("\n\n"), val]) == ["four", "one", "three", "two"]
    assert dataset.meta["documents"] == 4


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_memory_is_bounded_whatever_the_document_and_the_machine(folder, kind, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 1000)
    monkeypatch.setattr(prepare, "PIECE", 10)
    alive = weakref.WeakSet()
    most = 0

    class Text(str):
        """A str that can be counted while it lives."""

    def document():
        nonlocal most
        for i in range(500):
            text = Text(f"piece {i:03}\n")
            alive.add(text)
            most = max(most, len(alive))
            yield text

    use(monkeypatch, Corpus("two endless documents", lambda: [document(), document()]))
    prepare.prepare(f"long_{kind}", ["-"], val_fraction=0.5)
    assert most <= 2 * prepare.MAX_WORKERS + 2
    dataset = load_dataset(f"long_{kind}")
    assert dataset.tokenizer.decode(dataset.train) == "".join(f"piece {i:03}\n" for i in range(500))


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_large_documents_come_in_pieces_and_give_the_same_bytes(folder, kind, monkeypatch):
    (folder / "texts").mkdir()
    for i in range(12):
        (folder / "texts" / f"{i}.txt").write_text(
            verses(0 if i == 5 else 3 * i, seed=i) + "é" * (i % 2)
        )
    assert prepare.main([f"whole_{kind}", "--input", "texts"]) == 0
    monkeypatch.setattr(files, "PIECE", 50)  # bytes, so that most documents have several pieces
    assert prepare.main([f"pieces_{kind}", "--input", "texts"]) == 0
    assert contents(folder / "data" / f"whole_{kind}") == contents(
        folder / "data" / f"pieces_{kind}"
    )
    assert load_dataset(f"pieces_{kind}").meta["documents"] == 11 + (len(verses(0)) > 0)


def test_the_tokens_of_another_dataset(dataset, capsys):
    (dataset / "few.txt").write_text("a fool sees a fool.\n" * 20)
    assert prepare.main(["few_char", "--input", "few.txt", "--tokenizer_of", "verses_char"]) == 0
    few, other = load_dataset("few_char"), load_dataset("verses_char")
    assert few.tokenizer.to_dict() == other.tokenizer.to_dict()
    assert few.tokenizer.decode(few.train).startswith("a fool sees")
    (dataset / "few.txt").write_text("A fool sees a fool?\n" * 20)
    for name, words in {
        "few_char": "never seen: '?' 'A'",
        "few_byte": "are those of char, not of byte",
    }.items():
        assert prepare.main([name, "--input", "few.txt", "--tokenizer_of", "verses_char"]) != 0
        assert words in capsys.readouterr().err
    assert load_dataset("few_char").fingerprint == few.fingerprint


def test_a_corpus_with_its_own_validation_keeps_it(folder, monkeypatch):
    use(monkeypatch, Corpus("made up", lambda: ["one two", "three"], validation=lambda: ["four"]))
    prepare.prepare("own_byte", ["-"])
    dataset = load_dataset("own_byte")
    assert dataset.tokenizer.decode(dataset.train) == "one two\n\nthree"
    assert dataset.tokenizer.decode(dataset.val) == "four"


def test_of_one_text_with_its_own_validation_nothing_stands_between_the_pieces(folder, monkeypatch):
    corpus = Corpus(
        "made up", lambda: ["one ", "two"], validation=lambda: ["thr", "ee"], continuous=True
    )
    use(monkeypatch, corpus)
    prepare.prepare("own_char", ["-"])
    dataset = load_dataset("own_char")
    assert [dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val)] == [
        "one two",
        "three",
    ]
    assert dataset.meta["documents"] == 1 and dataset.tokenizer.characters == " ehnortw"


def test_the_corpus_that_the_readme_adds_works(folder, monkeypatch):
    code = re.search(
        r"```python\n(.*?)```", (ROOT / "data" / "README.md").read_text(), flags=re.DOTALL
    )[1]
    module = types.ModuleType("data.darwin")
    exec(code, vars(module))
    monkeypatch.setitem(sys.modules, "data.darwin", module)
    monkeypatch.setattr(prepare, "corpora", lambda: {"darwin": module.ABOUT})
    text = verses(100)
    with serve(lambda request: reply(request, text.encode())) as url:
        module.URL = f"{url}/pg1228.txt"
        assert prepare.main(["darwin_char"]) == 0
    dataset = load_dataset("darwin_char")
    assert (
        dataset.tokenizer.decode([*dataset.train, *dataset.val]) == text
        and dataset.meta["source"] == module.URL
    )


def test_preparing_twice_gives_the_same_bytes(folder):
    (folder / "a.txt").write_text(verses(50))
    prepare.prepare("a_char", ["a.txt"])
    first = contents(folder / "data")
    prepare.prepare("a_char", ["a.txt"])
    assert contents(folder / "data") == first


def test_bpe_of_a_file_in_pieces_is_bpe_of_the_whole(bpe, monkeypatch):
    text = (
        verses(100) + "\n\n  indented\r\n\tmore  \n \n\n" + "漢字 😀 \u00a0\n\nend of it all\n" * 20
    )
    (bpe / "a.txt").write_bytes(text.encode())
    monkeypatch.setattr(files, "PIECE", 150)
    monkeypatch.setattr(prepare, "PIECE", 150)
    prepare.prepare(
        "a_bpe", ["a.txt"], val_fraction=0.001
    )  # 0.1% is a few characters of the last line
    dataset = load_dataset("a_bpe")
    whole = dataset.tokenizer.encode(text)
    assert dataset.train[:-2].tolist() == whole[: len(dataset.train) - 2].tolist()
    assert dataset.tokenizer.decode(dataset.train) + dataset.tokenizer.decode(dataset.val) == text


def test_lines_are_cut_after_any_script_but_not_after_white_space(folder, monkeypatch):
    monkeypatch.setattr(files, "PIECE", 100)
    for word, number in {"漢字": 20, "end.": 20, "漢字\u3000": 0, "end ": 0}.items():
        (folder / "a.txt").write_bytes((word + "\n").encode() * 100)
        pieces = list(files.read_pieces(Path("a.txt")))
        assert "".join(pieces) == (word + "\n") * 100
        assert (
            sum(before.endswith(word) and after[0] == "\n" for before, after in pairwise(pieces))
            >= number / 4
        )


def test_bpe_puts_its_end_of_text_between_documents(bpe):
    for i in range(4):
        (bpe / f"{i}.txt").write_text(f"document {i}")
    prepare.prepare("docs_bpe", [f"{i}.txt" for i in range(4)], val_fraction=0.25)
    dataset = load_dataset("docs_bpe")
    train = dataset.tokenizer.decode(dataset.train).split("<|endoftext|>")
    assert len(train) == 3 and (dataset.train == 50256).sum() == 2
    assert sorted(train + [dataset.tokenizer.decode(dataset.val)]) == [
        f"document {i}" for i in range(4)
    ]


def test_the_number_of_workers_changes_nothing(folder, monkeypatch):
    monkeypatch.setattr(prepare, "PIECE", 50)
    for i in range(30):
        (folder / f"{i}.txt").write_text(verses(i % 7 + 1, seed=i))
    written = []
    for workers in (1, 5):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        prepare.prepare("docs_char", [f"{i}.txt" for i in range(30)])
        written.append(contents(folder / "data"))
    assert written[0] == written[1]


def test_a_limit_takes_the_beginning(folder, monkeypatch):
    text = verses(100) + "é"
    (folder / "a.txt").write_text(text)
    prepare.prepare("a_byte", ["a.txt"], limit=1000)
    dataset = load_dataset("a_byte")
    assert dataset.tokenizer.decode([*dataset.train, *dataset.val]) == text[:1000]
    assert dataset.meta["limit"] == 1000
    (folder / "b.txt").write_text("b" * 600)
    (folder / "c.txt").write_text("c" * 300)
    prepare.prepare("docs_byte", ["b.txt", "c.txt", "a.txt"], limit=1000, val_fraction=0.5)
    assert load_dataset("docs_byte").meta["documents"] == 2  # whole documents only
    monkeypatch.setattr(files, "PIECE", 100)
    before = contents(folder / "data")
    prepare.prepare("docs_byte", ["b.txt", "c.txt", "a.txt"], limit=1000, val_fraction=0.5)
    prepare.prepare("a_byte", ["a.txt"], limit=1000)
    assert contents(folder / "data") == before


def test_a_pattern_picks_files(folder):
    (folder / "src").mkdir()
    for name in ("a.py", "b.py", "c.txt"):
        (folder / "src" / name).write_text(f"# {name}\n")
    assert prepare.main(["code_byte", "--input", "src", "--pattern", "*.py"]) == 0
    dataset = load_dataset("code_byte")
    assert sorted(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val)) == [
        "# a.py\n",
        "# b.py\n",
    ]


def test_inputs_are_added_to_python_and_replace_any_other_corpus(folder, monkeypatch):
    (folder / "lib").mkdir()
    (folder / "src").mkdir()
    (folder / "lib" / "abc.py").write_text("# abc\n")
    (folder / "src" / "own.py").write_text("# own\n")
    (folder / "src" / "own.pyi").write_text("# typed\n")
    monkeypatch.setattr(sysconfig, "get_path", lambda name: "lib")
    for name, arguments, texts in (
        ("python_byte", [], ["# abc\n", "# own\n"]),
        ("python_byte", ["--pattern", "*.pyi"], ["# abc\n", "# typed\n"]),
        ("shakespeare_byte", ["--pattern", "*.py*"], ["# own\n", "# typed\n"]),
    ):
        assert prepare.main([name, "--input", "src", *arguments]) == 0
        dataset = load_dataset(name)
        assert (
            sorted(dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val)) == texts
        )


def test_more_characters_than_ids_are_refused_by_name(folder, capsys):
    text = "".join(chr(code) for code in range(0x20, 0x20000) if not 0xD800 <= code < 0xE000)
    (folder / "all.txt").write_text(text, encoding="utf-8")
    assert prepare.main(["all_char", "--input", "all.txt"]) == 1
    assert "65,535" in capsys.readouterr().err and not (folder / "data" / "all_char").exists()


BAD_INPUT = {
    "missing.txt": (None, "there is no file missing.txt"),
    "empty.txt": (b"", "too few"),
    "picture.png": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "not UTF-8 text: byte 0 is 0x89"),
    "cut.txt": ("à la carte".encode()[:1], "byte 0 is 0xc3"),
    "short.txt": (b"ab", "too few"),
}


@pytest.mark.parametrize("name", BAD_INPUT)
def test_bad_text_is_refused_and_nothing_is_lost(dataset, name, capsys):
    content, words = BAD_INPUT[name]
    if content is not None:
        (dataset / name).write_bytes(content)
    before = contents(dataset)
    assert prepare.main(["verses_char", "--input", name]) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1
    assert contents(dataset) == before


def test_a_byte_that_is_no_text_is_named_by_its_place_in_the_file(folder, monkeypatch, capsys):
    (folder / "a.txt").write_bytes(b"0123456\n" * 200 + b"\xff")
    monkeypatch.setattr(files, "PIECE", 100)
    assert prepare.main(["a_byte", "--input", "a.txt"]) == 1
    assert "byte 1,600 is 0xff" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["shakespeare"], "<corpus>_<tokenizer>"),
        (["shakespeare_words"], "<corpus>_<tokenizer>"),
        (["nothing_char"], "--input"),
        (["verses_char", "--input", "verses.txt", "--val_fraction=1.5"], "val_fraction"),
        (["verses_char", "--inptu", "verses.txt"], "--inptu"),
        (["shakespeare_char", "--category=cs.AI"], "takes no --category"),
        (["verses_char", "--input", "verses.txt", "--category=cs.AI"], "does not go with --input"),
        (["verses_char", "--input", "verses.txt", "--limit=0"], "limit"),
        (["python_char", "--input", "verses.txt", "--category=cs.AI"], "takes no --category"),
        (["robotics_char", "--max_results=0"], "max_results"),
    ],
)
def test_bad_arguments_are_refused(dataset, arguments, words, capsys):
    assert prepare.main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_a_folder_without_texts_is_refused(folder, capsys):
    (folder / "empty").mkdir()
    assert prepare.main(["a_char", "--input", "empty"]) == 1
    assert "no *.txt or *.md" in capsys.readouterr().err


def test_ctrl_c_leaves_the_old_dataset(dataset, monkeypatch, capsys):
    before = contents(dataset)
    monkeypatch.setattr(prepare, "write_tokens", lambda *_: signal.raise_signal(signal.SIGINT))
    assert prepare.main(["verses_char", "--input", "verses.txt"]) == 130
    assert contents(dataset) == before


def test_a_dataset_that_is_in_use_stays_where_windows_lets_nobody_replace_it(
    dataset, monkeypatch, capsys
):
    def refuse(source, target):
        raise PermissionError(13, "in use", str(source), None, str(target))

    before = contents(dataset)
    monkeypatch.setattr(os, "replace", refuse)
    assert prepare.main(["verses_char", "--input", "verses.txt"]) == 1
    error = capsys.readouterr().err
    assert "train.bin is in use" in error and error.count("\n") == 1
    assert contents(dataset) == before


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_a_byte_order_mark_is_no_part_of_a_text(folder, kind):
    (folder / "plain.txt").write_bytes(b"\xe9 a\r\nb ".replace(b"\xe9", "é".encode()) * 20)
    (folder / "marked.txt").write_bytes(b"\xef\xbb\xbf" + (folder / "plain.txt").read_bytes())
    for name in ("plain", "marked"):
        assert prepare.main([f"{name}_{kind}", "--input", f"{name}.txt"]) == 0
    plain, marked = (load_dataset(f"{name}_{kind}") for name in ("plain", "marked"))
    assert plain.fingerprint == marked.fingerprint and "\r" in marked.tokenizer.decode(marked.train)


def test_without_arguments_it_lists_the_corpora(capsys):
    assert prepare.main([]) == 0
    assert "shakespeare" in capsys.readouterr().out


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda data: (data / "meta.json").unlink(), "no prepared dataset"),
        (lambda data: (data / "meta.json").write_text("{"), "damaged"),
        (lambda data: (data / "meta.json").write_text("[1]"), "damaged"),
        (lambda data: (data / "val.bin").unlink(), "val.bin"),
        (lambda data: (data / "train.bin").write_bytes(b"123"), "train.bin"),
        (
            lambda data: np.full((data / "val.bin").stat().st_size // 2, 999, "<u2").tofile(
                data / "val.bin"
            ),
            "the id 999",
        ),
    ],
)
def test_a_damaged_dataset_is_refused_by_name(dataset, spoil, words):
    spoil(dataset / "data" / "verses_char")
    with pytest.raises(UserError, match=words) as error:
        load_dataset("verses_char")
    assert "python prepare.py verses_char" in str(error.value)
