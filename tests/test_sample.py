import shutil
from pathlib import Path

import pytest
import torch
from helpers import TINY, shorten_endings, verses

import sample
from common import checkpoint
from common.inputs import print_notes
from common.tokenizer import ByteTokenizer, CharTokenizer, TrainedBPETokenizer
from config import Config
from model import GPT
from prepare import prepare
from train import train

CKPT = "out/verses_best.pt"
TOKENIZER = CharTokenizer("".join(sorted(set(verses(100)))))  # of the trained model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a model that has learned the words of verses."""
    folder = tmp_path_factory.mktemp("trained")
    changes = {"run_name": "verses", "max_steps": 150, "eval_interval": 150, "batch_size": 8}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        shorten_endings(patch)
        Path("verses.txt").write_text(verses(2000))
        prepare("verses_char", ["verses.txt"])
        train(Config(**(TINY | changes)))
    return folder


@pytest.fixture
def generate(trained, folder, capsys):
    """generate(*arguments): what sample.py prints with these arguments."""
    shutil.copytree(trained / "out", folder / "out")  # the text and the dataset are not needed

    def run(*arguments: str) -> str:
        status = sample.main(["--ckpt", CKPT, "--device=cpu", "--max_new_tokens=60", *arguments])
        output, error = capsys.readouterr()
        assert error == ""
        assert status == 0
        return output

    return run


def split_samples(output: str) -> list[str]:
    """The texts that sample.py prints with --num_samples."""
    _, *samples = output.split("--- sample ")
    return [text.split(" ---\n", 1)[1].removesuffix("\n") for text in samples]


# -------------------------------------------------------------------------------------------------
# the text


def test_samples_consist_of_the_words_of_the_training_text(generate):
    text = generate("--prompt=the king ", "--max_new_tokens=300", "--temperature=0.5")
    *words, _ = text.split()  # the last word may be incomplete
    known = [word for word in words if word in verses(2000).split()]
    assert len(known) > 0.8 * len(words)


def test_output_is_the_prompt_and_as_many_tokens_as_asked_for(generate):
    text = generate("--prompt=the king ", "--max_new_tokens=60")
    assert text.startswith("the king ")
    assert len(text) == len("the king ") + 60 + len("\n")


def test_equal_seeds_give_equal_texts_and_others_other_texts(generate):
    assert generate("--seed=1") == generate("--seed=1") != generate("--seed=2")


@pytest.mark.parametrize("argument", ["--temperature=0", "--top_k=1", "--top_p=1e-9"])
def test_the_seed_makes_no_difference_if_only_one_token_is_possible(generate, argument):
    assert generate(argument, "--seed=1") == generate(argument, "--seed=2")


def test_temperature_0_takes_the_most_likely_token_in_float32(generate, monkeypatch):
    monkeypatch.setattr(sample, "pick_weights_dtype", lambda *_: torch.bfloat16)
    model, tokenizer = checkpoint.load(CKPT).build(torch.device("cpu"))
    start = torch.from_numpy(tokenizer.encode("the king").astype("int64"))[None]
    ids = model.generate(start, 400, temperature=0)[0].tolist()
    text = generate("--prompt=the king", "--temperature=0", "--max_new_tokens=400")
    assert text == tokenizer.decode(ids) + "\n"


@pytest.mark.parametrize("stop", ["", "é", "the €"])
def test_a_stop_text_that_can_not_occur_is_refused(generate, capsys, stop):
    assert sample.main(["--ckpt", CKPT, f"--stop={stop}"]) == 2
    assert "--stop" in capsys.readouterr().err


def test_a_separator_in_a_prompt_is_the_end_of_text_token():
    tokenizer = TrainedBPETokenizer([b"th"])
    ids = sample.encode_prompt("<|endoftext|>the", tokenizer)
    assert ids == [*tokenizer.start_ids, *tokenizer.encode("the").tolist()]


def test_num_samples_prints_different_texts_after_the_same_prompt(generate):
    samples = split_samples(generate("--num_samples=3", "--prompt=my lord", "--max_new_tokens=40"))
    assert len(set(samples)) == 3
    for text in samples:
        assert text.startswith("my lord")
        assert len(text) == len("my lord") + 40


def test_a_byte_model_samples_after_any_prompt(folder, capsys):
    Path("verses.txt").write_text(verses(400))
    prepare("verses_byte", ["verses.txt"])
    train(Config(**(TINY | {"dataset": "verses_byte", "run_name": "bytes", "max_steps": 2})))
    capsys.readouterr()
    assert sample.main(["--ckpt=out/bytes_best.pt", "--prompt=é ", "--max_new_tokens=50"]) == 0
    assert capsys.readouterr().out.startswith("é ")


# -------------------------------------------------------------------------------------------------
# prompts


