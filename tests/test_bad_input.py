"""What people get wrong: an exit status and one line that says what to do, and no file changes."""

import json
import math
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, contents, error_line, run, verses

import evaluate
import export
import plot
import prepare
import sample
import train

MAINS = {
    "train.py": train.main,
    "sample.py": sample.main,
    "evaluate.py": evaluate.main,
    "export.py": export.main,
    "plot.py": plot.main,
    "prepare.py": prepare.main,
}
BEST, LAST, METRICS = "out/tiny_best.pt", "out/tiny_last.pt", "out/tiny_metrics.jsonl"


@pytest.fixture
def files(finished_run):
    """The current folder, with a dataset, a finished run, and files that are not ours."""
    for name, text in {
        "short.txt": "To be",
        "empty.txt": "",
        "accents.txt": "é ü",
        "syntax.py": "n_layers = 2\nn_heads = = 2\n",
        "raises.py": "n_layers = 4\nd_ff = 1 / 0\n",
        "exits.py": "raise SystemExit('bye')\n",
        "lines.py": "raise ValueError('one\\ntwo')\n",
        "unknown.py": "n_layer = 2\n",
        "text.py": "n_layers = '4 of them'\n",
        "one.py": "bias = 1\n",
        "number.py": "on_cpu = 3\n",
        "nested.py": "on_cpu = dict(n_layer=3)\n",
        "key.py": "on_cpu = {4: 2}\n",
        "nul.py": "run_name = 'a\\0b'\n",
    }.items():
        Path(name).write_text(text)
    Path("latin1.txt").write_bytes(b"caf\xe9")
    Path("binary.py").write_bytes(bytes(range(256)))
    Path("folder.py").mkdir()
    Path("truncated.pt").write_bytes(Path(BEST).read_bytes()[:-500])
    Path("code.pt").write_bytes(pickle.dumps(print))
    torch.save({"weights": torch.zeros(2)}, "other.pt")
    return finished_run


def refused(capsys, command: list[str], status: int, words: str) -> None:
    """Runs a command, which has to fail with this status and these words, and change nothing."""
    before = contents(Path())
    capsys.readouterr()
    assert MAINS[command[0]](command[1:]) == status
    error = error_line(capsys)
    assert error.startswith("error: ")
    assert words in error
    assert contents(Path()) == before


def train_new(**settings) -> list[str]:
    return ["train.py", "tiny.py", *arguments(run_name="new", **settings)]


RESUME = ["train.py", "tiny.py", "--run_name=tiny", "--resume"]
PREPARE = ["prepare.py", "a_char", "--input"]
SAMPLE = ["sample.py", "--ckpt", BEST]

