"""The source code of Python's standard library: text that is already on every reader's machine."""

import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import files
from common.errors import UserError, listed
from data import Corpus, documents

ABOUT = (
    "12 MB: the standard library of the Python that runs this, no download;"
    " indentation, brackets, names"
)
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load(folder: Path, *, inputs: Sequence[str] = (), pattern: str | None = None) -> Corpus:
    """Each source file is a document; those that are not UTF-8 are left out.

    folder: unused, as nothing is downloaded. inputs: source files and folders to add to the
    library; pattern: which files of those folders, by default *.py. Raises UserError.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = []
    for where, folders, names in os.walk(library):
        # not rglob: site-packages alone can have 100,000 files
        folders[:] = [name for name in folders if name not in SKIPPED]
        paths += [Path(where, name) for name in names if name.endswith(".py")]
    if not paths:
        raise UserError(
            f"this Python has no source files in {library}: use another Python, or only your own"
            " code (python prepare.py code_byte --input DIR --pattern '*.py')"
        )
    paths.sort()
    added = files.find(inputs, [pattern or "*.py"])
    for path in added:
        if not path.is_file():  # it could be read only once
            raise UserError(f"{path} is not a file or folder: save its output to a file first")
    if left_out := [str(path) for path in added if read_utf8(path) is None]:
        print(f"left out, as they are not UTF-8 text: {listed(left_out)}")

    def texts() -> Iterator[str]:
        for path in added + paths:
            if text := read_utf8(path):
                yield text

    source = f"standard library of {platform.python_implementation()} {platform.python_version()}"
    return Corpus(", ".join([source, *inputs]), lambda: documents(texts()))


def read_utf8(path: Path) -> str | None:
    """The text of a file, or None if it is not UTF-8."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:  # a few old modules declare other encodings
        return None
