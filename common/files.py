"""Where the project's files are; finding and reading text files; atomic writes and locks."""

import codecs
import errno
import glob
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from typing import IO, BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from common.errors import UserError, listed

BLOCK_BYTES = 1 << 16  # read from a file at once; small enough for the CPU cache
LONGEST_WORD = 10_000  # characters
STDIN = Path("-")

ROOT = Path(__file__).parent.parent  # the project's folder


def data_dir() -> Path:
    """Where datasets and downloads are: data/ of the project, or what CAPSTONE_DATA says."""
    if folder := os.environ.get("CAPSTONE_DATA"):
        return Path(folder)
    return Path("data") if Path.cwd() == ROOT else ROOT / "data"


def expand(paths: Iterable[str]) -> list[str]:
    """Expands wildcards that the shell has left. Raises UserError if one matches nothing."""
    found = []
    for path in paths:
        if os.path.lexists(path) or "://" in path or not set("*?[") & set(path):
            found.append(path)
        elif matching := sorted(glob.glob(path, recursive=True)):
            found += matching
        else:
            raise UserError(f"no file matches {path}")
    return found


def find(inputs: Iterable[str], patterns: Sequence[str]) -> list[Path]:
    """The inputs that are files, and the matching files in inputs that are folders; each file once.

    Raises UserError if an input does not exist, or a folder has no matching file.
    """
    files, repeated = {}, []  # by real path
    for name in expand(inputs):
        path = Path(name)
        found = [path]
        if path.is_dir():
            found = find_in_folder(path, patterns)
        elif not path.exists() and path != STDIN:
            is_url = "://" in name
            hint = "; download it first, or pipe it in with --input -" if is_url else ""
            raise UserError(f"there is no file {name}{hint}")
        for file in found:
            if files.setdefault(os.path.realpath(file), file) is not file:
                repeated.append(str(file))
    if repeated:
        print(f"given more than once, used once: {listed(repeated)}")
    return list(files.values())


def find_in_folder(folder: Path, patterns: Sequence[str]) -> list[Path]:
    """The matching files in a folder and its subfolders, sorted. Prints what it leaves out.

    Hidden files and folders and virtual environments are left out. Links are followed, but each
    folder is visited once, under its own name if that is in the folder.
    """
    found, others, left_out, visited = [], 0, [], set()

    def walk(top: Path) -> Iterator[tuple[str, list[str], list[str]]]:
        """os.walk, with all links at the end."""
        links = []
        for where, folders, names in os.walk(top, onerror=lambda e: left_out.append(e.filename)):
            yield where, folders, names
            links += [path for name in folders if (path := Path(where, name)).is_symlink()]
        for link in links:
            yield from walk(link)

    for where, folders, names in walk(folder):
        real = Path(where).resolve()
        environment = "pyvenv.cfg" in names and Path(where) != folder
        if real in visited or environment:
            folders.clear()
            continue
        visited.add(real)
        targets = {name: Path(where, name).resolve() for name in folders}
        folders[:] = sorted(
            name
            for name, target in targets.items()
            if not name.startswith(".") and not real.is_relative_to(target)  # a link to a parent
        )
        for name in names:
            file = Path(where, name)
            parts = file.relative_to(folder).parts
            if name.startswith("."):
                continue
            if not any(matches(parts, pattern) for pattern in patterns):
                others += 1
            elif file.is_file():
                found.append(file)
            else:  # a broken link
                left_out.append(str(file))
    if left_out:
        print(f"warning: can't read {listed(left_out)}")
    if not found:
        hint = "choose other files with --pattern '*.py'"
        if len(patterns) == 1 and not set("*?[") & set(patterns[0]):
            hint = f"did you mean --pattern '*.{patterns[0].lstrip('.')}'?"
        raise UserError(f"no {' or '.join(patterns)} in {folder}; {hint}")
    if others:
        count = f"{len(found):,} of {len(found) + others:,} files"
        print(f"{folder}: {count} match {' or '.join(patterns)} (choose others with --pattern)")
    return sorted(found)


def matches(parts: Sequence[str], pattern: str) -> bool:
    """Whether the parts of a path in a folder match a pattern such as *.txt or src/**/*.py.

    A pattern without a slash applies to the name of the file. Upper and lower case are the same.
    """

    def match(parts: Sequence[str], wanted: Sequence[str]) -> bool:
        if not parts or not wanted:
            return not parts and not wanted
        if wanted == ["**"]:
            return True
        if wanted[0] == "**":
            return match(parts, wanted[1:]) or match(parts[1:], wanted)
        return fnmatchcase(parts[0].lower(), wanted[0].lower()) and match(parts[1:], wanted[1:])

    wanted = pattern.removeprefix("./").split("/")
    return match(parts, wanted if len(wanted) > 1 else ["**", *wanted])


class NotText(UserError):
    """A file that can't be decoded."""


