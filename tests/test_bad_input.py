"""What people get wrong: each time an exit status, one line that says what to do, and nothing changed on disk."""

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arguments, run, verses

import evaluate
import plot
import prepare
import sample
import train

MAINS = {"train.py": train.main, "sample.py": sample.main, "evaluate.py": evaluate.main, "plot.py": plot.main,
         "prepare.py": prepare.main}  # fmt: skip
BEST, LAST = "out/tiny_best.pt", "out/tiny_last.pt"


@pytest.fixture
def copy(template, folder):
    """The current folder, with a prepared text, a finished run, and files that are none of ours."""
    shutil.copytree(template, folder, dirs_exist_ok=True)
    Path("short.txt").write_text("To be")
    Path("empty.txt").write_text("")
    Path("latin1.txt").write_bytes(b"caf\xe9")
    Path("accents.txt").write_text("é ü")
    Path("notes.md").mkdir()
    Path("syntax.py").write_text("n_layers = 2\nn_heads = = 2\n")
    Path("raises.py").write_text("n_layers = 1 / 0\n")
    Path("unknown.py").write_text("n_layer = 2\n")
    Path("binary.py").write_bytes(bytes(range(256)))
    Path("on_cpu.py").write_text("on_cpu = 3\n")
    Path("number.py").write_text("on_cpu = {4: 2}\n")
    Path("nul.py").write_text("run_name = 'a\\0b'\n")
    Path("lines.py").write_text("raise ValueError('one\\ntwo')\n")
    Path("cut.pt").write_bytes(Path(BEST).read_bytes()[:-500])
    Path("code.pt").write_bytes(pickle.dumps(print))
    torch.save({"weights": torch.zeros(2)}, "other.pt")
    return folder


def contents(folder: Path) -> dict:
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


def training(**settings) -> list[str]:
    return ["train.py", "tiny.py", *arguments(run_name="new", **settings)]


