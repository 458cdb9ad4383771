"""The source code of Python's own standard library: text that is on every reader's machine already."""

import os
import platform
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from cli import UserError
from data import Corpus

ABOUT = "12 MB: the standard library of the Python that runs this, no download; indentation, brackets, names"
SKIPPED = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}


def load(folder: Path) -> Corpus:
    """Each file is a document. folder: not used, as nothing is downloaded. Raises UserError."""
    library = Path(sysconfig.get_path("stdlib"))
    files = []
    for where, folders, names in os.walk(library):
        folders[:] = [name for name in folders if name not in SKIPPED]  # site-packages alone can hold 100,000 files
        files += [Path(where, name) for name in names if name.endswith(".py")]
    files.sort()

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
    return Corpus(f"standard library of {platform.python_implementation()} {platform.python_version()}", documents)
