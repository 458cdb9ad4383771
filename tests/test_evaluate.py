import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import verses

import evaluate
from common.dataset import load_dataset
from common.errors import UserError
from evaluate import mean_loss
from model import GPT, GPTConfig
from prepare import prepare
from train import train

# -------------------------------------------------------------------------------------------------
# mean_loss


@pytest.fixture
def model():
    """A small model with dropout, in training mode, whose losses differ from token to token."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50, "block_size": 8, "n_layers": 1, "n_heads": 1, "d_model": 16}
    model = GPT(GPTConfig(**sizes, dropout=0.5))
    torch.nn.init.normal_(model.head.weight)
    return model


def random_tokens(n: int) -> np.ndarray:
    return np.random.default_rng(0).integers(50, size=n, dtype=np.uint16)


def naive_losses(model: GPT, tokens: np.ndarray, starts) -> list[float]:
    """The losses in the windows at `starts`, one token after the other."""
    model.eval()
    losses = []
    for start in starts:
        window = torch.from_numpy(tokens[start : start + 9].astype(np.int64))
        for i in range(1, len(window)):
            logits = model(window[None, :i])[0, -1]
            losses.append(F.cross_entropy(logits, window[i]).item())
    model.train()
    return losses


@pytest.mark.parametrize("n_tokens", [2, 8, 9, 10, 41, 77])
def test_mean_loss_predicts_every_token_but_the_first_once(model, n_tokens, monkeypatch):
    monkeypatch.setattr(evaluate, "BATCH_TOKENS", 3 * 8)  # several batches
    tokens = random_tokens(n_tokens)
    losses = naive_losses(model, tokens, starts=range(0, n_tokens - 1, 8))
    assert len(losses) == n_tokens - 1
    assert mean_loss(model, tokens, torch.float32) == pytest.approx(np.mean(losses), rel=1e-5)


@pytest.mark.parametrize("limit, starts", [(32, [0, 40, 80, 120]), (24, [0, 48, 104])])
def test_mean_loss_with_a_limit_uses_evenly_spaced_windows(model, limit, starts):
    tokens = random_tokens(165)
    losses = naive_losses(model, tokens, starts)
    limited = mean_loss(model, tokens, torch.float32, max_tokens=limit)
    assert limited == pytest.approx(np.mean(losses), rel=1e-5)


def test_mean_loss_uses_all_tokens_if_the_limit_allows_it(model):
    tokens = random_tokens(165)
    losses = naive_losses(model, tokens, starts=range(0, 164, 8))
    limited = mean_loss(model, tokens, torch.float32, max_tokens=164)
    assert limited == pytest.approx(np.mean(losses), rel=1e-5)


def test_mean_loss_uses_one_window_if_the_limit_is_shorter(model):
    tokens = random_tokens(161)
    losses = naive_losses(model, tokens, starts=[0])
    limited = mean_loss(model, tokens, torch.float32, max_tokens=1)
    assert limited == pytest.approx(np.mean(losses), rel=1e-5)


def test_mean_loss_is_not_random_and_leaves_the_model_in_training_mode(model):
    tokens = random_tokens(41)
    assert mean_loss(model, tokens, torch.float32) == mean_loss(model, tokens, torch.float32)
    assert model.training


# -------------------------------------------------------------------------------------------------
# the command


def evaluate_json(capsys, *arguments: str) -> dict:
    """What evaluate.py prints with --json."""
    assert evaluate.main(["--ckpt=out/tiny_best.pt", "--device=cpu", "--json", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_validation_split_and_its_text_give_the_same_result(folder, tiny, capsys):
    text = verses(400).replace("e", "é")  # more bytes than characters
    Path("verses.txt").write_text(text, encoding="utf-8")
    prepare("verses_char", ["verses.txt"])
    train(tiny(max_steps=2))
    capsys.readouterr()

    split = evaluate_json(capsys)
    val = text[int(len(text) * 0.9) :]
    Path("val.txt").write_text(val, encoding="utf-8")
    given = evaluate_json(capsys, "--text=val.txt")

    assert split.pop("text") == "the validation split of verses_char"
    assert given.pop("text") == "val.txt"
    assert split == given
    assert split["step"] == 2
    assert split["tokens"] == len(val)
    assert split["bytes"] == len(val.encode())
    assert split["perplexity"] == pytest.approx(math.exp(split["loss"]))
    bits = split["loss"] / math.log(2) * len(val) / len(val.encode())
    assert split["bits_per_byte"] == pytest.approx(bits)


@pytest.mark.parametrize("kind", ["byte", "bpe260"])
def test_documents_and_their_text_give_the_same_result(folder, tiny, kind):
    parts = [verses(20, seed) for seed in range(30)]
    Path("texts.txt").write_text("<|endoftext|>".join(parts))
    name = f"texts_{kind}"
    prepare(name, ["texts.txt"], separator="<|endoftext|>")
    train(tiny(dataset=name, max_steps=1, warmup_steps=0))
    dataset = load_dataset(name)
    ids, start = dataset.val.tolist(), dataset.tokenizer.start_ids
    text = dataset.tokenizer.decode(ids).replace(dataset.tokenizer.decode(start), "<|endoftext|>")
    Path("val.txt").write_text(text)
    split, file = (evaluate.evaluate("out/tiny_best.pt", path, "cpu") for path in (None, "val.txt"))
    for figure in ("loss", "bits_per_byte", "tokens", "bytes"):
        assert split[figure] == file[figure]


@pytest.mark.parametrize("kind", ["byte", "bpe260"])
@pytest.mark.parametrize("separator", ["<|endoftext|>", "\n%\n"])
def test_newlines_around_separators_do_not_count(folder, tiny, kind, separator):
    parts = [verses(20, seed) for seed in range(30)]
    Path("texts.txt").write_text(f"\n{separator}\n".join(parts))
    name = f"texts_{kind}"
    prepare(name, ["texts.txt"], separator=separator)
    train(tiny(dataset=name, max_steps=1, warmup_steps=0))
    end = load_dataset(name).tokenizer.separator
    texts = {"bare.txt": end.join(part.strip("\n") for part in parts)}
    texts["lines.txt"] = f"\n{end}\n".join(parts)
    results = []
    for path, text in texts.items():
        Path(path).write_text(text)
        results.append(evaluate.evaluate("out/tiny_best.pt", path, "cpu") | {"text": ""})
    assert results[0] == results[1]


@pytest.mark.parametrize("kind", ["char", "byte", "bpe260"])
@pytest.mark.parametrize("separator", ["\n%\n", "\n"])
def test_a_text_is_divided_like_the_training_text(folder, tiny, kind, separator):
    parts = verses(200).splitlines()
    Path("texts.txt").write_text(separator.join(parts))
    prepare(f"texts_{kind}", ["texts.txt"], separator=separator)
    train(tiny(dataset=f"texts_{kind}", max_steps=1, warmup_steps=0))
    for count in (1, 10):
        Path("some.txt").write_text(separator.join(parts[:count]) + separator)
        found = evaluate.evaluate("out/tiny_best.pt", "some.txt", "cpu")
        assert found["bytes"] == len("".join(parts[:count]))


@pytest.mark.parametrize("separator", ["\n\n", "\r\n\r\n"])
def test_separators_with_the_line_ends_of_windows_are_found(folder, tiny, separator):
    parts = [verses(20, seed).strip("\n") for seed in range(30)]
    Path("texts.txt").write_bytes(separator.join(parts).encode())
    prepare("texts_byte", ["texts.txt"], separator=separator)
    train(tiny(dataset="texts_byte", max_steps=1, warmup_steps=0))
    results = []
    for line_end in (b"\n", b"\r\n") if separator == "\n\n" else (b"\r\n",):
        Path("text.txt").write_bytes(b"one" + 2 * line_end + b"two")
        results.append(evaluate.evaluate("out/tiny_best.pt", "text.txt", "cpu"))
    assert results[0] == results[-1]
    assert results[0]["bytes"] == len("onetwo")


def test_whole_files_keep_their_newlines_between_nuls(folder, tiny):
    for i in range(5):
        Path(f"{i}.txt").write_text(verses(20, i))
    prepare("files_byte", [f"{i}.txt" for i in range(5)])
    train(tiny(dataset="files_byte", max_steps=1, warmup_steps=0))
    dataset = load_dataset("files_byte")
    Path("train.txt").write_text(dataset.tokenizer.decode(dataset.train))
    assert evaluate.evaluate("out/tiny_best.pt", "train.txt", "cpu")["tokens"] == len(dataset.train)


@pytest.mark.parametrize("kind", ["char", "bpe260"])
def test_a_text_of_separators_only_is_too_short(folder, tiny, kind):
    Path("lines.txt").write_text(verses(200))
    prepare(f"lines_{kind}", ["lines.txt"], separator="\n")
    train(tiny(dataset=f"lines_{kind}", max_steps=1, warmup_steps=0))
    Path("blank.txt").write_text(3 * load_dataset(f"lines_{kind}").tokenizer.separator)
    with pytest.raises(UserError, match="blank.txt is too short"):
        evaluate.evaluate("out/tiny_best.pt", "blank.txt", "cpu")


def test_the_loss_of_a_trained_model_is_between_the_entropy_and_that_of_guessing(
    finished_run, capsys
):
    text = verses(400)
    entropy_per_line = 3 * math.log(3)  # three choices among three
    result = evaluate_json(capsys)
    assert result["loss"] > entropy_per_line * 400 / len(text)
    assert result["loss"] < math.log(len(set(text)))


def test_a_byte_order_mark_is_not_part_of_the_text(finished_run, capsys):
    Path("plain.txt").write_text(verses(5))
    Path("marked.txt").write_bytes(b"\xef\xbb\xbf" + verses(5).encode())
    plain = evaluate_json(capsys, "--text=plain.txt")
    marked = evaluate_json(capsys, "--text=marked.txt")
    assert plain["loss"] == marked["loss"]


def test_line_ends_that_the_model_does_not_know_are_mentioned(finished_run, capsys):
    text = Path("verses.txt").read_bytes()
    Path("crlf.txt").write_bytes(text.replace(b"\n", b"\r\n"))
    assert evaluate.main(["--ckpt=out/tiny_best.pt", "--text=crlf.txt", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["bytes"] == len(text)
    assert "the model does not know \\r" in printed.err


def test_a_json_file_is_mentioned(finished_run, capsys):
    Path("val.jsonl").write_text(verses(5))
    assert evaluate.main(["--ckpt=out/tiny_best.pt", "--text=val.jsonl", "--json"]) == 0
    assert "val.jsonl is measured as it is" in capsys.readouterr().err


def test_without_json_the_same_figures_are_printed_for_people(finished_run, capsys):
    result = evaluate_json(capsys)
    assert evaluate.main(["--ckpt=out/tiny_best.pt", "--device=cpu"]) == 0
    printed = capsys.readouterr().out
    assert f"loss {result['loss']:.4f} nats per token" in printed
    assert f"perplexity {result['perplexity']:.3f}" in printed
    assert f"{result['bits_per_byte']:.4f} bits per byte" in printed
