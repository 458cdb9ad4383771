"""Samples of a dataset of documents begin and end with a document."""

import re
from pathlib import Path

import pytest
import torch
from helpers import arguments, shorten_endings

import evaluate
import export
import plot
import sample
import train
from common import checkpoint
from common.dataset import load_dataset
from common.metrics import read_metrics
from common.tokenizer import BPETokenizer, CharTokenizer
from prepare import prepare

NAMES = ["Emma", "Noah", "Mia", "Leo", "Ada", "Max", "Ivy", "Eli", "Zoe", "Kai"]
SETTINGS = {"block_size": 8, "max_steps": 150, "batch_size": 16, "eval_interval": 150}


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """A folder with a model that has memorized ten names; one or two characters separate them."""
    folder = tmp_path_factory.mktemp("names")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten_endings(patch)
        Path("none.py").write_text("")
        for name, separator in (("line", "\n"), ("mark", "<>")):
            Path(f"{name}.txt").write_text(separator.join(NAMES))
            prepare(f"{name}_char", [f"{name}.txt"], separator=separator, val_fraction=0.1)
            settings = arguments(
                dataset=f"{name}_char", run_name=name, sample_interval=100, **SETTINGS
            )
            assert train.main(["none.py", *settings]) == 0
    return folder


@pytest.fixture
def inside(names, monkeypatch):
    monkeypatch.chdir(names)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line", "mark"])
def test_samples_of_a_run_are_whole_documents(inside, name):
    samples = [
        row["sample"] for row in read_metrics(f"out/{name}_metrics.jsonl") if "sample" in row
    ]
    assert len(samples) == 2
    assert all(0 < len(sample) < 30 for sample in samples)  # of up to 50 characters
    assert not any(char in sample for sample in samples for char in "\n<>")


@pytest.mark.slow
def test_twenty_names_one_a_line(inside, capsys):
    command = ["--ckpt", "out/line_last.pt", "--num_samples", "20", "--temperature", "0.5"]
    assert sample.main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 20
    assert set(lines) <= set(NAMES)
    assert len(set(lines)) > 3


@pytest.mark.slow
def test_documents_of_several_lines_get_headings(inside, capsys):
    assert sample.main(["--ckpt", "out/mark_last.pt", "--num_samples", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[::2] == ["--- sample 1 of 2 ---", "--- sample 2 of 2 ---"]
    assert set(lines[1::2]) <= set(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line", "mark"])
@pytest.mark.parametrize("prompt", ["", "Em"])
def test_a_sample_stops_at_the_end_of_its_document(inside, name, prompt, capsys):
    command = ["--ckpt", f"out/{name}_last.pt", "--prompt", prompt, "--temperature", "0.3"]
    assert sample.main(command) == 0
    assert capsys.readouterr().out.removesuffix("\n") in NAMES


@pytest.mark.slow
@pytest.mark.parametrize("name", ["line", "mark"])
def test_an_exported_model_stops_at_the_end_of_a_document(inside, name):
    transformers = pytest.importorskip("transformers")
    assert export.main(["--ckpt", f"out/{name}_last.pt", "--out", name]) == 0
    end = load_dataset(f"{name}_char").tokenizer.separator
    code = re.search("```python\n(.*?)```", Path(name, "README.md").read_text(), re.DOTALL)[1]
    code = code.replace('"do_sample": True, "temperature": 0.8, "top_k": 0', '"do_sample": False')
    printed = []
    exec(code, {"print": printed.append, "transformers": transformers})
    (text,) = printed
    assert text.startswith(end)
    assert text.endswith(end)
    assert text.removeprefix(end).removesuffix(end) in NAMES


def test_continuous_text_has_no_end(dataset, tiny):
    train.train(tiny())
    saved = checkpoint.load("out/tiny_best.pt")
    assert saved.tokenizer.keys() == {"kind", "characters"}
    writer = sample.TextDecoder(CharTokenizer(saved.tokenizer["characters"]))
    assert writer.add(writer_ids := list(range(20)) * 3) == writer_text(saved, writer_ids)
    assert not writer.ended


def writer_text(saved, ids) -> str:
    return "".join(saved.tokenizer["characters"][i] for i in ids)


# the end of a sample, whatever pieces it comes in


@pytest.mark.parametrize(
    "separator, stop, text, written, ended",
    [
        (None, None, "ab\n\ncd", "ab\n\ncd", False),
        ("\n", None, "ab\ncd", "ab", True),
        ("\n\n", None, "a\nb\n\ncd", "a\nb", True),
        ("\n\n", None, "ab\n", "ab\n", False),
        ("aab", None, "caaabd", "ca", True),
        ("\n\n", "b", "abc\n\n", "ab", True),
        ("\n\n", "c", "ab\n\nc", "ab", True),
        (None, "bc", "abcd", "abc", True),
        (None, "\n", "ab\ncd", "ab\n", True),
        ("\n", None, "\n", "", True),
    ],
)
def test_where_a_sample_ends(separator, stop, text, written, ended):
    tokenizer = CharTokenizer("\nabcd", separator)
    ids = tokenizer.encode(text).tolist()
    stops = [stop] if stop else []
    one_by_one, at_once = (sample.TextDecoder(tokenizer, stops) for _ in range(2))
    assert "".join(one_by_one.add([i]) for i in ids) + one_by_one.finish() == written
    assert at_once.add(ids) + at_once.finish() == written
    assert one_by_one.ended == at_once.ended == ended


def test_text_is_written_as_soon_as_possible():
    writer = sample.TextDecoder(CharTokenizer("\nab", "\n\n"), ["bbbb"])
    assert [writer.add([i]) for i in (1, 2, 0, 1, 0, 0)] == ["a", "b", "", "\na", "", ""]
    assert writer.ended


def test_bpe_samples_end_at_the_end_of_text_token(bpe):
    tokenizer = BPETokenizer()
    writer = sample.TextDecoder(tokenizer)
    ids = [*tokenizer.encode("The end.").tolist(), 50256, *tokenizer.encode("More").tolist()]
    assert writer.add(ids) == "The end."
    assert writer.ended


def test_generation_stops_once_all_samples_have_ended():
    tokenizer = CharTokenizer("\nab", "\n")
    tokens = iter(torch.tensor([[[1], [2]], [[0], [2]], [[1], [0]], [[1], [1]]]))
    writers = [sample.TextDecoder(tokenizer) for _ in range(2)]
    assert sample.decode_samples(tokens, writers) == ["a", "bb"]
    assert len(list(tokens)) == 1


# other commands


def test_evaluate_says_how_to_compare_tokenizers(template, monkeypatch, capsys):
    monkeypatch.chdir(template)
    assert evaluate.main(["--ckpt", "out/tiny_best.pt"]) == 0
    assert "different tokenizers, use bits per byte" in capsys.readouterr().out


def test_plot_expands_wildcards(template, monkeypatch, tmp_path):
    monkeypatch.chdir(template)
    out = tmp_path / "curves.png"
    assert plot.main(["out/*_metrics.jsonl", "--out", str(out)]) == 0
    assert out.exists()


def test_an_unknown_prompt_character_gets_a_short_error():
    tokenizer = CharTokenizer("".join(map(chr, range(0x4E00, 0x9EF0))))
    with pytest.raises(sample.UserError) as error:
        sample.encode_prompt("x", tokenizer)
    assert "'x'" in str(error.value)
    assert len(str(error.value).encode()) < 600