IN_PROCESS = [
    # settings
    (training(n_heads=5), 2, "d_model (32) must be a multiple of n_heads (5)"),
    (training(d_model=0), 2, "d_model must be at least 1, not 0"),
    (training(n_layers="two"), 2, "n_layers must be a whole number, not 'two'"),
    (training(n_layers=2.5), 2, "n_layers must be a whole number"),
    (training(learning_rate=-1), 2, "learning_rate must be above 0"),
    (training(learning_rate="nan"), 2, "learning_rate must be above 0"),
    (training(learning_rate="inf"), 2, "learning_rate must be above 0"),
    (training(min_lr=1), 2, "min_lr (1.0) must not be above learning_rate"),
    (training(warmup_steps=13), 2, "warmup_steps (13) must not be above max_steps (12)"),
    (training(micro_batch_size=3), 2, "batch_size (4) must be a multiple of micro_batch_size (3)"),
    (training(dropout=1), 2, "dropout must lie in [0, 1)"),
    (training(ema_decay=1), 2, "ema_decay must lie in [0, 1)"),
    (training(patience=0), 2, "patience must be at least 1"),
    (training(save_interval="often"), 2, "save_interval must be steps or minutes"),
    (training(seed=-1), 2, "seed must be at least 0"),
    (training(norm_type="batchnorm"), 2, "norm_type must be rmsnorm or layernorm or none"),
    (training(compile="maybe"), 2, "compile must be"),
    (training(vocab_size=70), 2, "vocab_size comes from the dataset"),
    (training(bacth_size=8), 2, "did you mean batch_size?"),
    (training(n_heads=5, max_steps=0), 2, "max_steps must be at least 1"),
    (training(eval_interval=0, beta1=1), 2, "beta1 must lie in [0, 1)"),
    (training(device="tpu"), 2, "device tpu can't be used here"),
    (training(block_size=8000), 1, "set a smaller block_size"),
    (["train.py", "tiny.py", *arguments(run_name="a/b")], 2, "run_name must be a plain name"),
    (["train.py", "tiny.py", "n_layers=3"], 2, "settings are written --name=value"),
    (["train.py", "tiny.py", "--on_cpu=maybe"], 2, "on_cpu must be true or false"),
    (training(max_steps="1e30"), 2, "max_steps must be below 2^63"),
    (training(d_model="1e12"), 1, "not enough memory"),
    (["train.py", "tiny.py", "one\ntwo"], 2, "one"),
    # config files
    (["train.py", "number.py", "--device=cpu"], 2, "there is no setting 4"),
    (["train.py", "nul.py"], 2, "run_name must be a plain name"),
    (["train.py", "lines.py"], 2, "lines.py, line 1: ValueError: one two"),
    (["train.py", "notes.md"], 2, "can't read the config file notes.md"),
    (["train.py", "syntax.py"], 2, "syntax.py, line 2: SyntaxError"),
    (["train.py", "raises.py"], 2, "raises.py, line 1: ZeroDivisionError"),
    (["train.py", "unknown.py"], 2, "did you mean n_layers?"),
    (["train.py", "binary.py"], 2, "binary.py, line"),
    (["train.py", "on_cpu.py", "--device=cpu"], 2, "on_cpu must be a dict"),
    # resuming and fine-tuning
    (["train.py", "tiny.py", "--run_name=absent", "--resume"], 1, "there is no checkpoint"),
    (
        ["train.py", "tiny.py", "--run_name=tiny", "--resume", "--n_layers=3"],
        2,
        "can't change n_layers (it was 2)",
    ),
    (
        ["train.py", "tiny.py", "--run_name=tiny", "--resume", "--dataset=other_char"],
        2,
        "can't change dataset",
    ),
    (
        ["train.py", "tiny.py", "--run_name=tiny", "--resume", "--max_steps=5"],
        2,
        "has 12 steps already",
    ),
    (["train.py", "--run_name=tiny", "--resume", "tiny.py", "extra.py"], 2, "extra.py"),
    (
        ["train.py", "--run_name=tiny", "--resume", "tiny.py", "--max_steps=5"],
        2,
        "has 12 steps already",
    ),
    (["train.py", "tiny.py", "--init_from=none.pt"], 1, "there is no checkpoint none.pt"),
    (["train.py", "tiny.py", f"--init_from={BEST}", "--d_model=64"], 2, "leave out d_model"),
    # texts and datasets
    (["prepare.py", "shakespeare"], 2, "a dataset is called <corpus>_<tokenizer>"),
    (["prepare.py", "absent_char"], 2, "there is no corpus absent"),
    (["prepare.py", "a_char", "--input", "empty.txt"], 1, "too few"),
    (["prepare.py", "a_char", "--input", "latin1.txt"], 1, "byte 3 is 0xe9"),
    (["prepare.py", "a_char", "--input", "out"], 1, "holds no *.txt or *.md"),
    (
        ["prepare.py", "a_char", "--input", "verses.txt", "--val_fraction", "1"],
        2,
        "val_fraction must lie between",
    ),
    (
        ["prepare.py", "a_char", "--input", "verses.txt", "--val_fraction", "nan"],
        2,
        "val_fraction must lie between",
    ),
    (
        ["prepare.py", "a_char", "--input", "verses.txt", "--limit", "0"],
        2,
        "limit must be at least 1",
    ),
    (["prepare.py", "python_char", "--pattern", "*.py"], 2, "--pattern goes with --input"),
    (["prepare.py", "python_char", "--category", "cs.RO"], 2, "takes no --category"),
    # sampling
    (["sample.py", "--ckpt", "out"], 1, "out"),
    (["sample.py", "--ckpt", "cut.pt"], 1, "cut.pt is no checkpoint, or was cut short"),
    (["sample.py", "--ckpt", "code.pt"], 1, "code.pt is no checkpoint"),
    (["sample.py", "--ckpt", "other.pt"], 1, "other.pt is not a checkpoint of train.py"),
    (["sample.py", "--ckpt", BEST, "--prompt", "é"], 2, "'é'"),
    (["sample.py", "--ckpt", BEST, "--prompt", "\udcff"], 2, "the prompt has characters that"),
    (["sample.py", "--ckpt", BEST, "--prompt_file", "latin1.txt"], 1, "latin1.txt is not UTF-8"),
    (
        ["sample.py", "--ckpt", BEST, "--prompt", "a", "--prompt_file", "short.txt"],
        2,
        "exclude each other",
    ),
    (["sample.py", "--ckpt", BEST, "--temperature", "-1"], 2, "--temperature must be at least 0"),
    (["sample.py", "--ckpt", BEST, "--temperature", "nan"], 2, "--temperature must be at least 0"),
    (["sample.py", "--ckpt", BEST, "--top_p", "0", "--top_k", "0"], 2, "--top_p must be above 0"),
    (["sample.py", "--ckpt", BEST, "--max_new_tokens", "many"], 2, "invalid int value"),
    (["sample.py", "--ckpt", BEST, "--num_samples", "0"], 2, "--num_samples must be at least 1"),
    (["sample.py", "--ckpt", BEST, "--num_samples", "1" + 30 * "0"], 2, "at most 1,000,000"),
    (
        ["sample.py", "--ckpt", BEST, "--num_samples", "1000000", "--max_new_tokens", "100000000"],
        1,
        "not enough memory",
    ),
    # evaluating and plotting
    (["plot.py", "empty.txt", "--out", "x.png"], 1, "empty.txt is empty"),
    (["plot.py", "out/tiny_metrics.jsonl", "--out", "out"], 1, "out"),
    (["evaluate.py", "--ckpt", BEST, "--text", "none.txt"], 1, "can't read none.txt"),
    (["evaluate.py", "--ckpt", BEST, "--text", "empty.txt"], 1, "empty.txt is too short"),
    (["evaluate.py", "--ckpt", BEST, "--text", "accents.txt"], 1, "'é'"),
    (["plot.py", "verses.txt", "--out", "x.png"], 1, "verses.txt is no metrics file: see line 1"),
    (["plot.py", "out/tiny_metrics.jsonl", "--out", "x.nonsense"], 2, "x.nonsense"),
    (["plot.py"], 2, "metrics"),
]


