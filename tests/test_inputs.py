"""The user's own files: finding them, decoding them, dividing them into documents."""

import bz2
import io
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import ROOT, verses

import prepare
from common import files, inputs
from common.errors import UserError
from common.files import expand, find, matches
from common.inputs import read_inputs
from common.survey import survey
from data import END

MARK = "<|endoftext|>"


def texts(*names, **options) -> list[str]:
    """The documents of some inputs."""
    stream = list(read_inputs(list(names), **options).text())
    found = [""]
    for piece in stream:
        found[-1] += piece or ""
        if piece is END:
            found.append("")
    return [text for text in found if text]


def write(**contents: str | bytes) -> None:
    """Writes files; in their names __ stands for a slash, and a last _ for the dot."""
    for name, content in contents.items():
        path = Path(".".join(name.replace("__", "/").rsplit("_", 1)))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


# finding files


def test_hidden_files_are_left_out(folder):
    write(texts__a_txt="a", texts__b__c_txt="c")
    for name in ("._a.txt", ".ipynb_checkpoints/a.txt", "b/.git/c.txt"):
        path = Path("texts", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"\xff\xfe")
    assert texts("texts") == ["a", "c"]


def test_a_hidden_file_can_be_named(folder):
    Path(".notes").mkdir()
    Path(".notes/a.txt").write_text("a")
    assert texts(".notes") == ["a"]
    assert texts(".notes/a.txt") == ["a"]


def test_links_are_followed_once(folder):
    write(elsewhere__a_txt="a", elsewhere__deep__b_txt="b", texts__c_txt="c")
    Path("texts/one").symlink_to("../elsewhere")
    Path("texts/two").symlink_to("../elsewhere/deep")
    Path("texts/file.txt").symlink_to("../elsewhere/a.txt")
    assert sorted(texts("texts")) == ["a", "b", "c"]


def test_a_folder_is_visited_under_its_own_name_rather_than_that_of_a_link(folder):
    write(src__releases__v1__a_txt="a", src__releases__v2__b_txt="b")
    Path("src/current").symlink_to("releases/v2")
    assert texts("src", pattern="releases/**/*.txt") == ["a", "b"]


def test_virtual_environments_are_left_out(folder):
    write(src__a_txt="a", src__venv__pyvenv_cfg="home = /usr", src__venv__lib__b_txt="b")
    assert texts("src") == ["a"]
    assert texts("src/venv") == ["b"]  # but not if they are asked for


def test_files_that_do_not_match_the_pattern_but_are_named_are_mentioned(folder, capsys):
    write(src__a_py="a", src__b_csv="b")
    assert texts("src/a.py", "src/b.csv", pattern="*.py") == ["a", "b"]
    assert "applies to folders only; these are used too: src/b.csv\n" in capsys.readouterr().out


def test_an_encoding_is_not_suggested_for_a_file_that_is_mostly_utf8(folder):
    write(chat_txt="café über\n".encode() * 9 + b"caf\xe9\n")
    with pytest.raises(UserError) as caught:
        texts("chat.txt")
    assert "cp1252" not in str(caught.value)


@pytest.mark.parametrize(
    "text, warning",
    [
        ("one\n\ufefftwo\n", "has byte order marks"),
        ("caf\ufffd\n", "has replacement characters"),
        ("*** END OF THE PROJECT GUTENBERG EBOOK ***", "has notices of Project Gutenberg"),
    ],
)
def test_what_does_not_belong_to_a_text_gets_a_warning(folder, text, warning):
    write(a_txt=text)
    assert warning in " ".join(survey(read_inputs(["a.txt"])).warnings)


@pytest.mark.parametrize("target", [".", "..", "../.."])
def test_a_link_to_a_parent_does_not_loop(folder, target):
    write(texts__deep__a_txt="a", other__b_txt="b")
    Path("texts/deep/up").symlink_to(target)
    assert texts("texts") == ["a"]