TABLE = [
    # settings: values
    (train_new(n_layers="two"), 2, "n_layers must be a whole number, not 'two'"),
    (train_new(n_layers=2.5), 2, "n_layers must be a whole number"),
    (train_new(max_steps="nan"), 2, "max_steps must be a whole number"),
    (train_new(max_steps="1e30"), 2, "max_steps must be below 2^63"),
    (train_new(dropout="high"), 2, "dropout must be a number"),
    (train_new(bias=1), 2, "bias must be true or false"),
    (train_new(norm_type="x"), 2, "norm_type must be rmsnorm or"),
    (train_new(compile="maybe"), 2, "compile must be"),
    (train_new(save_interval="often"), 2, "save_interval must be steps or minutes"),
    (train_new(device="tpu"), 2, "device tpu can't be used here"),
    (["train.py", "tiny.py", "--run_name=a/b"], 2, "run_name must be valid UTF-8 without slashes"),
    (train_new(dataset="data/verses_char"), 2, "dataset must be the name of a folder in data/"),
    # settings: ranges
    (train_new(d_model=0), 2, "d_model must be at least 1, not 0"),
    (train_new(learning_rate=-1), 2, "learning_rate must be above 0"),
    (train_new(learning_rate="nan"), 2, "learning_rate must be above 0"),
    (train_new(learning_rate="inf"), 2, "learning_rate must be above 0"),
    (train_new(dropout=1), 2, "dropout must lie in [0, 1)"),
    (train_new(ema_decay=1), 2, "ema_decay must lie in [0, 1)"),
    (train_new(patience=0), 2, "patience must be at least 1"),
    (train_new(seed=-1), 2, "seed must be at least 0"),
    # settings: combinations
    (train_new(n_heads=5), 2, "d_model (32) must be a multiple of n_heads (5)"),
    (train_new(min_lr=1), 2, "min_lr (1.0) must not be above learning_rate"),
    (train_new(warmup_steps=13), 2, "warmup_steps (13) must not be above max_steps (12)"),
    (train_new(micro_batch_size=3), 2, "batch_size (4) must be a multiple of micro_batch_size (3)"),
    (train_new(n_heads=5, max_steps=0), 2, "max_steps must be at least 1"),
    (train_new(eval_interval=0, beta1=1), 2, "beta1 must lie in [0, 1)"),
    (train_new(block_size=8000), 1, "set a smaller block_size"),
    (train_new(d_model="1e14"), 1, "out of memory"),
    (train_new(d_model="1e18"), 1, "out of memory"),
    (train_new(out_dir="~no-such-user/x"), 2, "names an unknown user"),
    (train_new(init_from="~no-such-user/x.pt"), 1, "checkpoint ~no-such-user/x.pt not found"),
    ([*train_new(), "--run_name=a\udc80"], 2, "run_name must be valid UTF-8 without slashes"),
    # settings: names
    (train_new(bacth_size=8), 2, "did you mean batch_size?"),
    (train_new(vocab_size=70), 2, "vocab_size comes from the dataset"),
    (["train.py", "tiny.py", "n_layers=3"], 2, "settings are written --name=value"),
    (["train.py", "tiny.py", "extra.py"], 2, "unexpected argument 'extra.py'"),
    (["train.py", "tiny.py", "one\ntwo"], 2, "unexpected argument 'one\\ntwo'"),
    (["train.py", "tiny.py", "--on_cpu=maybe"], 2, "on_cpu must be true or false"),
    (["train.py", "tiny.py", "--max_steps"], 2, "--max_steps: expected one argument"),
    (["train.py", "--config", "tiny.py"], 2, "the config file is given by its path alone"),
    # config files
    (["train.py", "nowhere.py"], 2, "config file nowhere.py not found"),
    (["train.py", "folder.py"], 2, "can't read the config file folder.py"),
    (["train.py", "binary.py"], 2, "config file binary.py, line 1"),
    (["train.py", "syntax.py"], 2, "syntax.py, line 2: SyntaxError: invalid syntax"),
    (["train.py", "raises.py"], 2, "raises.py, line 2: ZeroDivisionError"),
    (["train.py", "exits.py"], 2, "exits.py, line 1: SystemExit: bye"),
    (["train.py", "lines.py"], 2, "lines.py, line 1: ValueError: one two"),
    (["train.py", "unknown.py"], 2, "did you mean n_layers?"),
    (["train.py", "text.py"], 2, "n_layers must be a whole number"),
    (["train.py", "one.py"], 2, "bias must be true or false"),
    (["train.py", "nul.py"], 2, "run_name must be valid UTF-8 without slashes"),
    (["train.py", BEST], 2, f"is a checkpoint, not a config file: --init_from={BEST}"),
    (["train.py", "number.py", "--device=cpu"], 2, "on_cpu must be a dict"),
    (["train.py", "nested.py", "--device=cpu"], 2, "did you mean n_layers?"),
    (["train.py", "key.py", "--device=cpu"], 2, "unknown setting 4"),
    # resuming and fine-tuning
    (["train.py", "tiny.py", "--run_name=absent", "--resume"], 1, "absent_last.pt not found"),
    ([*RESUME, "--n_layers=3"], 2, "a resumed run can't have n_layers=3 (was 2)"),
    ([*RESUME, "--dataset=b_char"], 2, "a resumed run can't have dataset=b_char (was verses_char)"),
    ([*RESUME, "--max_steps=5"], 2, "is already at step 12: max_steps=5 must be higher"),
    (["train.py", "tiny.py", "--init_from=none.pt"], 1, "checkpoint none.pt not found"),
    (["train.py", "tiny.py", f"--init_from={BEST}", "--d_model=64"], 2, "drop d_model"),
    (["train.py", "tiny.py", f"--init_from={BEST}", "--min_lr=5e-3"], 2, "set --learning_rate too"),
    # preparing
    (["prepare.py", "shakespeare"], 2, "dataset names are <corpus>_<tokenizer>"),
    (["prepare.py", "absent_char"], 2, "unknown corpus absent"),
    ([*PREPARE, "none.txt"], 1, "there is no file none.txt"),
    (["train.py", "n_layers=2"], 2, "n_layers=2: settings are written --name=value"),
    (["train.py", "--n_layers", "=", "2"], 2, "--name=value, without spaces"),
    ([*PREPARE, "empty.txt"], 1, "the input is empty"),
    ([*PREPARE, "latin1.txt"], 1, "byte 3 is 0xe9"),
    ([*PREPARE, "out"], 1, "no *.txt or *.md in out"),
    ([*PREPARE, "verses.txt", "--val_fraction", "1"], 2, "val_fraction must be between"),
    ([*PREPARE, "verses.txt", "--val_fraction", "nan"], 2, "val_fraction must be between"),
    ([*PREPARE, "verses.txt", "--limit", "0"], 2, "limit must be at least 1"),
    (["prepare.py", "python_char", "--pattern", "*.py"], 2, "--pattern needs --input"),
    (["prepare.py", "python_char", "--category", "cs.RO"], 2, "has no option --category"),
    # sampling
    (["sample.py", "--ckpt", "out"], 1, "a folder without GPT-2's config.json; it has out/tiny"),
    (["sample.py", "--ckpt", "data"], 1, "a folder without GPT-2's config.json; name a checkpoint"),
    (["sample.py", "--ckpt", "truncated.pt"], 1, "truncated.pt is not a checkpoint, or is trunc"),
    (["sample.py", "--ckpt", "code.pt"], 1, "code.pt is not a checkpoint"),
    (["sample.py", "--ckpt", "other.pt"], 1, "other.pt is not a checkpoint of train.py"),
    ([*SAMPLE, "--prompt", "é"], 2, "'é'"),
    ([*SAMPLE, "--prompt", "\udcff"], 2, "the prompt"),
    ([*SAMPLE, "--prompt_file", "latin1.txt"], 1, "latin1.txt is not UTF-8"),
    ([*SAMPLE, "--prompt", "a", "--prompt_file", "short.txt"], 2, "can't be combined"),
    ([*SAMPLE, "--interactive", "--num_samples", "2"], 2, "drop --num_samples"),
    ([*SAMPLE, "--temperature", "-1"], 2, "--temperature: must be at least 0"),
    ([*SAMPLE, "--temperature", "nan"], 2, "--temperature: must be at least 0"),
    ([*SAMPLE, "--top_p", "0"], 2, "--top_p: must be above 0"),
    ([*SAMPLE, "--top_k", "0"], 2, "--top_k: must be from 1"),
    ([*SAMPLE, "--max_new_tokens", "many"], 2, "invalid whole number value"),
    ([*SAMPLE, "--num_samples", "0"], 2, "--num_samples: must be from 1"),
    ([*SAMPLE, "--num_samples", "1" + 30 * "0"], 2, "to 1,000,000"),
    ([*SAMPLE, "--num_samples=1000000", "--max_new_tokens=100000000"], 1, "out of memory"),
    # evaluating, exporting, plotting
    (["evaluate.py", "--ckpt", "none.pt"], 1, "checkpoint none.pt not found"),
    (["evaluate.py", "--ckpt", BEST, "--text", "none.txt"], 1, "can't read none.txt"),
    (["evaluate.py", "--ckpt", BEST, "--text", "empty.txt"], 1, "empty.txt is too short"),
    (["evaluate.py", "--ckpt", BEST, "--text", "accents.txt"], 1, "'é'"),
    (["export.py", "--ckpt", "none.pt"], 1, "checkpoint none.pt not found"),
    (
        ["export.py", "--ckpt", BEST, "--out", "out"],
        1,
        "out is not an earlier export, or was changed",
    ),
    (["plot.py"], 2, "metrics"),
    (["plot.py", "none.jsonl"], 1, "can't read none.jsonl"),
    (["plot.py", "empty.txt", "--out", "x.png"], 1, "empty.txt is empty"),
    (["plot.py", "verses.txt", "--out", "x.png"], 1, "verses.txt is not a metrics file (line 1)"),
    (["plot.py", METRICS, "--out", "out"], 1, "out"),
    (["plot.py", METRICS, "--out", "x.nonsense"], 2, "can't draw into x.nonsense"),
]


