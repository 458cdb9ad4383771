"""The source code of Python's own standard library: text that is on every reader's machine already."""

import os
import platform
import sysconfig
from collections.abc import Iterator, Sequence
from pathlib import Path

from common import files
from common.errors import UserError
from data import Corpus

ABOUT = "12 MB: the standard library of the Python that runs this, no download; indentation, brackets, names"
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load(folder: Path, *, inputs: Sequence[str] = (), pattern: str | None = None) -> Corpus:
    """Each file is a document. folder: not used, as nothing is downloaded. Raises UserError.

    inputs: source files, and folders of them, that come after the library; pattern: of those in folders, by default *.py.
    """
    library = Path(sysconfig.get_path("stdlib"))
    paths = []
    for where, folders, names in os.walk(library):
        folders[:] = [
            name for name in folders if name not in SKIPPED
        ]  # site-packages alone can hold 100,000 files
        paths += [Path(where, name) for name in names if name.endswith(".py")]
    if not paths:
        raise UserError(
            f"this Python keeps no source files in {library}: take another one, or code of your own alone "
            "(python prepare.py code_byte --input DIR --pattern '*.py')"
        )
    paths = sorted(paths) + files.find(inputs, [pattern or "*.py"])

    def documents() -> Iterator[str]:
        for path in paths:
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError:  # a few old modules, in encodings of their own
                continue
            if text:
                yield text

    source = f"standard library of {platform.python_implementation()} {platform.python_version()}"
    return Corpus(", ".join([source, *inputs]), documents)
