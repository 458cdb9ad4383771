"""Whatever a file contains, a command ends with a status and at most one line of error."""

import contextlib
import io
import json
import os
import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import evaluate
import plot
import prepare
import sample
from common import bpe, run_state
from common.arguments import load_config
from common.cli import command
from common.dataset import load_dataset
from common.metrics import Metrics
from common.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer, TrainedBPETokenizer
from config import SETTINGS
from evaluate import mean_loss
from export import describe_tokenizer
from train import Run

META = "data/verses_char/meta.json"
BEST, LAST, METRICS = "out/tiny_best.pt", "out/tiny_last.pt", "out/tiny_metrics.jsonl"


def examples(count: int):
    """Always the same examples, so that a result depends on the code and not on luck."""
    return settings(max_examples=count, deadline=None, derandomize=True, database=None)


@contextlib.contextmanager
def new_folder():
    """An empty current folder, for one example."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        yield


@contextlib.contextmanager
def copy_of(template: Path):
    """A copy of the template as the current folder, for one example."""
    with new_folder():
        shutil.copytree(template, ".", dirs_exist_ok=True)
        yield


def run(main, *arguments) -> int:
    """The command's exit status: 0, or 1 or 2 with one line that says why."""
    output, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        status = main(list(arguments))
    assert status in (0, 1, 2)
    assert error.getvalue().count("\n") == (0 if status == 0 else 1), error.getvalue()
    return status


@command
def read_settings(argv: list[str]) -> None:
    """What train.py does before it trains."""
    load_config(argv)


@command
def train_a_step(argv: list[str]) -> None:
    """What train.py does, for one step and without writing or drawing anything but metrics."""
    config, start = load_config(argv)
    dataset = load_dataset(config.dataset)
    config = replace(config, vocab_size=dataset.tokenizer.vocab_size)
    run = Run(config, dataset, torch.device("cpu"), torch.float32)
    if start:
        run_state.resume(run, start)
    with Metrics(config.path("metrics.jsonl"), config, run.id, run.step, False) as metrics:
        metrics.add(run.step, 0.1, *run.update(run.step))
        metrics.flush()
        loss = mean_loss(run.eval_model, dataset.val, run.dtype, config.eval_tokens)
        metrics.write(run.step, {"val/loss": loss})


# modest numbers, and some beyond any size
NUMBERS = st.integers(-99, 99) | st.sampled_from([2**31, 2**64, 10**400]) | st.floats()
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@st.composite
def damaged(draw, content: bytes) -> bytes:
    """The content without its end, or with some bits of a byte flipped, or other content."""
    at = draw(st.integers(0, len(content) - 1))
    kind = draw(st.sampled_from(["cut", "flip", "replace"]))
    if kind == "cut":
        return content[:at]
    if kind == "flip":
        bits = draw(st.integers(1, 255))
        return content[:at] + bytes([content[at] ^ bits]) + content[at + 1 :]
    return draw(st.binary())


@st.composite
def replaced(draw, tree: dict) -> dict:
    """A copy of the dict with one value, at some depth, replaced by a random one or missing."""
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


def check_round_trip(tokenizer, text: str) -> None:
    ids = tokenizer.encode(text).tolist()
    decode = tokenizer.stream_decoder()
    assert tokenizer.decode(ids) == text
    assert "".join(decode([i]) for i in ids) == text


BPE_TEXTS = st.text() | st.text("<|endoftext|> \n'é😀") | st.text("ab a\u0301 \n12", max_size=60)


@examples(60)
@given(text=st.text())
def test_characters_and_bytes_keep_the_whole_text(text):
    check_round_trip(CharTokenizer("".join(sorted(set(text)))), text)
    check_round_trip(ByteTokenizer(), text)


@pytest.mark.skipif(
    not (ROOT / "data/downloads/gpt2_bpe").exists(), reason="GPT-2's files are not downloaded"
)
def test_bpe_keeps_the_whole_text(monkeypatch):
    monkeypatch.chdir(ROOT)
    tokenizer = BPETokenizer()

    @examples(60)
    @given(text=BPE_TEXTS)
    def check(text):
        check_round_trip(tokenizer, text)

    check()