def test_links_to_each_other_do_not_loop(folder):
    write(texts__one__a_txt="a", texts__two__b_txt="b")
    Path("texts/one/other").symlink_to("../two")
    Path("texts/two/other").symlink_to("../one")
    assert sorted(texts("texts")) == ["a", "b"]


def test_broken_links_are_reported(folder, capsys):
    write(texts__a_txt="a")
    Path("texts/b.txt").symlink_to("nowhere")
    assert texts("texts") == ["a"]
    assert "can't read texts/b.txt" in capsys.readouterr().out


def test_folders_that_can_not_be_read_are_reported(folder, capsys, monkeypatch):
    write(texts__a_txt="a", texts__secret__b_txt="b")
    scandir = os.scandir

    def guarded(path):  # root may read every folder
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    assert texts("texts") == ["a"]
    assert "can't read texts/secret" in capsys.readouterr().out


@pytest.mark.parametrize(
    "given", [["a.txt", "a.txt"], ["texts", "texts/a.txt"], ["a.txt", "./a.txt"]]
)
def test_a_file_given_twice_counts_once(folder, given, capsys):
    write(a_txt="a", texts__a_txt="a")
    assert texts(*given) == ["a"]
    assert "given more than once, used once" in capsys.readouterr().out


def test_wildcards_are_expanded(folder):
    write(b_txt="b", a_txt="a", texts__deep__c_txt="c", d_md="d")
    assert expand(["*.txt", "d.md"]) == ["a.txt", "b.txt", "d.md"]
    assert texts("texts/**/*.txt") == ["c"]
    Path("odd[1].txt").write_text("odd")
    assert texts("odd[1].txt") == ["odd"]
    with pytest.raises(UserError, match=r"no file matches \*.rst"):
        expand(["*.rst"])


@pytest.mark.parametrize(
    "path, pattern, matching",
    [
        ("a.txt", "*.txt", True),
        ("deep/er/a.txt", "*.txt", True),
        ("a.TXT", "*.txt", True),
        ("a.txt", "**/*.txt", True),
        ("deep/er/a.txt", "**/*.txt", True),
        ("deep/er/a.txt", "deep/*.txt", False),
        ("deep/a.txt", "deep/*.txt", True),
        ("src/x/y/a.py", "src/**/*.py", True),
        ("src/a.py", "src/**/*.py", True),
        ("lib/a.py", "src/**/*.py", False),
        ("src/x/a.py", "src/**", True),
        ("a.txt", ".txt", False),
    ],
)
def test_patterns(path, pattern, matching):
    assert matches(path.split("/"), pattern) == matching


def test_a_pattern_must_not_be_empty(folder):
    write(a_txt="a")
    with pytest.raises(UserError, match="--pattern must not be empty"):
        read_inputs(["."], pattern="")


@pytest.mark.parametrize("pattern", [".rst", "rst"])
def test_a_pattern_without_a_wildcard_is_explained(folder, pattern):
    write(texts__a_rst="a")
    with pytest.raises(UserError, match=r"did you mean --pattern '\*\.rst'"):
        find(["texts"], [pattern])


# pipes


def test_standard_input(folder, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("é\nb".encode())))
    write(a_txt="a")
    corpus = read_inputs(["-", "a.txt"])
    for _ in range(2):
        assert "".join(piece or "|" for piece in corpus.text()) == "é\nb|a|"
    assert corpus.source == "standard input, a.txt"


@pytest.mark.skipif(sys.platform == "win32", reason="needs bash")
@pytest.mark.parametrize("pipe", ["cat a.txt | {} --input -", "{} --input <(cat a.txt)"])
def test_pipes_of_a_shell(folder, pipe):
    text = verses(3000)
    write(a_txt=text)
    command = pipe.format(f"{sys.executable} {ROOT / 'prepare.py'} a_char")
    subprocess.run(["bash", "-c", command], check=True, capture_output=True)
    meta = json.loads(Path("data/a_char/meta.json").read_text())
    assert meta["train"]["bytes"] + meta["val"]["bytes"] == len(text)


