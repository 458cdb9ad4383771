"""Text from a checkpoint.

python sample.py --ckpt out/capstone_best.pt --prompt "ROMEO:" --temperature 0.8
python sample.py --ckpt out/capstone_best.pt --interactive
"""

from collections.abc import Callable, Iterable, Iterator

import torch

from common import checkpoint, gpt2
from common.cli import Parser, command
from common.device import pick_device, pick_weights_dtype
from common.errors import UserError
from common.files import read_text
from common.tokenizer import Tokenizer, UnknownCharacters


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; without a prompt, the id that a text starts from. Raises UserError."""
    if tokenizer.kind == "char" and "\r" not in tokenizer.characters:
        text = text.replace(
            "\r", ""
        )  # the line ends of Windows, of which its training text had none
    try:
        return tokenizer.encode(text).tolist() or [tokenizer.start_id]
    except UnicodeEncodeError:
        raise UserError(
            "the prompt is not valid text: it has bytes that are no UTF-8", status=2
        ) from None
    except UnknownCharacters as error:
        raise UserError(
            f"the prompt has {error}; it can be written with {tokenizer.characters!r}", status=2
        ) from None


def until(text: str, stop: str | None) -> str:
    """text up to and with the first `stop`."""
    return text[: text.index(stop) + len(stop)] if stop and stop in text else text


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt", default="out/capstone_best.pt", help="checkpoint, or gpt2 (default: %(default)s)"
    )
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--prompt_file", help="UTF-8 file with the text to go on from")
    parser.add_argument(
        "--interactive",
        action="store_true",
        help="go on with what you type, and with the text so far",
    )
    parser.add_argument(
        "--max_new_tokens", type=int, default=500, help="length of a sample (default: %(default)s)"
    )
    parser.add_argument(
        "--num_samples", type=int, default=1, help="several are generated as one batch"
    )
    parser.add_argument(
        "--temperature",
        type=float,
        default=0.8,
        help="0: always the likeliest token (default: %(default)s)",
    )
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens only")
    parser.add_argument(
        "--top_p", type=float, help="draw from the likeliest tokens that make up this probability"
    )
    parser.add_argument("--stop", help="end a sample after this text")
    parser.add_argument(
        "--seed", type=int, default=1337, help="another seed, another text (default: %(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    wrong = [
        f"--{name} must be {wanted}, not {getattr(args, name)}"
        for name, ok, wanted in (
            (
                "max_new_tokens",
                1 <= args.max_new_tokens <= 10**8,
                "at least 1 and at most 100,000,000",
            ),
            ("num_samples", 1 <= args.num_samples <= 10**6, "at least 1 and at most 1,000,000"),
            ("temperature", 0 <= args.temperature < float("inf"), "at least 0"),
            ("top_k", args.top_k is None or args.top_k >= 1, "at least 1"),
            ("top_p", args.top_p is None or 0 < args.top_p <= 1, "above 0 and at most 1"),
            ("seed", 0 <= args.seed < 2**63, "at least 0"),
        )
        if not ok
    ]
    if args.prompt and args.prompt_file:
        wrong.append("--prompt and --prompt_file exclude each other")
    if args.interactive and args.num_samples > 1:
        wrong.append("--interactive has one text: leave out --num_samples")
    if wrong:
        raise UserError("; ".join(wrong), status=2)

    device, _ = pick_device(args.device)
    model, tokenizer = checkpoint.build(gpt2.load(args.ckpt), device)
    if args.temperature > 0:  # the likeliest token may be so by less than bfloat16 can tell
        model.to(pick_weights_dtype(device, args.num_samples))
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    generator = torch.Generator(device).manual_seed(args.seed)

    def stream(text: str) -> Iterator[torch.Tensor]:
        idx = torch.tensor([encode_prompt(text, tokenizer)], device=device).repeat(
            args.num_samples, 1
        )
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p}
        return model.stream(idx, args.max_new_tokens, **sampling, generator=generator)

    if args.num_samples > 1:
        rows = torch.cat(list(stream(prompt)), dim=1).tolist()
        for number, row in enumerate(rows, 1):
            print(
                f"--- sample {number} of {args.num_samples} ---\n{prompt}{until(tokenizer.decode(row), args.stop)}"
            )
        return

    def pieces(text: str) -> Iterator[str]:
        return decoded(stream(text), tokenizer, args.stop)

    if args.interactive:
        converse(prompt, pieces)
    else:
        sampled = pieces(prompt)  # refuses a prompt before any of it is printed
        print(prompt, end="", flush=True)
        for piece in sampled:
            print(piece, end="", flush=True)
        print()


def decoded(
    stream: Iterable[torch.Tensor], tokenizer: Tokenizer, stop: str | None
) -> Iterator[str]:
    """The text of a stream of tokens, piece by piece, up to and with the first `stop`."""
    decode = tokenizer.stream_decoder()
    end = ""  # of what is out already, shorter than `stop`, which may have begun in it
    for token in stream:
        text = end + decode(token[0].tolist())
        yield until(text, stop)[len(end) :]
        if stop and stop in text:
            return
        end = text[max(0, len(text) - len(stop) + 1) :] if stop else ""


def converse(text: str, pieces: Callable[[str], Iterator[str]]) -> None:
    """Lets a person and the model write a text in turn, until the input ends."""
    print(
        "What you type starts a new line; an empty line lets the text go on. Ctrl-C stops the text, Ctrl-D the program."
    )
    print(text, end="")
    while True:
        try:
            typed = input("\n> ")
        except (EOFError, RuntimeError):  # RuntimeError: there is no input at all
            print()
            return
        longer = text + "\n" * bool(text and typed and not text.endswith("\n")) + typed
        try:
            for piece in pieces(longer):
                print(piece, end="", flush=True)
                longer += piece
        except UserError as error:  # a character that the model does not know
            print(error)
            continue
        except KeyboardInterrupt:
            pass
        text = longer


if __name__ == "__main__":
    raise SystemExit(main())