@examples(80)
@given(texts=st.lists(BPE_TEXTS, max_size=4), size=st.integers(0, 50), text=BPE_TEXTS)
def test_any_trained_bpe_keeps_the_whole_text_and_agrees_with_transformers(texts, size, text):
    tokenizer = TrainedBPETokenizer(bpe.train(texts * 2, size))
    check_round_trip(tokenizer, text)
    theirs = Tokenizer.from_str(json.dumps(describe_tokenizer(tokenizer)))
    ids = tokenizer.encode(text).tolist()
    assert theirs.encode(text).ids == ids
    assert theirs.decode(ids) == text


@examples(40)
@given(content=st.binary() | st.text().map(str.encode), kind=st.sampled_from(["char", "byte"]))
def test_any_file_is_prepared_as_a_whole_or_not_at_all(content, kind):
    with new_folder():
        Path("a.txt").write_bytes(content)
        Path("data").mkdir()
        if run(prepare.main, f"a_{kind}", "--input", "a.txt") == 0:
            dataset = load_dataset(f"a_{kind}")
            ids = np.concatenate([dataset.train, dataset.val])
            assert dataset.tokenizer.decode(ids).encode() == content
        else:
            assert sorted(os.listdir()) == ["a.txt", "data"]
            assert os.listdir("data") == []


# config files, made of names and characters that can't form harmful Python

NAMES = st.sampled_from([*SETTINGS, "on_cpu", "n_layer", "abc", "_private"])
LINES = st.builds("{} = {!r}".format, NAMES, JSON | st.dictionaries(NAMES, JSON, max_size=2))
ASSIGNMENTS = st.lists(LINES, max_size=4).map("\n".join).map(str.encode)
CHARACTERS = st.text("abc=01 \n\t'\"#()[]{}+-.,:\\\0é").map(str.encode)
BINARY = st.binary(max_size=4).map(b"\xff".__add__)


@examples(150)
@given(content=ASSIGNMENTS | CHARACTERS | BINARY)
def test_any_config_file_is_read_or_refused(content):
    with new_folder():
        Path("a.py").write_bytes(content)
        run(read_settings, "a.py")


# damaged files of a dataset or a run


def test_undamaged_files_are_read(template):
    with copy_of(template):
        assert run(train_a_step, "tiny.py") == 0
        assert run(train_a_step, "tiny.py", "--resume", "--max_steps=13") == 0


def test_any_meta_json_is_read_or_refused(template):
    content = (template / META).read_bytes()
    changed = replaced(json.loads(content)).map(json.dumps).map(str.encode)

    @examples(60)
    @given(content=damaged(content) | changed)
    def check(content):
        with copy_of(template):
            Path(META).write_bytes(content)
            run(train_a_step, "tiny.py")
            run(evaluate.main, "--ckpt", BEST)

    check()


@pytest.mark.parametrize("split", ["train", "val"])
def test_any_tokens_are_read_or_refused(template, split):
    path = f"data/verses_char/{split}.bin"

    @examples(20)
    @given(content=damaged((template / path).read_bytes()))
    def check(content):
        with copy_of(template):
            Path(path).write_bytes(content)
            run(train_a_step, "tiny.py")
            run(evaluate.main, "--ckpt", BEST)

    check()


@pytest.mark.slow
def test_any_metrics_file_is_read_or_refused(template):
    content = (template / METRICS).read_bytes()
    rows = [json.loads(line) for line in content.splitlines()]

    @st.composite
    def lines(draw) -> bytes:
        """The metrics file with a changed row in between."""
        place = draw(st.integers(0, len(rows)))
        row = draw(replaced(draw(st.sampled_from(rows))))
        return "\n".join(map(json.dumps, [*rows[:place], row, *rows[place:]])).encode()

    @examples(15)
    @given(content=damaged(content) | lines())
    def check(content):
        with copy_of(template):
            Path(METRICS).write_bytes(content)
            run(plot.main, METRICS)
            run(train_a_step, "tiny.py", "--resume", "--max_steps=13")

    check()


def test_any_checkpoint_is_read_or_refused(template):
    content, state = (template / BEST).read_bytes(), torch.load(template / BEST)

    @examples(80)
    @given(change=damaged(content) | replaced(state))
    def check(change):
        with copy_of(template):
            if isinstance(change, bytes):
                Path(BEST).write_bytes(change)
            else:
                torch.save(change, BEST)
            shutil.copy(BEST, LAST)
            run(sample.main, "--ckpt", BEST, "--max_new_tokens=5")
            run(evaluate.main, "--ckpt", BEST)
            run(train_a_step, "tiny.py", "--resume", "--max_steps=13")

    check()