def test_a_url_is_not_a_file(folder):
    with pytest.raises(UserError, match="no file https://example.com/a.txt; download it first"):
        texts("https://example.com/a.txt")


def test_the_files_of_a_folder_that_do_not_match_are_counted(folder, capsys):
    write(texts__a_txt="a", texts__b_html="b", texts__c_html="c")
    texts("texts")
    message = "texts: 1 of 3 files match *.txt or *.md (choose others with --pattern)"
    assert message in capsys.readouterr().out
    texts("texts", pattern="*")
    assert capsys.readouterr().out == ""


# encodings


def test_all_files_that_can_not_be_decoded_are_named_at_once(folder):
    write(texts__a_txt=b"caf\xe9", texts__b_txt="ok", texts__c_txt=b"\xff")
    with pytest.raises(UserError) as error:
        texts("texts")
    assert "texts/a.txt is not UTF-8 text (byte 3 is 0xe9)" in str(error.value)
    assert "texts/c.txt is not UTF-8 text (byte 0 is 0xff)" in str(error.value)
    assert "--encoding" in str(error.value)
    assert "--skip_undecodable" in str(error.value)


def test_another_encoding_is_not_suggested_for_files_without_permission(folder, monkeypatch):
    def refuse(*_):
        raise PermissionError(13, "Permission denied")
        yield

    write(a_txt="a")
    monkeypatch.setattr(inputs.Input, "pieces", refuse)  # root may read any file
    with pytest.raises(UserError) as error:
        texts("a.txt")
    assert str(error.value) == "can't read a.txt (Permission denied)"


def test_another_encoding_is_not_suggested_for_files_of_which_some_are_utf8(folder):
    write(texts__a_txt=b"caf\xe9", texts__b_txt="café")
    with pytest.raises(UserError) as error:
        texts("texts")
    assert "convert" in str(error.value)
    assert "--encoding" not in str(error.value)


def test_files_in_utf8_that_another_encoding_would_misread_are_named(folder, capsys):
    write(texts__a_txt=b"caf\xe9", texts__b_txt="café", texts__c_txt="\ufeffcafé", texts__d_txt="a")
    assert texts("texts", encoding="cp1252") == ["café", "cafÃ©", "café", "a"]
    assert "misreads these files, in UTF-8: texts/b.txt\n" in capsys.readouterr().out


def test_utf8_sig_does_not_warn_about_files_without_a_byte_order_mark(folder, capsys):
    write(a_txt="café")
    assert texts("a.txt", encoding="utf-8-sig") == ["café"]
    assert "misreads" not in capsys.readouterr().out


def test_files_that_can_not_be_decoded_can_be_left_out(folder, capsys):
    late = b"a" * files.BLOCK_BYTES + b"\xff"
    write(texts__a_txt=late, texts__b_txt="ok")
    assert texts("texts", skip_undecodable=True) == ["ok"]
    assert (
        "left out 1 of 2 files, unreadable or not utf-8 text: texts/a.txt"
        in capsys.readouterr().out
    )


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-16-le", "cp1252", "utf-8", "UTF8"])
def test_an_encoding_can_be_given(folder, encoding, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 7)
    write(a_txt="café\r\n".encode(encoding) * 1)
    assert texts("a.txt", encoding=encoding) == ["café\r\n"]


@pytest.mark.parametrize("limit", ["100", "300", "100000"])
def test_a_file_that_can_not_be_decoded_is_noticed_despite_a_limit(folder, capsys, limit):
    write(texts__a_txt=verses(10).encode() + b"\xff", texts__b_txt=verses(90))
    write(texts__c_txt=verses(90), texts__d_txt=b"\xff")
    assert prepare.main(["a_char", "--input", "texts", "--limit", limit]) == 1
    assert "texts/a.txt is not UTF-8 text" in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["utf-8", "U8", "utf-16-le", "utf-16-be", "utf-32-le"])
