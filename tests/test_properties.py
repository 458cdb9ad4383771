"""Random and damaged input, thought up by hypothesis: an exit status and one line, never a traceback, never a hang."""

import json
import os
import shutil
from pathlib import Path

import pytest
from conftest import TINY, same, verses, weights
from hypothesis import given, settings
from hypothesis import strategies as st

import evaluate
import plot
import prepare
import sample
import train
from cli import UserError
from config import Config, load_config
from tokenizer import ByteTokenizer, CharTokenizer

quick = settings(deadline=None, derandomize=True, max_examples=40)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**70) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module", autouse=True)
def trained(tmp_path_factory):
    """The current folder, with a finished run."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("trained"))
    Path("verses.txt").write_text(verses(400))
    prepare.prepare("verses_char", ["verses.txt"])
    train.train(Config(**TINY))
    shutil.copytree("data/verses_char", "whole")
    yield
    os.chdir(before)


@st.composite
def damaged(draw, whole: bytes) -> bytes:
    """A file with its end cut off, some bytes replaced, or something put in between."""
    start, end = sorted((draw(st.integers(0, len(whole))), draw(st.integers(0, len(whole)))))
    return draw(st.sampled_from([whole[:start], whole[:start] + draw(st.binary(max_size=20)) + whole[end:]]))


@quick
@given(st.text())
def test_characters_and_bytes_give_the_text_back(text):
    encoded = text.encode("utf-8", "ignore").decode()  # without lone surrogates, which no UTF-8 file has
    for tokenizer in (CharTokenizer.from_text([encoded]), ByteTokenizer()):
        assert tokenizer.decode(tokenizer.encode(encoded)) == encoded


@quick
@given(st.binary(max_size=300) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "replace")))
def test_any_bytes_can_be_offered_as_text(content):
    Path("some.txt").write_bytes(content)
    status = prepare.main(["some_char", "--input", "some.txt"])
    assert status in (0, 1)
    assert Path("data/some_char/meta.json").exists() >= (status == 0)
    assert evaluate.main(["--ckpt", "out/tiny_best.pt", "--text", "some.txt"]) in (0, 1)
    sampled = sample.main(["--ckpt", "out/tiny_best.pt", "--prompt_file", "some.txt", "--max_new_tokens", "2"])
    assert sampled in (0, 1, 2)


@quick
@given(
    st.dictionaries(st.sampled_from([*TINY, "on_cpu", "patience", "save_interval", "compile"]), json_values, max_size=4)
)
def test_any_value_can_stand_in_a_config(values):
    lines = [
        f"{name} = {value!r}".replace(" inf", " 1e999").replace(" nan", " 1e999-1e999")
        for name, value in values.items()
    ]
    Path("some.py").write_text("\n".join(lines), encoding="utf-8", errors="replace")
    try:
        assert isinstance(load_config(["some.py", "--device=cpu"]), Config)
    except UserError as error:
        assert error.status == 2 and "\n" not in str(error)


@quick
@given(st.text(alphabet="=\"'()[]{}#,:\n\t 0123456789.abc_é\0", max_size=60))
def test_any_text_can_be_offered_as_a_config(text):
    Path("some.py").write_text(text, encoding="utf-8")
    try:
        load_config(["some.py", "--device=cpu"])
    except UserError as error:
        assert error.status == 2


@quick
@given(st.data())
def test_a_damaged_dataset_is_refused_or_sound(data):
    shutil.copytree("whole", "data/verses_char", dirs_exist_ok=True)
    meta = Path("data/verses_char/meta.json")
    match data.draw(st.sampled_from(["bytes", "value", "ids"])):
        case "bytes":
            meta.write_bytes(data.draw(damaged(meta.read_bytes())))
        case "value":
            changed = json.loads(meta.read_text())
            changed[data.draw(st.sampled_from(sorted(changed)))] = data.draw(json_values)
            meta.write_text(json.dumps(changed))
        case "ids":
            name = data.draw(st.sampled_from(["train.bin", "val.bin"]))
            Path("data/verses_char", name).write_bytes(data.draw(damaged(Path("whole", name).read_bytes())))
    before = Path("out/tiny_last.pt").read_bytes()
    assert evaluate.main(["--ckpt", "out/tiny_best.pt"]) in (0, 1)
    assert Path("out/tiny_last.pt").read_bytes() == before


@quick
@given(damage=st.data())
def test_a_damaged_checkpoint_is_refused_or_whole(damage):
    whole = Path("out/tiny_best.pt").read_bytes()
    content = damage.draw(damaged(whole) | st.binary(max_size=200))
    Path("some.pt").write_bytes(content)
    status = sample.main(["--ckpt", "some.pt", "--max_new_tokens", "2"])
    assert status == 1 or same(weights("some.pt"), weights("out/tiny_best.pt"))


@quick
@given(damage=st.data())
def test_a_damaged_metrics_file_is_refused_or_drawn(damage):
    whole = Path("out/tiny_metrics.jsonl").read_bytes()
    names = st.sampled_from(["step", "train/loss", "train/lr", "val/loss"])
    rows = st.lists(json_values | st.dictionaries(names, json_values), max_size=3).map(
        lambda rows: "\n".join(map(json.dumps, rows)).encode()
    )
    Path("some.jsonl").write_bytes(damage.draw(damaged(whole) | rows))
    assert plot.main(["some.jsonl", "--out", "some.svg"]) in (0, 1)