@pytest.mark.parametrize(
    "command, status, words",
    IN_PROCESS,
    ids=lambda value: str(value)[:60] if isinstance(value, str) else None,
)
def test_bad_input_gets_one_line_and_changes_nothing(copy, capsys, command, status, words):
    before = contents(copy)
    assert MAINS[command[0]](command[1:]) == status
    error = capsys.readouterr().err
    assert words in error and error.startswith("error: ") and error.count("\n") == 1, error
    assert contents(copy) == before


@pytest.mark.parametrize(
    "command, status, words",
    [
        (["train.py", "none.py"], 2, "none.py"),
        (["train.py", "tiny.py", "--learning_rat=1"], 2, "did you mean learning_rate?"),
        (["train.py", "tiny.py", "--dataset=absent_char"], 2, "no corpus absent"),
        (["prepare.py", "a_char", "--input", "none.txt"], 1, "none.txt"),
        (["sample.py", "--ckpt", "none.pt"], 1, "none.pt"),
        (["sample.py", "--ckpt", "verses.txt"], 1, "verses.txt is no checkpoint"),
        (["evaluate.py", "--ckpt", "none.pt"], 1, "none.pt"),
        (["plot.py", "none.jsonl"], 1, "none.jsonl"),
    ],
)
def test_bad_input_to_the_real_commands(copy, command, status, words):
    before = contents(copy)
    got, _, error = run(*command)
    assert got == status and words in error and error.count("\n") == 1
    assert contents(copy) == before


META = "data/verses_char/meta.json"