def test_a_byte_order_mark_is_dropped_in_any_encoding(folder, encoding):
    write(a_txt="\ufeffcafé".encode(encoding))
    assert texts("a.txt", encoding=encoding) == ["café"]


@pytest.mark.parametrize("marked", ["utf-16", "utf-32", "utf-8-sig"])
@pytest.mark.parametrize("encoding", ["utf-8", "cp1252"])
def test_a_byte_order_mark_tells_the_encoding(folder, marked, encoding):
    write(a_txt="café".encode(marked), b_txt="café".encode(encoding))
    assert texts("a.txt", "b.txt", encoding=encoding) == ["café", "café"]


@pytest.mark.parametrize("encoding", ["hex", "utf-17", "", "undefined"])
def test_an_unknown_encoding_is_refused(folder, encoding):
    write(a_txt="a")
    with pytest.raises(UserError, match="is not an encoding") as error:
        texts("a.txt", encoding=encoding)
    assert error.value.status == 2


def test_utf16_without_a_mark_is_explained(folder):
    write(a_txt="café".encode("utf-16-le"))
    with pytest.raises(UserError, match="a.txt is not utf-16 text"):
        texts("a.txt", encoding="utf-16")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_that_decodes_as_utf8_gets_a_warning(folder, encoding, capsys):
    write(texts__a_txt=verses(10).encode(encoding), texts__b_txt=verses(2000))
    prepare.prepare("texts_char", ["texts"])
    assert "1 of 2 documents have many NUL characters" in capsys.readouterr().out


def test_a_few_nuls_get_no_warning(folder, capsys):
    write(a_txt=verses(100) + "\0")
    prepare.prepare("a_char", ["a.txt"])
    assert "NUL" not in capsys.readouterr().out


def test_what_is_added_to_a_file_between_the_passes_is_left_out(folder):
    write(a_txt="first line\n")
    corpus = read_inputs(["a.txt"])
    for _ in range(2):
        assert "".join(piece or "" for piece in corpus.text()) == "first line\n"
        with open("a.txt", "a") as file:
            file.write("sécond line\n")


@pytest.mark.parametrize(
    "start",
    [b"\x1f\x8b\x08", b"PK\3\4", b"%PDF-1.7", b"{\\rtf1", b"a.txt".ljust(257, b"\0") + b"ustar"],
)
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_files_that_are_not_text_are_refused_in_any_encoding(folder, start, encoding):
    write(a_txt=start + b"abc" * 100)
    with pytest.raises(UserError, match="a.txt is .*, not text") as error:
        texts("a.txt", encoding=encoding)
    assert "--encoding" not in str(error.value)
    with pytest.raises(UserError, match="save its text as a UTF-8 file first"):
        files.read_text("a.txt")


def test_a_pipe_that_is_not_text_is_refused_like_a_file(folder):
    os.mkfifo("pipe")
    threading.Thread(target=lambda: Path("pipe").write_bytes(b"abc\xe9")).start()
    with pytest.raises(UserError, match=r"pipe is not UTF-8 text \(byte 3 is 0xe9\)"):
        files.read_text("pipe")


def test_text_of_windows_read_as_latin_1_gets_a_warning(folder, capsys):
    write(a_txt=(verses(100) + "It’s").encode("cp1252"))
    prepare.prepare("a_char", ["a.txt"], encoding="latin-1")
    assert "--encoding cp1252" in capsys.readouterr().out


def test_nuls_in_documents_that_nuls_separate_get_a_warning(folder, capsys):
    write(texts__a_txt=verses(50) + "\0" + verses(50), texts__b_txt=verses(90), c_txt=verses(80))
    prepare.prepare("a_char", ["texts", "c.txt"])
    assert r"warning: '\x00' is in the text, and stands for the end" in capsys.readouterr().out


# separators


