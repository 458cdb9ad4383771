import contextlib
import io
import math
import os

import pytest
import torch
from helpers import TINY, verses

import evaluate
import sample
from common import checkpoint
from config import Config
from model import GPT
from prepare import prepare
from train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that has learnt verses."""
    folder, before = tmp_path_factory.mktemp("trained"), os.getcwd()
    os.chdir(folder)
    (folder / "verses.txt").write_text(verses(2000))
    with contextlib.redirect_stdout(io.StringIO()):
        for kind in ("char", "byte"):
            prepare(f"verses_{kind}", ["verses.txt"])
            changes = {
                "dataset": f"verses_{kind}",
                "run_name": kind,
                "max_steps": 250,
                "eval_interval": 250,
                "batch_size": 16,
            }
            train(Config(**(TINY | changes)))
    os.chdir(before)
    return folder


@pytest.fixture
def run(trained, monkeypatch, capsys):
    """run(module, *arguments) -> exit status, output, error."""
    monkeypatch.chdir(trained)

    def run(module, *arguments):
        status = module.main(["--ckpt", "out/char_best.pt", "--device=cpu", *arguments])
        return status, *capsys.readouterr()

    return run


def test_a_sample_looks_like_what_was_learnt(run):
    status, text, error = run(
        sample, "--prompt", "the king ", "--max_new_tokens=300", "--temperature=0.5"
    )
    assert status == 0 and error == "" and text.startswith("the king ") and len(text) == 9 + 300 + 1
    known = {word for line in verses(2000).splitlines() for word in line.split()}
    words = text.split()[:-1]
    assert sum(word in known for word in words) / len(words) > 0.8


def test_the_seed_decides_the_text(run):
    one, again, other = (run(sample, f"--seed={seed}")[1] for seed in (1, 1, 2))
    assert one == again != other


def test_nothing_is_drawn_where_one_token_is_left(run):
    assert run(sample, "--temperature=0") == run(sample, "--temperature=0", "--seed=9")
    assert run(sample, "--top_k=1") == run(sample, "--top_k=1", "--seed=9")


def test_several_samples_come_as_one_batch(run):
    text = run(sample, "--num_samples=3", "--prompt=my lord", "--max_new_tokens=40")[1]
    samples = text.split("--- sample ")[1:]
    assert len(samples) == 3 and len(set(s.split("---\n")[1] for s in samples)) == 3
    assert all(s.split("---\n")[1].startswith("my lord") for s in samples)


def test_it_ends_after_the_stop_text(run):
    one = run(sample, "--stop=.\n", "--max_new_tokens=400")[1]
    assert one.count(".\n") == 1 and one.endswith(".\n\n")
    for text in run(sample, "--stop=.\n", "--num_samples=2", "--max_new_tokens=400")[1].split(
        "--- sample "
    )[1:]:
        assert text.count(".\n") == 1


def test_a_prompt_from_a_file_longer_than_the_window(run, trained):
    (trained / "prompt.txt").write_text(verses(50))
    status, text, _ = run(sample, "--prompt_file=prompt.txt", "--max_new_tokens=5")
    assert status == 0 and text.startswith(verses(50)) and len(text) == len(verses(50)) + 6


def test_a_prompt_and_a_text_from_windows(run, trained):
    for name, line_end in (("unix.txt", "\n"), ("windows.txt", "\r\n")):
        (trained / name).write_bytes(
            b"\xef\xbb\xbf" * (name == "windows.txt") + f"the king{line_end}".encode()
        )
    unix, windows = (
        run(sample, f"--prompt_file={name}", "--max_new_tokens=9")[1]
        for name in ("unix.txt", "windows.txt")
    )
    assert windows.split("\n", 1)[1] == unix.split("\n", 1)[1]
    (trained / "marked.txt").write_bytes(b"\xef\xbb\xbf" + verses(50).encode())
    assert run(evaluate, "--text=marked.txt")[0] == 0


def test_the_likeliest_text_is_that_of_float32(run):
    state = checkpoint.load("out/char_best.pt")
    model, tokenizer = checkpoint.build(state, torch.device("cpu"))
    start = torch.from_numpy(tokenizer.encode("the king").astype("int64"))[None]
    ids = model.generate(start, 400, temperature=0)[0].tolist()
    assert (
        run(sample, "--prompt=the king", "--temperature=0", "--max_new_tokens=400")[1]
        == tokenizer.decode(ids) + "\n"
    )


def test_bytes_are_streamed_as_text(run):
    assert run(sample, "--ckpt=out/byte_best.pt", "--prompt=é ", "--max_new_tokens=50")[0] == 0


def test_data_is_not_needed(run, trained, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert sample.main(["--ckpt", str(trained / "out" / "char_best.pt"), "--max_new_tokens=5"]) == 0


@pytest.mark.parametrize(
    "arguments, status, words",
    [
        (
            ["--ckpt=out/none.pt"],
            1,
            "there is no checkpoint out/none.pt; there is out/byte_best.pt",
        ),
        (
            ["--prompt=the Zoo"],
            2,
            "the prompt has characters that the tokenizer has never seen: 'Z'",
        ),
        (["--prompt_file=none.txt"], 1, "can't read none.txt"),
        (["--prompt=a", "--prompt_file=b"], 2, "exclude each other"),
        (["--temperature=-1"], 2, "--temperature must be at least 0"),
        (["--top_k=0", "--top_p=0"], 2, "--top_p must be above 0"),
        (["--num_samples=0"], 2, "--num_samples must be at least 1"),
        (["--max_new_tokens=x"], 2, "--max_new_tokens"),
        (["--tempreature=1"], 2, "--tempreature"),
        (["--device=tpu"], 2, "tpu"),
    ],
)
def test_bad_arguments_get_one_line(run, arguments, status, words):
    got, output, error = run(sample, *arguments)
    assert got == status and output == "" and words in error and error.count("\n") == 1


def test_evaluation_on_the_validation_split_and_on_text_agree(run, trained):
    status, printed, _ = run(evaluate, "--json")
    result = evaluate.json.loads(printed)
    text = verses(2000)
    (trained / "tail.txt").write_text(text[int(len(text) * 0.9) :])
    other = evaluate.json.loads(run(evaluate, "--json", "--text=tail.txt")[1])
    assert (
        status == 0
        and result["loss"] == pytest.approx(other["loss"])
        and result["tokens"] == other["tokens"]
    )
    assert result["perplexity"] == pytest.approx(math.exp(result["loss"]))
    assert result["bits_per_byte"] == pytest.approx(result["loss"] / math.log(2))
    entropy = (
        3 * math.log(3) * 2000 / len(text)
    )  # of verses: three choices among three, in each line
    assert entropy < result["loss"] < 2 * entropy
    assert "nats per token" in run(evaluate)[1]


def test_evaluation_refuses_what_it_cannot_measure(run, trained):
    (trained / "greek.txt").write_text("αβγ", encoding="utf-8")
    (trained / "one.txt").write_text("t")
    for argument, words in (
        ("greek.txt", "never seen: 'α' 'β' 'γ'"),
        ("one.txt", "too short"),
        ("no.txt", "can't read"),
    ):
        status, _, error = run(evaluate, f"--text={argument}")
        assert status == 1 and words in error and error.count("\n") == 1


def test_interactive_goes_on_with_the_text_so_far(run, monkeypatch):
    seen, typed = [], iter(["the king", "é", "", "a fool"])

    def type_next(prompt):
        print(prompt, end="")
        if line := next(typed, None):
            return line
        if line is None:
            raise EOFError
        return line

    def stream(model, idx, *args, **options):
        seen.append("".join(tokenizer.decode(idx[0].tolist())))
        for number, character in enumerate(" loves thee."):
            if len(seen) == 1 and number == 6:
                raise KeyboardInterrupt  # Ctrl-C stops this text, not the program
            yield torch.from_numpy(tokenizer.encode(character).astype("int64"))[None]

    tokenizer = checkpoint.build(checkpoint.load("out/char_best.pt"), torch.device("cpu"))[1]
    monkeypatch.setattr("builtins.input", type_next)
    monkeypatch.setattr(GPT, "stream", stream)
    status, text, error = run(sample, "--interactive")
    assert status == 0 and error == ""
    assert seen == ["the king", "the king loves", "the king loves loves thee.\na fool"]
    assert "'é'" in text and text.count("> ") == 5


def test_interactive_ends_where_there_is_no_input(run, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    assert run(sample, "--interactive")[0] == 0


def test_interactive_is_for_one_text(run):
    assert run(sample, "--interactive", "--num_samples=2")[0] == 2
