"""The user's own text: files, folders, pipes and JSON Lines as a corpus."""

import codecs
import json
import re
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

from common.errors import UserError, listed
from common.files import (
    BLOCK_BYTES,
    STDIN,
    NotText,
    OtherFormat,
    expand,
    find,
    last_gap,
    marked_encoding,
    matches,
    read_pieces,
)
from common.tokenizer import NUL, Tokenizer
from data import END, Corpus, Text, documents

LONG_DOCUMENT = 1 << 20  # characters; longer ones are passed on in pieces


class Input:
    """A file, or standard input or a pipe, which is copied to a temporary file to be read twice."""

    def __init__(self, path: Path):
        self.path, self.copy = path, None
        self.name = "standard input" if path == STDIN else str(path)
        if path == STDIN and not sys.stdin:
            raise UserError("standard input is closed: name a file instead of -")
        if path == STDIN or not path.is_file():
            self.copy = tempfile.TemporaryFile()
            with nullcontext(sys.stdin.buffer) if path == STDIN else open(path, "rb") as pipe:
                shutil.copyfileobj(pipe, self.copy)
            self.size = self.copy.tell()
        else:
            self.size = path.stat().st_size or None  # files of /proc have text, but a size of 0

    def pieces(self, encoding: str) -> Iterator[str]:
        """Yields the text in pieces; what has been added to the file since __init__ is left out.

        Raises NotText, or OSError.
        """
        if self.copy:
            self.copy.seek(0)
        return read_pieces(self.copy or self.path, encoding, self.size, self.name)

    def is_utf8(self, or_ascii: bool = False) -> bool:
        """Whether it has no byte order mark, but characters beyond ASCII, most of them in UTF-8.

        or_ascii: also if it has ASCII only, but no NUL (as other encodings of ASCII have).
        """
        decoder, valid, nuls = codecs.getincrementaldecoder("utf-8")("replace"), 0, 0
        empty = True
        with nullcontext(self.copy) if self.copy else open(self.path, "rb") as file:
            file.seek(0)
            if marked_encoding(file.peek(4)):
                return False
            while block := file.read(BLOCK_BYTES):
                text, empty = decoder.decode(block), False
                beyond_ascii = len(text) - len(text.encode("ascii", "ignore"))
                valid += beyond_ascii - 2 * text.count("\ufffd")  # what can't be decoded
                nuls += text.count(NUL)
        return valid > 0 or or_ascii and not empty and valid == nuls == 0


def read_inputs(
    inputs: list[str],
    *,
    pattern: str | None = None,
    separator: str | None = None,
    field: Sequence[str] | None = None,
    encoding: str = "utf-8",
    skip_undecodable: bool = False,
) -> Corpus:
    """The text of files, folders, wildcards and "-", which is standard input.

    A document is what is between two `separator`s, or the fields of a line of JSON Lines, or else
    a file. pattern: which files of folders. Raises UserError.
    """
    if separator is not None and field:
        raise UserError("--separator and --field can't be combined", status=2)
    for name, value in (("separator", separator), ("pattern", pattern)):
        if value == "":
            raise UserError(f"--{name} must not be empty", status=2)
    try:
        "".encode(encoding)
    except (LookupError, UnicodeError):
        raise UserError(
            f"{encoding!r} is not an encoding that Python knows, such as cp1252 or utf-16", status=2
        ) from None
    default = ["*.jsonl"] if field else ["*.txt", "*.md"]
    found = [Input(path) for path in find(inputs, [pattern] if pattern else default)]
    named = [name for name in expand(inputs) if Path(name).is_file()]
    if pattern and (others := [name for name in named if not matches(Path(name).parts, pattern)]):
        print(f"note: --pattern applies to folders only; these are used too: {listed(others)}")
    if skip_undecodable:
        found = without_undecodable(found, encoding)
    expects_utf8 = codecs.lookup(encoding).name in ("utf-8", "utf-8-sig")
    wide = "a".encode(encoding) != b"a"  # UTF-16, for example, which reads ASCII as something else
    if not expects_utf8 and (misread := [file.name for file in found if file.is_utf8(wide)]):
        print(f"warning: --encoding {encoding} misreads these files, in UTF-8: {listed(misread)}")
    if not field and (named := [file.name for file in found if is_json(file.name)]):
        print(f"note: {listed(named)} is read as plain text; for JSON Lines, use --field NAME")

    def text() -> Text:
        problems, unreadable, separated = [], [], False
        suggest_encoding = expects_utf8  # until some file shows that another one would not help
        for file in found:
            pieces = file.pieces(encoding)
            if field:
                pieces = documents(json_documents(file.name, pieces, field))
            elif separator:
                pieces = divide(pieces, separator)
            try:
                for piece in pieces:
                    separated |= piece is END
                    suggest_encoding &= piece is END or piece.isascii()
                    if not problems and not unreadable:
                        yield piece
            except NotText as error:
                problems.append(str(error))
                suggest_encoding &= not isinstance(error, OtherFormat) and not file.is_utf8()
            except OSError as error:
                unreadable.append(f"{file.name} ({error.strerror})")
            if not problems and not unreadable:
                yield END  # so that a reader that stops early still reaches the error below
        if unreadable:
            raise UserError(f"can't read {listed(unreadable)}")
        if problems:
            advice = "convert them to UTF-8, or leave them out with --skip_undecodable"
            if suggest_encoding:
                advice = f"give the encoding of all files, such as --encoding cp1252, {advice}"
            raise UserError(f"{listed(problems)}: {advice}")
        if separator and not separated:
            raise UserError(f"--separator {separator!r} divides nothing: {source} does not have it")

    source = ", ".join("standard input" if name == str(STDIN) else name for name in inputs)
    return Corpus(source, text)