@pytest.mark.parametrize("size", [1 << 16, 5])
@pytest.mark.parametrize(
    "text, separator, expected",
    [
        ("Emma\nNoah\n\nMia", "\n", ["Emma", "Noah", "Mia"]),
        ("Emma\r\nNoah\r\n", "\n", ["Emma", "Noah"]),
        ("one\ntwo\n\nthree\n\n\n\n four\n", "\n\n", ["one\ntwo", "three", " four"]),
        ("one\r\ntwo\r\n\r\nthree\r\n", "\n\n", ["one\r\ntwo", "three"]),
        ("One.\n<|endoftext|>\nTwo\n\nlines.\n<|endoftext|>\n", MARK, ["One.", "Two\n\nlines."]),
        ("a<|endoftext|>b<|endoftext|>c", "<|endoftext|>", ["a", "b", "c"]),
        ("a.*b.*c", ".*", ["a", "b", "c"]),
        ("a\n  \nb", "\n", ["a", "b"]),
        ("a\tb", "\t", ["a", "b"]),
        ("%\none\n%\n%\ntwo\r\n%\r\nthree\n%", "\n%\n", ["one", "two", "three"]),
    ],
)
def test_a_separator_divides_a_file(folder, monkeypatch, size, text, separator, expected):
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    write(a_txt=text)
    assert texts("a.txt", separator=separator) == expected


def test_long_documents_are_divided_in_pieces(folder, monkeypatch):
    monkeypatch.setattr(files, "BLOCK_BYTES", 100)
    monkeypatch.setattr(inputs, "LONG_DOCUMENT", 300)
    expected = [verses(40, seed=seed).strip() for seed in range(3)]
    write(a_txt="\n\n" + "\n||\n\n".join(expected) + "\n\n")
    corpus = read_inputs(["a.txt"], separator="||")
    assert max(len(piece) for piece in corpus.text() if piece) < 500
    assert texts("a.txt", separator="||") == expected


def test_more_newlines_than_a_long_document_are_no_document(folder, monkeypatch):
    monkeypatch.setattr(inputs, "LONG_DOCUMENT", 300)
    write(a_txt="\n" * 1000 + "a||" + "\n" * 1000 + "||b")
    assert texts("a.txt", separator="||") == ["a", "b"]


@pytest.mark.parametrize("kind, end", [("char", "\n"), ("byte", "\n"), ("bpe", "<|endoftext|>")])
def test_the_separator_is_between_documents(folder, kind, end, request):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    names = [f"name {i}" for i in range(100)]
    write(names_txt="\r\n".join(names) + "\r\n")
    assert prepare.main([f"names_{kind}", "--input", "names.txt", "--separator", r"\n"]) == 0
    dataset = prepare.load_dataset(f"names_{kind}")
    train, val = (dataset.tokenizer.decode(part) for part in (dataset.train, dataset.val))
    assert sorted(train.split(end) + val.split(end)) == sorted(names)
    assert 9 <= len(val.split(end)) <= 11
    assert dataset.tokenizer.separator == end


@pytest.mark.parametrize("files", [["a.txt"], ["a.txt", "b.txt"]])
def test_a_separator_that_does_not_occur_is_refused(folder, files):
    write(a_txt=verses(10), b_txt=verses(20))
    with pytest.raises(UserError, match=r"--separator '\|\|' divides nothing: a.txt"):
        prepare.prepare("a_char", files, separator="||")


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_end_of_text_marks_are_pointed_out(folder, end, capsys):
    write(a_txt=f"{end}<|endoftext|>{end}".join(["One.", "Two.", "Three."]))
    prepare.prepare("a_char", ["a.txt"])
    assert "--separator '<|endoftext|>'" in capsys.readouterr().out
    prepare.prepare("a_char", ["a.txt"], separator="<|endoftext|>")
    assert "--separator '<|endoftext|>'" not in capsys.readouterr().out


# JSON Lines


PAPERS = [
    {"id": 1, "title": "Walking", "abstract": "On two\nlegs."},
    {"id": 2, "title": "Flying 😀", "abstract": "With wings."},
]