def test_a_prompt_file_may_be_longer_than_the_context(generate):
    prompt = verses(50)
    assert len(prompt) > TINY["block_size"]
    Path("prompt.txt").write_text(prompt)
    text = generate("--prompt_file=prompt.txt", "--max_new_tokens=5")
    assert text.startswith(prompt)
    assert len(text) == len(prompt) + 5 + len("\n")


def test_a_prompt_file_from_windows_is_continued_like_one_from_unix(generate):
    Path("unix.txt").write_bytes(b"the king\n")
    Path("windows.txt").write_bytes(b"\xef\xbb\xbfthe king\r\n")
    unix = generate("--prompt_file=unix.txt", "--max_new_tokens=20")
    windows = generate("--prompt_file=windows.txt", "--max_new_tokens=20")
    assert windows.replace("\r", "") == unix


@pytest.mark.parametrize(
    "text, note", [("a king\r\n", "carriage returns"), ("k\0i\0", "many NUL characters")]
)
def test_a_text_that_the_model_will_misread_is_mentioned(capsys, text, note):
    print_notes(text, ByteTokenizer())
    assert f"note: the text has {note}" in capsys.readouterr().err
    print_notes("a king\n" * 100 + "\0", ByteTokenizer())
    print_notes("a\0king\0", ByteTokenizer("\0"))
    assert capsys.readouterr().err == ""


def test_a_sample_ends_after_the_first_of_several_stop_texts(generate):
    text = generate("--seed=3")
    assert text.index("e") != text.index("t")
    first = min(text.index("e"), text.index("t"))
    assert generate("--seed=3", "--stop=e", "--stop", "t").rstrip("\n") == text[: first + 1]


@pytest.mark.parametrize(
    "divider, prompt, ids",
    [
        (None, "a\n|\nb\n", "a\n|\nb\n"),
        ("%", "a\n|\nb\n", "a|b\n"),
        ("%", "\na\n%\nb\n\n", "\na|b\n\n"),
        ("%", "\na\n", "\na\n"),
        ("%", "%a", "|a"),
        ("\n%\n", "a\n%\n", "a|"),
        ("\n", "a\n\nb\n", "a|b|"),
        ("\n%\n", "%\na\r\n%\r\nb\n", "|a|b\n"),
        ("\n%\n", "a%b\n", "a%b\n"),
    ],
)
def test_a_prompt_is_divided_like_the_training_text(divider, prompt, ids):
    tokenizer = ByteTokenizer("|")
    tokenizer.divider = divider
    assert bytes(sample.encode_prompt(prompt, tokenizer)).decode() == ids


def test_carriage_returns_are_kept_if_the_model_knows_them():
    ids = sample.encode_prompt("a\r\n", CharTokenizer("\n\ra"))
    assert ids == [2, 1, 0]


def test_without_a_prompt_the_text_starts_after_a_newline():
    assert sample.encode_prompt("", CharTokenizer("\nab")) == [0]


# -------------------------------------------------------------------------------------------------
# streams


def stream(ids: list[int]) -> list[torch.Tensor]:
    return [torch.tensor([[i]]) for i in ids]


def decode(text: str, stop: str | None = None) -> list[str]:
    """The pieces that a stream of the bytes of `text` is decoded to."""
    tokenizer = ByteTokenizer()
    writer = sample.TextDecoder(tokenizer, [stop] if stop else [])
    return list(sample.decode_stream(stream(tokenizer.encode(text).tolist()), writer))


def test_a_line_end_of_two_characters_is_one_piece():
    assert decode("a\r\nb\r") == ["a", "", "\r\n", "b", "", "\r"]


def test_a_character_of_several_bytes_appears_once_it_is_complete():
    assert decode("aé€") == ["a", "", "é", "", "", "€", ""]


def test_a_separator_or_stop_text_may_begin_in_the_prompt():
    tokenizer = CharTokenizer("\nab", "\n\n")
    for stops, prompt, text, expected in (
        ([], "a\n", "\na", ""),
        (["aab"], "b\n\nba", "abb", "ab"),
        (["bbbbb"], "b\n\nba", "ab", "ab"),
        (["a\nb"], "a\r\n", "ba", "b"),
    ):
        decoder = sample.TextDecoder(tokenizer, stops, prompt)
        pieces = sample.decode_stream(stream(tokenizer.encode(text).tolist()), decoder)
        assert "".join(pieces) == expected


def test_the_end_of_a_prompt_is_not_repeated_while_a_character_is_incomplete():
    decoder = sample.TextDecoder(ByteTokenizer("\n\n"), prompt="a\n")
    assert [decoder.add([byte]) for byte in "é".encode()] == ["", "é"]