@pytest.mark.parametrize(
    "command, status, words", TABLE, ids=[f"{command[0]}: {words}" for command, _, words in TABLE]
)
def test_bad_input_is_refused_in_one_line(files, capsys, command, status, words):
    refused(capsys, command, status, words)


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, status, words",
    [
        (["prepare.py", "a_char", "--input", "none.txt"], 1, "none.txt"),
        (["plot.py", "none.jsonl"], 1, "none.jsonl"),
    ],
    ids=str,
)
def test_bad_input_to_a_real_process_is_refused_in_one_line(files, command, status, words):
    before = contents(files)
    got, _, error = run(*command)
    assert got == status
    assert words in error
    assert error.count("\n") == 1
    assert contents(files) == before


META = "data/verses_char/meta.json"


@pytest.mark.parametrize(
    "file, content, words",
    [
        (META, b"{", "meta.json is damaged"),
        (META, b"[" * 100_000, "meta.json is damaged"),
        (META, b"\xff\xfe", "meta.json is damaged"),
        (META, b"{}", "meta.json is damaged"),
        (
            META,
            {"train": {"tokens": -1, "characters": 1, "bytes": 1}},
            "meta.json is damaged (its counts are wrong)",
        ),
        (
            META,
            {"train": {"tokens": 5, "characters": 5, "bytes": 5}},
            "train.bin does not have the 5 tokens of meta.json",
        ),
        (
            META,
            {"val": {"tokens": 1, "characters": 1, "bytes": 1}},
            "a split has a single token",
        ),
        (META, {"tokenizer": {"kind": "words"}}, "not a tokenizer"),
        (META, {"tokenizer": {"kind": "char", "characters": "aa"}}, "duplicate character"),
        ("data/verses_char/val.bin", b"", "val.bin does not have"),
        (
            "data/verses_char/val.bin",
            np.full(832, 999, "<u2").tobytes(),
            "val.bin has the id 999, but the vocabulary has only 23 tokens",
        ),
    ],
)
def test_a_damaged_dataset_is_refused(files, capsys, file, content, words):
    if isinstance(content, dict):
        content = json.dumps(json.loads(Path(file).read_text()) | content).encode()
    Path(file).write_bytes(content)
    refused(capsys, train_new(), 1, words)