@pytest.mark.parametrize("size", [1 << 16, 5])
def test_json_lines(folder, monkeypatch, size):
    monkeypatch.setattr(files, "BLOCK_BYTES", size)
    first, second = map(json.dumps, PAPERS)
    write(papers_jsonl=f"{first}\r\n\n{second}")
    assert texts("papers.jsonl", field=["title"]) == ["Walking", "Flying 😀"]
    assert texts("papers.jsonl", field=["title", "abstract"]) == [
        "Walking\n\nOn two\nlegs.",
        "Flying 😀\n\nWith wings.",
    ]


def test_json_lines_in_a_folder(folder):
    write(papers__a_jsonl=json.dumps(PAPERS[0]), papers__b_txt="not this")
    assert texts("papers", field=["title"]) == ["Walking"]


@pytest.mark.parametrize(
    "line, words",
    [
        ("{", "line 3 is not JSON"),
        ("[1]", "line 3 is not a JSON object"),
        ("[" * 100_000, "line 3 is not JSON"),
        ('{"name": "x"}', "line 3: the field 'title' is missing; there are 'name'"),
        ('{"title": 5}', "line 3: the field 'title' is not text"),
        ('{"title": null}', "line 3: the field 'title' is not text"),
    ],
)
def test_lines_that_are_not_json_are_named(folder, line, words):
    write(papers_jsonl=f'{{"title": "a"}}\n\n{line}\n')
    with pytest.raises(UserError) as error:
        texts("papers.jsonl", field=["title"])
    assert f"papers.jsonl, {words}" in str(error.value)
    assert len(str(error.value)) < 300


def test_empty_fields_of_json_leave_no_blank_lines(folder):
    write(tasks_jsonl='{"a": "Name it.", "b": "", "c": "Blue."}\n{"a": "", "b": " ", "c": ""}')
    assert texts("tasks.jsonl", field=["a", "b", "c"]) == ["Name it.\n\nBlue."]


def test_ascii_that_is_read_as_utf_16_is_pointed_out(folder, capsys):
    Path("a.txt").write_bytes("To be".encode("utf-16-le"))
    Path("b.txt").write_bytes(b"or not")
    texts("a.txt", "b.txt", encoding="utf-16-le")
    assert "misreads these files, in UTF-8: b.txt\n" in capsys.readouterr().out


def test_half_characters_in_json_are_replaced(folder):
    write(papers_jsonl=r'{"title": "a \ud83d b \ud83d\ude00"}')
    assert texts("papers.jsonl", field=["title"]) == ["a \ufffd b 😀"]


def test_json_lines_without_a_field_are_pointed_out(folder, capsys):
    write(papers_jsonl=json.dumps(PAPERS[0]))
    texts("papers.jsonl")
    assert (
        "papers.jsonl is read as plain text; for JSON Lines, use --field NAME"
        in capsys.readouterr().out
    )


def test_text_that_begins_like_a_compressed_file_is_text(folder):
    write(a_txt="BZhang: hello\n", b_txt="PAR1 and PAR2\n")
    assert texts("a.txt", "b.txt") == ["BZhang: hello\n", "PAR1 and PAR2\n"]
    write(c_txt=bz2.compress(b"hello"))
    with pytest.raises(UserError, match="compressed by bzip2"):
        texts("c.txt")


def test_a_line_end_is_not_cut_in_two():
    text = "a" + "\r\n" * 50_000
    blocks = [text[i : i + 16] for i in range(0, len(text), 16)]
    assert not any(piece.endswith("\r") for piece in files.cut(blocks))


def test_files_found_by_a_wildcard_may_not_match_the_pattern(folder, capsys):
    write(texts__a_txt="a", texts__b_md="b")
    assert texts("texts/*", pattern="*.txt") == ["a", "b"]
    assert "these are used too: texts/b.md" in capsys.readouterr().out


@pytest.mark.skipif(not Path("/proc/version").exists(), reason="needs Linux")
def test_a_file_whose_size_is_given_as_0_is_read(folder):
    assert texts("/proc/version")[0].startswith("Linux")
