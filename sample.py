"""Generates text from a checkpoint.

python sample.py --ckpt out/capstone_best.pt --prompt "ROMEO:" --temperature 0.8
python sample.py --ckpt out/capstone_best.pt --interactive
"""

import math
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterable, Iterator

import torch

from common import gpt2
from common.cli import Parser, command
from common.device import pick_device, pick_weights_dtype
from common.errors import UserError
from common.files import read_text
from common.tokenizer import Tokenizer, UnknownCharacters


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """A type for argparse: a whole number from low to high."""

    def parse(text: str) -> int:
        number = int(text)
        if not low <= number <= high:
            raise ArgumentTypeError(f"must be from {low:,} to {high:,}, not {text}")
        return number

    parse.__name__ = "whole number"  # argparse's name for it in "invalid ... value"
    return parse


def temperature(text: str) -> float:
    number = float(text)
    if not 0 <= number < math.inf:
        raise ArgumentTypeError(f"must be at least 0, not {text}")
    return number


def probability(text: str) -> float:
    number = float(text)
    if not 0 < number <= 1:
        raise ArgumentTypeError(f"must be above 0 and at most 1, not {text}")
    return number


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids, or the id that a text without a prompt starts from. Raises UserError."""
    if tokenizer.kind == "char" and "\r" not in tokenizer.characters:
        text = text.replace("\r", "")  # Windows's line ends, unlike those of the training text
    try:
        return tokenizer.encode(text).tolist() or [tokenizer.start_id]
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid UTF-8", status=2) from None
    except UnknownCharacters as error:
        known = tokenizer.characters
        raise UserError(f"the prompt has {error}; the model knows {known!r}", status=2) from None


def cut_after(text: str, stop: str | None) -> str:
    """The text up to and including the first `stop`."""
    if not stop or stop not in text:
        return text
    return text[: text.index(stop) + len(stop)]


def decode_stream(
    stream: Iterable[torch.Tensor], tokenizer: Tokenizer, stop: str | None
) -> Iterator[str]:
    """The text of a stream of tokens (1, 1), piece by piece, up to and including the first `stop`."""
    decode = tokenizer.stream_decoder()
    tail = ""  # the end of the text so far, as `stop` may begin there; shorter than `stop`
    for token in stream:
        text = tail + decode(token[0].tolist())
        yield cut_after(text, stop)[len(tail) :]
        if stop and stop in text:
            return
        tail = text[max(0, len(text) - len(stop) + 1) :] if stop else ""


def converse(text: str, generate: Callable[[str], Iterator[str]]) -> None:
    """Lets the user and the model write a text in turn, until the input ends."""
    print("Type a line to add to the text, or just press Enter; then the model continues it.")
    print("Ctrl-C stops generating, Ctrl-D quits.")
    print(text, end="")
    while True:
        try:
            typed = input("\n> ")
        except (EOFError, RuntimeError):  # RuntimeError: there is no standard input
            print()
            return
        new_line = "\n" if text and typed and not text.endswith("\n") else ""
        longer = text + new_line + typed
        try:
            for piece in generate(longer):
                print(piece, end="", flush=True)
                longer += piece
        except UserError as error:  # a character that the model does not know
            print(error)
            continue
        except KeyboardInterrupt:
            pass
        text = longer


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--ckpt", default="out/capstone_best.pt", help="checkpoint, or gpt2 (default: %(default)s)")
    add("--prompt", default="", help="text to continue")
    add("--prompt_file", help="UTF-8 file with the text to continue")
    add("--interactive", action="store_true", help="write a text together with the model")
    add("--max_new_tokens", type=whole_number(1, 10**8), default=500, help="tokens (default: 500)")
    add("--num_samples", type=whole_number(1, 10**6), default=1, help="generated as one batch")
    add("--temperature", type=temperature, default=0.8, help="0: no randomness (default: 0.8)")
    add("--top_k", type=whole_number(1, 10**9), help="sample from the k most likely tokens only")
    add("--top_p", type=probability, help="... from the fewest tokens with this total probability")
    add("--stop", help="end a sample after this text")
    add("--seed", type=whole_number(0, 2**63 - 1), default=1337, help="of the random numbers")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    if args.prompt and args.prompt_file:
        raise UserError("--prompt and --prompt_file can't be combined", status=2)
    if args.interactive and args.num_samples > 1:
        raise UserError("--interactive writes one text; drop --num_samples", status=2)

    # the model
    device, _ = pick_device(args.device)
    model, tokenizer = gpt2.load(args.ckpt).build(device)
    if args.temperature > 0:  # without randomness, rounding to bfloat16 could decide the text
        model.to(pick_weights_dtype(device, args.num_samples))
    generator = torch.Generator(device).manual_seed(args.seed)

    def stream(text: str) -> Iterator[torch.Tensor]:
        idx = torch.tensor([encode_prompt(text, tokenizer)], device=device)
        return model.stream(
            idx.repeat(args.num_samples, 1),
            args.max_new_tokens,
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            generator=generator,
        )

    def generate(text: str) -> Iterator[str]:
        return decode_stream(stream(text), tokenizer, args.stop)

    # the text
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    if args.interactive:
        converse(prompt, generate)
    elif args.num_samples > 1:
        rows = torch.cat(list(stream(prompt)), dim=1).tolist()
        for number, row in enumerate(rows, 1):
            text = prompt + cut_after(tokenizer.decode(row), args.stop)
            print(f"--- sample {number} of {args.num_samples} ---\n{text}")
    else:
        pieces = generate(prompt)  # an error in the prompt comes before it is printed
        print(prompt, end="", flush=True)
        for piece in pieces:
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    raise SystemExit(main())