@pytest.mark.parametrize("name, other", [("tiny", BEST), ("new", LAST)])
def test_a_damaged_checkpoint_is_refused_and_another_one_suggested(files, capsys, name, other):
    Path(f"out/{name}_last.pt").write_bytes(b"")
    command = ["train.py", "tiny.py", f"--run_name={name}", "--resume"]
    refused(capsys, command, 1, f"out/{name}_last.pt is not a checkpoint, or is truncated")
    refused(capsys, command, 1, other)


EVALUATE = ["evaluate.py", "--ckpt", LAST]


@pytest.mark.parametrize(
    "place, value, command, words",
    [
        (("config", "dtype"), "float8", EVALUATE, "dtype must be auto or float32"),
        (("config", "n_layers"), "two", EVALUATE, "don't fit this version"),
        (("model", "final_norm.weight"), math.nan * torch.ones(32), EVALUATE, "is unusable"),
        (("model", "final_norm.weight"), 1e6 * torch.ones(32), EVALUATE, "is unusable"),
        (("model", "final_norm.weight"), torch.ones(5), EVALUATE, "doesn't fit this version"),
        (("step",), -3, RESUME, "is not a checkpoint of train.py"),
        (("best_val_loss",), "low", RESUME, "is not a checkpoint of train.py"),
        (("optimizers",), [], RESUME, "does not match this run"),
    ],
    ids=str,
)
def test_a_checkpoint_with_impossible_contents_is_refused(
    files, capsys, place, value, command, words
):
    state = torch.load(LAST)
    *outer, key = place
    inner = state[outer[0]] if outer else state
    inner[key] = value
    torch.save(state, LAST)
    refused(capsys, command, 1, words)


def test_another_text_than_that_of_the_checkpoint_is_refused(files, capsys):
    Path("verses.txt").write_text(verses(401))
    assert prepare.main(["verses_char", "--input", "verses.txt"]) == 0
    words = "is not the data that out/tiny_best.pt was trained on"
    refused(capsys, ["evaluate.py", "--ckpt", BEST], 1, words)
    words = "is not the data that out/tiny_last.pt was trained on"
    refused(capsys, RESUME, 1, words)


@pytest.mark.parametrize("out_dir", ["verses.txt", "/dev/null/out", "/proc/out"])
def test_an_output_folder_that_cannot_be_written_is_refused(files, capsys, out_dir):
    refused(capsys, train_new(out_dir=out_dir), 1, out_dir.split("/")[-1])
