"""Whatever stands in a file, a command ends by itself with a status and at most one line; no text is lost in tokens."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
import plot
import prepare
import sample
import train
from common.dataset import load_dataset
from common.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from config import SETTINGS

ROOT = Path(__file__).parent.parent
META, BEST, LAST, METRICS = (
    "data/verses_char/meta.json", "out/tiny_best.pt", "out/tiny_last.pt", "out/tiny_metrics.jsonl",
)  # fmt: skip


def examples(count: int):
    """Always the same ones, so that a run of the tests tells of the code and not of luck."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@contextlib.contextmanager
def copy_of(template: Path):
    """A copy of the template as the current folder, for one example."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        shutil.copytree(template, folder, dirs_exist_ok=True)
        yield


def run(main, *arguments) -> int:
    """The command's exit status: 0, or 1 or 2 with one line that says why."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as error,
    ):
        status = main(list(arguments))
    assert status in (0, 1, 2)
    assert error.getvalue().count("\n") == (status > 0), error.getvalue()
    return status


NUMBERS = (
    st.integers(-99, 99) | st.sampled_from([2**31, 2**64, 10**400]) | st.floats()
)  # beyond any size, or modest
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damage(draw):
    """A function that cuts off the end of some bytes, flips bits of one of them, or puts others into their place."""
    kind, place, other = (
        draw(st.sampled_from(["cut", "flip", "replace"])),
        draw(st.floats(0, 1)),
        draw(st.binary()),
    )
    bits = draw(st.integers(1, 255))

    def apply(content: bytes) -> bytes:
        at = int(place * (len(content) - 1))
        if kind == "cut":
            return content[:at]
        return (
            content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]
            if kind == "flip"
            else other
        )

    return apply


@st.composite
def replaced(draw, tree):
    """A copy of the dict with a random value in the place of one of its own, at some depth, or with one missing."""
    tree = dict(tree)
    key = draw(st.sampled_from(sorted(tree)))
    if isinstance(tree[key], dict) and tree[key] and draw(st.integers(0, 3)):
        tree[key] = draw(replaced(tree[key]))
    elif draw(st.integers(0, 4)):
        tree[key] = draw(JSON)
    else:
        del tree[key]
    return tree


# texts


@examples(60)
@given(text=st.text())
@pytest.mark.parametrize(
    "make", [lambda text: CharTokenizer("".join(sorted(set(text)))), lambda text: ByteTokenizer()]
)
def test_tokens_hold_the_whole_text(make, text):
    tokenizer = make(text)
    ids = tokenizer.encode(text).tolist()
    decode = tokenizer.stream_decoder()
    assert tokenizer.decode(ids) == text == "".join(decode([i]) for i in ids)


@pytest.mark.skipif(
    not (ROOT / "data/downloads/gpt2_bpe").exists(), reason="GPT-2's files have not been fetched"
)
def test_bpe_tokens_hold_the_whole_text(monkeypatch):
    monkeypatch.chdir(ROOT)
    tokenizer = BPETokenizer()

    @examples(60)
    @given(text=st.text() | st.text("<|endoftext|> \n'é😀"))
    def check(text):
        ids = tokenizer.encode(text).tolist()
        decode = tokenizer.stream_decoder()
        assert tokenizer.decode(ids) == text == "".join(decode([i]) for i in ids)

    check()


@examples(60)
@given(content=st.binary() | st.text().map(str.encode), kind=st.sampled_from(["char", "byte"]))
def test_any_bytes_are_prepared_whole_or_not_at_all(content, kind):
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("a.txt").write_bytes(content)
        Path("data").mkdir()
        if run(prepare.main, f"a_{kind}", "--input", "a.txt") == 0:
            dataset = load_dataset(f"a_{kind}")
            assert (
                dataset.tokenizer.decode(np.concatenate([dataset.train, dataset.val])).encode()
                == content
            )
        else:
            assert sorted(os.listdir()) == ["a.txt", "data"] and os.listdir("data") == []


# config files: the names and signs in them are such that no Python of theirs can do harm

NAMES = st.sampled_from([*SETTINGS, "on_cpu", "n_layer", "abc", "_private"])
LINES = st.builds("{} = {!r}".format, NAMES, JSON | st.dictionaries(NAMES, JSON, max_size=2))
SIGNS = st.text("abc=01 \n\t'\"#()[]{}+-.,:\\\0é")


@examples(200)
@given(
    content=st.lists(LINES, max_size=4).map("\n".join)
    | SIGNS
    | st.binary(max_size=4).map(lambda b: b"\xff" + b)
)
def test_any_config_file_is_taken_or_refused(content):
    with (
        tempfile.TemporaryDirectory() as folder,
        contextlib.chdir(folder),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(train, "train", lambda config: {"finished": True})
        Path("a.py").write_bytes(content if isinstance(content, bytes) else content.encode())
        run(train.main, "a.py")


# files that a command made, and something else has spoilt


def test_any_meta_json_is_taken_or_refused(template, monkeypatch):
    monkeypatch.setattr(train, "draw", lambda paths, out: None)  # it takes most of the time
    whole = (template / META).read_bytes()

    @examples(30)
    @given(
        content=damage().map(lambda f: f(whole))
        | replaced(json.loads(whole)).map(lambda j: json.dumps(j).encode())
    )
    def check(content):
        with copy_of(template):
            Path(META).write_bytes(content)
            run(train.main, "tiny.py", "--max_steps=2")
            run(evaluate.main, "--ckpt", BEST)

    check()


def test_any_tokens_are_taken_or_refused(template, monkeypatch):
    monkeypatch.setattr(train, "draw", lambda paths, out: None)

    @examples(20)
    @given(damage=damage(), split=st.sampled_from(["train", "val"]))
    def check(damage, split):
        with copy_of(template):
            path = Path("data/verses_char") / f"{split}.bin"
            path.write_bytes(damage(path.read_bytes()))
            run(train.main, "tiny.py", "--max_steps=2")
            run(evaluate.main, "--ckpt", BEST)

    check()


def test_any_metrics_file_is_taken_or_refused(template, monkeypatch):
    monkeypatch.setattr(train, "draw", lambda paths, out: None)
    whole = (template / METRICS).read_bytes()
    rows = [json.loads(line) for line in whole.splitlines()]
    changed = st.tuples(st.sampled_from(rows).flatmap(replaced), st.integers(0, len(rows)))
    lines = changed.map(
        lambda c: "\n".join(
            json.dumps(row) for row in [*rows[: c[1]], c[0], *rows[c[1] :]]
        ).encode()
    )

    @examples(25)
    @given(content=damage().map(lambda f: f(whole)) | lines)
    def check(content):
        with copy_of(template):
            Path(METRICS).write_bytes(content)
            run(plot.main, METRICS)
            run(train.main, "tiny.py", "--resume", "--max_steps=13")

    check()


def test_any_checkpoint_is_taken_or_refused(template, monkeypatch):
    monkeypatch.setattr(train, "draw", lambda paths, out: None)
    state = torch.load(template / BEST)

    @examples(60)
    @given(change=damage() | replaced(state))
    def check(change):
        with copy_of(template):
            for path in (BEST, LAST):
                if callable(change):
                    Path(path).write_bytes(change(Path(path).read_bytes()))
                else:
                    torch.save(change, path)
            run(sample.main, "--ckpt", BEST, "--max_new_tokens=5")
            run(evaluate.main, "--ckpt", BEST)
            run(train.main, "tiny.py", "--resume", "--max_steps=13")

    check()