def test_an_incomplete_character_at_the_end_is_left_out():
    decoder = sample.TextDecoder(ByteTokenizer())
    pieces = sample.decode_stream(stream([97, 0xE2, 0x82]), decoder)
    assert "".join(pieces) == "a"


@pytest.mark.parametrize(
    "stop, expected",
    [
        ("c", "abc"),
        ("cab", "abcab"),  # over several tokens
        ("bcabd", "abcabcabd"),  # begins twice before it is complete
        ("é", "abcabcabdé"),
        ("x", "abcabcabdé!"),
        ("", "abcabcabdé!"),
        (None, "abcabcabdé!"),
    ],
)
def test_a_stream_ends_after_the_first_stop_text(stop, expected):
    assert "".join(decode("abcabcabdé!", stop)) == expected


def test_text_after_the_stop_text_in_the_same_token_is_left_out():
    class Words(CharTokenizer):
        def decode(self, ids):
            return "".join(["the king. ", "a fool. "][i] for i in ids)

    pieces = sample.decode_stream(stream([0, 1]), sample.TextDecoder(Words("ab"), ["g."]))
    assert "".join(pieces) == "the king."


@pytest.mark.parametrize("number", ["1", "2"])
def test_a_sample_ends_with_the_stop_text(generate, number):
    output = generate("--stop=.\n", "--max_new_tokens=200", f"--num_samples={number}")
    samples = split_samples(output) if number == "2" else [output.removesuffix("\n")]
    for text in samples:
        assert text.endswith(".\n")
        assert text.count(".\n") == 1


# -------------------------------------------------------------------------------------------------
# --interactive


def type_lines(monkeypatch, lines: list[str]) -> None:
    """Lets input() return these lines, then reach the end of the input."""
    remaining = iter(lines)

    def type_line(prompt):
        print(prompt, end="")
        try:
            return next(remaining)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr("builtins.input", type_line)


@pytest.fixture
def continued(monkeypatch):
    """The texts that the model was asked to continue; it always adds " loves thee."."""
    texts = []

    def continue_text(model, idx, *args, **options):
        texts.append(TOKENIZER.decode(idx[0].tolist()))
        return iter(stream(TOKENIZER.encode(" loves thee.").tolist()))

    monkeypatch.setattr(GPT, "stream", continue_text)
    return texts


def test_interactive_continues_the_whole_text_so_far(generate, continued, monkeypatch):
    type_lines(monkeypatch, ["the king", "", "a fool"])
    generate("--interactive")
    assert continued == [
        "the king",
        "the king loves thee.",
        "the king loves thee. loves thee.\na fool",
    ]


def test_interactive_says_so_if_the_model_ends_the_text(generate, monkeypatch):
    monkeypatch.setattr(GPT, "stream", lambda *arguments, **options: iter(()))
    type_lines(monkeypatch, ["the king", ""])
    assert generate("--interactive").count("The model adds nothing here") == 2


def test_interactive_starts_from_the_prompt(generate, continued, monkeypatch):
    type_lines(monkeypatch, ["", "a fool"])
    generate("--interactive", "--prompt=my lord")
    assert continued == ["my lord", "my lord loves thee.\na fool"]


def test_interactive_does_not_add_a_newline_that_the_model_does_not_know(monkeypatch):
    prompts = []
    type_lines(monkeypatch, ["the king", " a fool"])
    sample.converse("", lambda prompt: prompts.append(prompt) or [" loves thee."], line_end="")
    assert prompts == ["the king", "the king loves thee. a fool"]


def test_interactive_refuses_a_prompt_that_the_model_does_not_know(generate, capsys):
    assert sample.main(["--ckpt", CKPT, "--interactive", "--prompt=é"]) == 2
    assert "the prompt has characters" in capsys.readouterr().err


def test_interactive_ignores_a_line_with_unknown_characters(generate, continued, monkeypatch):
    type_lines(monkeypatch, ["the king", "é", "a fool"])
    assert "characters that the tokenizer does not know: 'é'" in generate("--interactive")
    assert continued == ["the king", "the king loves thee.\na fool"]


def test_ctrl_c_ends_the_continuation_but_not_the_program(generate, monkeypatch):
    texts = []

    def interrupted(model, idx, *args, **options):
        texts.append(TOKENIZER.decode(idx[0].tolist()))
        yield from stream(TOKENIZER.encode(" loves").tolist())
        raise KeyboardInterrupt

    monkeypatch.setattr(GPT, "stream", interrupted)
    type_lines(monkeypatch, ["the king", "a fool"])
    generate("--interactive")
    assert texts == ["the king", "the king loves\na fool"]


def test_interactive_ends_if_there_is_no_standard_input(generate, monkeypatch):
    monkeypatch.setattr("sys.stdin", None)
    generate("--interactive")