@pytest.mark.parametrize(
    "file, content, words",
    [
        (META, b"{", "meta.json is damaged"),
        (META, b"[" * 100_000, "meta.json is damaged"),
        (META, b"\xff\xfe", "meta.json is damaged"),
        (META, b"{}", "meta.json is damaged"),
        (META, {"train": {"tokens": -1, "characters": 1, "bytes": 1}}, "meta.json is damaged"),
        (META, {"train": {"tokens": 5, "characters": 5, "bytes": 5}}, "train.bin does not have the 5 tokens"),
        (META, {"val": {"tokens": 1, "characters": 1, "bytes": 1}}, "a split has a single token"),
        (META, {"tokenizer": {"kind": "words"}}, "not a tokenizer"),
        (META, {"tokenizer": {"kind": "char", "characters": "aa"}}, "a character stands twice"),
        ("data/verses_char/val.bin", b"", "val.bin does not have"),
        ("data/verses_char/val.bin", np.full(832, 999, "<u2").tobytes(), "has the id 999, past the vocabulary of 23"),
        (LAST, b"", "tiny_best.pt"),
        ("out/new_last.pt", b"", "new_last.pt"),
    ],
)  # fmt: skip
def test_damaged_files_are_named(copy, capsys, file, content, words):
    if isinstance(content, dict):
        content = json.dumps(json.loads(Path(file).read_text()) | content).encode()
    Path(file).write_bytes(content)
    before = contents(copy)
    name = "new" if file.startswith("data") or "new" in file else "tiny"
    resume = [] if file.startswith("data") else ["--resume"]
    command = ["tiny.py", f"--run_name={name}", *(resume or arguments(run_name=name))]
    assert train.main(command) == 1
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert contents(copy) == before


def altered(state: dict, name: str, value) -> dict:
    """A checkpoint with another value at "step", at "config.dtype" or at "model.head.weight"."""
    key, _, inner = name.partition(".")
    return state | {
        key: state[key] | {inner: value(state[key][inner])} if inner else value(state[key])
    }


@pytest.mark.parametrize(
    "name, value, command, status, words",
    [
        (
            "config.dtype",
            lambda _: "float8",
            ["evaluate.py", "--ckpt", LAST],
            2,
            "dtype must be auto or float32",
        ),
        (
            "config.n_layers",
            lambda _: "two",
            ["sample.py", "--ckpt", LAST],
            1,
            "does not fit this version",
        ),
        (
            "model.final_norm.weight",
            lambda w: w * math.nan,
            ["evaluate.py", "--ckpt", LAST],
            1,
            "its loss on",
        ),
        (
            "model.final_norm.weight",
            lambda w: w * 1e6,
            ["evaluate.py", "--ckpt", LAST],
            1,
            "is of no use",
        ),
        (
            "step",
            lambda _: -3,
            ["train.py", "tiny.py", "--run_name=tiny", "--resume"],
            1,
            "not a checkpoint",
        ),
        (
            "best_val_loss",
            lambda _: "low",
            ["train.py", "tiny.py", "--run_name=tiny", "--resume"],
            1,
            "not a checkpoint",
        ),
        (
            "optimizers",
            lambda _: [],
            ["train.py", "tiny.py", "--run_name=tiny", "--resume"],
            1,
            "does not fit this run",
        ),
    ],
)
def test_checkpoints_with_impossible_contents_are_refused(
    copy, capsys, name, value, command, status, words
):
    torch.save(altered(torch.load(LAST), name, value), LAST)
    before = contents(copy)
    assert MAINS[command[0]](command[1:]) == status
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1, error
    assert contents(copy) == before


def test_a_run_may_be_called_what_a_figure_would_read_as_maths(copy):
    assert train.main(["tiny.py", *arguments(run_name="cost$1_$2")]) == 0
    assert Path("out/cost$1_$2_curves.png").exists()


def test_another_text_than_the_checkpoints_is_refused(copy, capsys):
    Path("verses.txt").write_text(verses(401))
    assert prepare.main(["verses_char", "--input", "verses.txt"]) == 0
    before = contents(copy)
    assert evaluate.main(["--ckpt", BEST]) == 1
    assert "is not the text that out/tiny_best.pt was trained on" in capsys.readouterr().err
    assert train.main(["tiny.py", "--run_name=tiny", "--resume"]) == 1
    assert "is not the data that out/tiny_last.pt was trained on" in capsys.readouterr().err
    assert contents(copy) == before


@pytest.mark.parametrize("out_dir", ["verses.txt", "/dev/null/out", "/proc/out"])
def test_an_output_folder_that_can_not_be_written_is_refused(copy, capsys, out_dir):
    before = contents(copy)
    assert train.main(["tiny.py", *arguments(out_dir=out_dir)]) == 1
    error = capsys.readouterr().err
    assert out_dir.split("/")[-1] in error and error.count("\n") == 1, error
    assert contents(copy) == before
