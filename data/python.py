"""The source code of Python's own standard library: text that is on every reader's machine already."""

import fnmatch
import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from cli import UserError
from data import Corpus

ABOUT = "12 MB: the standard library of the Python that runs this, no download; indentation, brackets, names"
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load(folder: Path, *, inputs: Sequence[str] = (), pattern: str = "*.py") -> Corpus:
    """Each file is a document, of the library and of the source trees `inputs`. Raises UserError.

    folder: not used, as nothing is downloaded.
    """
    library = Path(sysconfig.get_path("stdlib"))
    files = _files(library, "*.py")
    for tree in inputs:
        if not (found := _files(Path(tree), pattern)):
            raise UserError(f"there is no folder {tree} with files {pattern}")
        files += found

    def documents() -> Iterator[str]:
        for path in files:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few old modules, in encodings of their own
                continue
            if text:
                yield text

    if not files:
        raise UserError(
            f"this Python keeps no source files in {library}: take another one, or code of your own (--input)"
        )
    name = f"standard library of {platform.python_implementation()} {platform.python_version()}"
    return Corpus(", ".join([name, *inputs]), documents)


def _files(tree: Path, pattern: str) -> list[Path]:
    files = []
    for where, folders, names in os.walk(tree):
        folders[:] = [name for name in folders if name not in SKIPPED]  # site-packages alone can hold 100,000 files
        files += [Path(where, name) for name in fnmatch.filter(names, pattern)]
    return sorted(files)