def without_undecodable(files: list[Input], encoding: str) -> list[Input]:
    """The files that can be decoded; prints which others there are.

    Raises UserError if none can.
    """
    good, bad = [], []
    for file in files:
        try:
            for _ in file.pieces(encoding):
                pass
            good.append(file)
        except (NotText, OSError):
            bad.append(file.name)
    if bad:
        count = f"{len(bad):,} of {len(files):,} files"
        print(f"left out {count}, unreadable or not {encoding} text: {listed(bad)}")
    if not good:
        raise UserError(
            "none of the files can be decoded: give their encoding, such as --encoding cp1252"
        )
    return good


def json_documents(name: str, pieces: Iterable[str], fields: Sequence[str]) -> Iterator[str]:
    """Yields the fields of each line of JSON Lines, joined by blank lines. Raises UserError."""
    for number, line in enumerate(lines(pieces), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{name}, line {number:,} is not JSON ({error})") from None
        if not isinstance(record, dict):
            raise UserError(f"{name}, line {number:,} is not a JSON object with fields")
        for field in fields:
            if not isinstance(record.get(field), str):
                problem = "is not text" if field in record else "is missing"
                raise UserError(
                    f"{name}, line {number:,}: the field {field!r} {problem}; there are"
                    f" {listed([repr(key) for key in record])}"
                )
        text = "\n\n".join(record[field] for field in fields if record[field].strip())
        # unpaired surrogates can't be written as UTF-8
        yield text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def is_json(name: str) -> bool:
    """Whether a file is JSON, by its name."""
    return name.lower().endswith((".json", ".jsonl", ".ndjson"))


def lines(pieces: Iterable[str]) -> Iterator[str]:
    """Yields the lines of a text in pieces, without line ends."""
    line = []
    for piece in pieces:
        first, *others = piece.split("\n")
        line.append(first)
        for other in others:
            yield "".join(line)
            line = [other]
    yield "".join(line)


def divide(pieces: Iterable[str], separator: str) -> Text:
    """Divides a text at each separator into documents, without newlines at their ends.

    A newline in the separator also matches that of Windows. A separator between two newlines, such
    as "\\n%\\n", also matches at the start and the end of the text, and two in a row may share one.
    """
    if separator.startswith("\n") and separator.endswith("\n") and separator.strip("\n"):
        pieces = chain(["\n"], pieces, ["\n"])
        escaped = re.escape(separator[:-1]) + "(?=\\\n)"
    else:
        escaped = re.escape(separator)
    pattern = re.compile(escaped.replace("\\\n", "\r?\n"))
    rest = ""
    begun = False  # whether a part of the document in `rest` has been passed on
    for piece in pieces:
        *complete, rest = pattern.split(rest + piece)
        for document in complete:
            yield trim(document, begun)
            yield END
            begun = False
        if len(rest) > LONG_DOCUMENT:
            # keep what may be the beginning of a separator, or newlines at the end
            end = last_gap(rest[: -2 * len(separator)].rstrip())
            part = rest[:end] if begun else rest[:end].lstrip("\r\n")
            yield part
            rest, begun = rest[end:], begun or part != ""
    yield trim(rest, begun)


def split_documents(text: str, tokenizer: Tokenizer) -> list[str]:
    """The documents of a text, as `prepare.py` divided the training text; some may be empty.

    If the text has the tokenizer's own separator, that divides it. Only documents that were not
    files lose the newlines around them.
    """
    separator, divider = tokenizer.separator, tokenizer.divider
    if not divider:
        return text.split(separator) if separator else [text]
    documents = [""]
    for piece in divide([text], separator if separator and separator in text else divider):
        documents[-1] += piece or ""
        if piece is END:
            documents.append("")
    return documents


def split_prompt(prompt: str, tokenizer: Tokenizer) -> list[str]:
    """The documents of a prompt, without empty ones in the middle.

    Unlike those of a text, the first and the last keep the newlines at the prompt's ends.
    """
    documents = split_documents(prompt, tokenizer)
    if len(documents) == 1:
        return [prompt]
    documents[1:-1] = filter(None, documents[1:-1])
    if tokenizer.divider:
        start, end = re.fullmatch(r"([\r\n]*).*?([\r\n]*)", prompt, re.DOTALL).groups()
        documents[0] = documents[0] and start + documents[0]
        documents[-1] = documents[-1] and documents[-1] + end
    return documents


def trim(document: str, begun: bool) -> str:
    """A document, or the end of one that has begun, without newlines around it."""
    if begun:
        return document.rstrip("\r\n")
    return document.strip("\r\n") if document.strip() else ""


def print_notes(text: str, tokenizer: Tokenizer) -> None:
    """Prints to standard error what the model may not have seen in its training text."""
    if "\r" in text:
        print(
            "note: the text has carriage returns (Windows line ends): remove them with dos2unix,"
            " unless the training text had them",
            file=sys.stderr,
        )
    if tokenizer.separator != NUL and text.count(NUL) > 0.01 * len(text):
        print(
            "note: the text has many NUL characters: if it is UTF-16, convert it to UTF-8",
            file=sys.stderr,
        )