class OtherFormat(NotText):
    """A file that is not text in any encoding."""


MARKS = {  # byte order marks, with which text in these encodings may begin
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # begins with the mark of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
SIGNATURES = {  # (offset, bytes): what a file with these bytes there is
    (0, b"\x1f\x8b"): "compressed by gzip",
    (4, b"1AY&SY"): "compressed by bzip2",
    (0, b"\xfd7zXZ"): "compressed by xz",
    (0, b"\x28\xb5\x2f\xfd"): "compressed by zstd",
    (0, b"PK\3\4"): "a ZIP archive or an office document",
    (257, b"ustar"): "a tar archive",
    (0, b"%PDF-"): "a PDF",
    (0, b"{\\rtf"): "an RTF document",
    (0, b"\xd0\xcf\x11\xe0"): "an old office document",
    (0, b"PAR1\x15"): "a Parquet file",
}


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, line ends unchanged, without a byte order mark.

    Raises UserError.
    """
    try:
        return "".join(read_pieces(Path(path)))
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except OtherFormat as error:
        raise UserError(f"{error}: save its text as a UTF-8 file first") from None
    except NotText as error:
        raise UserError(f"{error}: convert it to UTF-8 first") from None


def read_pieces(
    source: Path | BinaryIO,
    encoding: str = "utf-8",
    size: int | None = None,
    name: str | None = None,
) -> Iterator[str]:
    """Yields the text of a file in pieces that `cut` makes, without a byte order mark.

    A byte order mark counts more than `encoding`. size: bytes to read at most; name: of the source
    in errors. Raises NotText, or OSError.
    """
    name = name or str(source)
    with open(source, "rb") if isinstance(source, Path) else nullcontext(source) as file:
        start = file.peek(512)
        for (offset, signature), kind in SIGNATURES.items():
            if start.startswith(signature, offset):
                raise OtherFormat(f"{name} is {kind}, not text")
        encoding = marked_encoding(start) or encoding
        end, limit = 0, math.inf if size is None else size  # end: of what has been read

        def blocks() -> Iterator[bytes]:
            nonlocal end
            while block := file.read(min(BLOCK_BYTES, limit - end)):
                end += len(block)
                yield block

        try:
            yield from cut(codecs.iterdecode(blocks(), encoding))
        except UnicodeDecodeError as error:
            offset = end - len(error.object) + error.start
            where = f"byte {offset:,} is {error.object[error.start]:#04x}"
            raise NotText(f"{name} is not {encoding.upper()} text ({where})") from None
        except UnicodeError as error:  # UTF-16 without a byte order mark
            raise NotText(f"{name} is not {encoding} text ({error})") from None


def marked_encoding(start: bytes) -> str | None:
    """The encoding that a byte order mark at the start of a file tells, if there is one."""
    return next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None)


def cut(blocks: Iterable[str]) -> Iterator[str]:
    """Yields a text in pieces, about as long as its blocks, that can be tokenized one by one.

    A piece ends at the `last_gap`.
    """
    rest = ""
    for block in blocks:
        text = rest + block
        end = last_gap(text)
        yield text[:end]
        rest = text[end:]
    if rest:
        yield rest


def last_gap(text: str) -> int:
    """The last index between a word and the white space after it: no token of a BPE crosses one.

    If the last LONGEST_WORD characters have no such place, it is the end of the text, or the index
    of a "\\r" there, because a "\\n" may follow.
    """
    for i in range(len(text) - 1, max(0, len(text) - LONGEST_WORD), -1):
        if text[i].isspace() and not text[i - 1].isspace():
            return i
    return len(text) - text.endswith("\r")


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Calls write(file) on a temporary file, then renames it to path once it is on the disk.

    Creates the folder. If anything fails, path is unchanged. Raises OSError.
    """
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must reach the disk too
        folder = os.open(path.parent, os.O_RDONLY)
        with suppress(OSError):  # some file systems can't sync a folder (FUSE, CIFS, VirtualBox)
            os.fsync(folder)
        os.close(folder)


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file atomically."""
    write_atomically(path, lambda file: file.write(content))


def lock(file: int | IO, problem: str) -> None:
    """Locks an open file or folder until it is closed or the process dies.

    Raises UserError(problem) if it is locked. Does nothing on systems or disks without such locks.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(problem) from None
    except OSError:  # a disk without locks
        pass


@contextmanager
def locked(folder: Path, problem: str, wait: bool = False) -> Iterator[None]:
    """Locks a folder for the time of a `with` block.

    If it is locked: with wait, prints problem and waits, else raises UserError(problem).
    """
    if fcntl is None:  # Windows can't open a folder
        yield
        return
    file = os.open(folder, os.O_RDONLY)
    try:
        try:
            lock(file, problem)
        except UserError as error:
            if not wait:
                raise
            print(error, flush=True)
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        os.close(file)
