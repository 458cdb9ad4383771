"""The commands and links in README.md and docs/."""

import importlib
import re
import shlex

import pytest
from helpers import ROOT

from common.arguments import find_file, parse_arguments
from common.cli import Parser
from config import make_config

PAGES = [ROOT / "README.md", ROOT / "data/README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands() -> list[str]:
    """The lines of code that run one of our programs, each once."""
    blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks += re.findall("^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = re.findall(r"python (?:\w+\.py|-m experiments\.\w+).*", "\n".join(blocks))
    others = ("config/train_shakespeare_char.py", "--help")  # nanoGPT's command; it exits
    return [line for line in dict.fromkeys(lines) if not any(word in line for word in others)]


class Parsed(Exception):
    """A command line has been understood."""


@pytest.mark.parametrize("line", commands())
def test_a_command_has_only_options_that_exist(line, monkeypatch):
    parse_args = Parser.parse_args

    def stop(parser, arguments):
        parse_args(parser, arguments)
        raise Parsed

    monkeypatch.setattr(Parser, "parse_args", stop)
    _, script, *arguments = shlex.split(line.split(" && ")[0], comments=True)
    if script == "train.py":
        path, settings, _ = parse_arguments(arguments)
        assert path is None or find_file(path)
        make_config(settings)
        return
    if script == "-m":
        script, *arguments = arguments
    with pytest.raises(Parsed):
        importlib.import_module(script.removesuffix(".py")).main(arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    for link in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert link.startswith("http") or (page.parent / link).exists(), link
