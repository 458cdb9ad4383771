import sys

import pytest

from common.cli import Parser, escape_controls, unescape
from common.errors import UserError


def parse(*arguments):
    parser = Parser(prog="test.py")
    parser.add_text("--prompt", default="")
    parser.add_text("--stop", type=unescape)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--ckpt")
    parser.add_argument("files", nargs="*")
    return parser.parse_args(list(arguments))


@pytest.mark.parametrize("value", ["-x", "--", "-", "--unknown", "-1", "a=b", "", "\\n"])
@pytest.mark.parametrize("joined", [False, True])
def test_any_text_can_be_the_value_of_a_text_option(value, joined):
    given = [f"--prompt={value}"] if joined else ["--prompt", value]
    args = parse(*given, "--seed", "3", "a.txt")
    assert args.prompt == value
    assert args.seed == 3
    assert args.files == ["a.txt"]


@pytest.mark.parametrize(
    "arguments", [["--seed="], ["--seed", ""], ["--ckpt", ""], [""], ["", "a"]]
)
def test_other_options_must_not_be_empty(arguments):
    with pytest.raises(UserError, match="must not be empty|invalid int value") as error:
        parse(*arguments)
    assert error.value.status == 2


@pytest.mark.parametrize(
    "arguments", [["--prompt"], ["--prompt", "--seed", "3"], ["--prompt", "--seed=3"]]
)
def test_a_text_option_without_a_value_is_refused(arguments):
    with pytest.raises(UserError, match="--prompt: expected one argument"):
        parse(*arguments)


def test_the_home_folder_can_follow_an_equals_sign(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert parse("--ckpt=~/a.pt").ckpt == "/home/me/a.pt"
    assert parse("--prompt=~/a").prompt == "~/a"


@pytest.mark.parametrize("description", ["What it does.\n\nMore.", "What it does.", None])
def test_the_first_line_of_a_description_is_shown(description):  # none: python -OO
    assert Parser(prog="test.py", description=description).description == (
        "What it does." if description else ""
    )


@pytest.mark.parametrize(
    "typed, text",
    [
        (r"\n", "\n"),
        (r"a\tb", "a\tb"),
        (r"\\n", r"\n"),
        (r"\d", r"\d"),
        ("\n", "\n"),
        (r"\r\n", "\r\n"),
    ],
)
def test_escapes_that_a_shell_leaves(typed, text):
    assert parse("--stop", typed).stop == text
    assert parse("--prompt", typed).prompt == typed


def test_control_characters_are_escaped_on_a_terminal(monkeypatch):
    text = "a\x1b[31mb\a\b\x9b\x7f\ttab\r\nline\rover é😀"
    assert escape_controls(text) == text
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    shown = r"a\x1b[31mb\x07\x08\x9b\x7f" + "\ttab\r\nline" + r"\rover é😀"
    assert escape_controls(text) == shown
    assert escape_controls("\r") == r"\r"
