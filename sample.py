"""Generates text from a checkpoint.

python sample.py --ckpt out/capstone_best.pt --prompt "ROMEO:" --temperature 0.8
python sample.py --ckpt out/capstone_best.pt --interactive
"""

import common.threads  # isort: skip  # noqa: F401 (before torch)
import math
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch

from common.cli import Parser, command, escape_controls, number, unescape, whole_number
from common.device import pick_device, pick_weights_dtype
from common.errors import UserError
from common.files import read_text
from common.gpt2 import load_model
from common.inputs import print_notes, split_prompt
from common.tokenizer import Tokenizer, UnknownCharacters, known_line_ends


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids, or those that a text without a prompt starts from. Raises UserError."""
    documents = split_prompt(known_line_ends(text, tokenizer), tokenizer)
    try:
        return tokenizer.encode_documents(documents).tolist() or tokenizer.start_ids
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid UTF-8", status=2) from None
    except UnknownCharacters as error:
        known, count = tokenizer.characters, len(tokenizer.characters)
        shown = f"{known[:100]!r}" + (f" and {count - 100:,} more" if count > 100 else "")
        raise UserError(f"the prompt has {error}; the model knows {shown}", status=2) from None


def check_stop(text: str, tokenizer: Tokenizer) -> None:
    """Raises UserError if no sample can contain this text."""
    if not text:
        raise UserError("--stop must not be empty", status=2)
    try:
        tokenizer.encode(text)
    except (UnicodeEncodeError, UnknownCharacters) as error:
        raise UserError(f"--stop can never match: it has {error}", status=2) from None


class TextDecoder:
    """Turns the tokens of a sample into text, up to its document's end or after a stop text."""

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = (), prompt: str = ""):
        self.decode = tokenizer.stream_decoder()
        self.separator, self.stops = tokenizer.separator, stops
        # a separator or stop text may begin in the prompt, or in text that was already returned
        self.overlap = max(map(len, [self.separator or "", *stops]))
        prompt = known_line_ends(prompt, tokenizer)
        self.text = prompt[-self.overlap :] if self.overlap else ""  # the end of the text
        self.returned = len(self.text)  # how much of it was returned
        self.ended = False

    def add(self, ids: list[int]) -> str:
        """The new text that is certain: without an end that may begin a separator or a line end."""
        if self.ended:
            return ""
        old = len(self.text)
        self.text += self.decode(ids)
        ends = []
        for mark, shown in [(self.separator, 0), *((stop, len(stop)) for stop in self.stops)]:
            # only one that ends in the new text counts
            if mark and (start := self.text.find(mark, max(0, old - len(mark) + 1))) >= 0:
                ends.append(start + shown)
        self.ended = bool(ends)
        return self.take(min(ends, default=len(self.text) - self.doubtful()))

    def finish(self) -> str:
        """The rest of the text, once there are no more ids."""
        return "" if self.ended else self.take(len(self.text))

    def take(self, end: int) -> str:
        """Returns the text up to `end` that was not returned before; forgets older text."""
        end = max(end, self.returned)
        new = self.text[self.returned : end]
        start = max(0, min(end, len(self.text) - self.overlap))
        self.text, self.returned = self.text[start:], end - start
        return new

    def doubtful(self) -> int:
        """How many characters at the end of the text may begin a separator, or a line end."""
        for length in range(len(self.separator or "") - 1, 0, -1):
            if self.text.endswith(self.separator[:length]):
                return length
        return 1 if self.text.endswith("\r") else 0


def decode_stream(stream: Iterable[torch.Tensor], decoder: TextDecoder) -> Iterator[str]:
    """Yields the text of the first sequence of a stream of tokens, piece by piece."""
    for token in stream:
        yield decoder.add(token[0].tolist())
        if decoder.ended:
            return
    yield decoder.finish()


def decode_samples(stream: Iterable[torch.Tensor], decoders: list[TextDecoder]) -> list[str]:
    """The texts of all sequences of a stream of tokens."""
    texts = [""] * len(decoders)
    for token in stream:
        for i, (decoder, ids) in enumerate(zip(decoders, token.tolist())):
            texts[i] += decoder.add(ids)
        if all(decoder.ended for decoder in decoders):
            break
    return [text + decoder.finish() for text, decoder in zip(texts, decoders)]


def converse(text: str, generate: Callable[[str], Iterator[str]], line_end: str) -> None:
    """Lets the user and the model write a text in turn, until the input ends.

    line_end: goes before each line that is typed, unless the text ends with a newline.
    """
    print("Type a line to add to the text, or just press Enter; then the model continues it.")
    print("Ctrl-C stops generating, Ctrl-D quits.")
    print(escape_controls(text), end="")
    while True:
        try:
            typed = input("\n> ")
        except (EOFError, RuntimeError):  # RuntimeError: there is no standard input
            print()
            return
        between = line_end if text and typed and not text.endswith("\n") else ""
        prompt = longer = text + between + typed
        try:
            for piece in generate(prompt):
                print(escape_controls(piece), end="", flush=True)
                longer += piece
            if longer == prompt:
                print("The model adds nothing here. Type a line to continue the text.")
        except UserError as error:  # a character that the model does not know
            print(error)
            continue
        except KeyboardInterrupt:
            pass
        text = longer


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__)
    add = parser.add_argument
    add("--ckpt", default="out/capstone_best.pt", help="checkpoint, or gpt2 (default: %(default)s)")
    parser.add_text("--prompt", default="", help="text to continue")
    add("--prompt_file", help="UTF-8 file with the text to continue")
    add("--interactive", action="store_true", help="write a text together with the model")
    add(
        "--max_new_tokens",
        type=whole_number(1, 10**8),
        default=500,
        help="tokens to generate (default: 500)",
    )
    add(
        "--num_samples",
        type=whole_number(1, 10**6),
        default=1,
        help="samples to generate, as one batch (default: 1)",
    )
    add(
        "--temperature",
        type=number(float, lambda t: 0 <= t < math.inf, "at least 0"),
        default=0.8,
        help="0: no randomness (default: 0.8)",
    )
    add("--top_k", type=whole_number(1, 10**9), help="sample from the k most likely tokens only")
    add(
        "--top_p",
        type=number(float, lambda p: 0 < p <= 1, "above 0 and at most 1"),
        help="sample from the smallest set of likely tokens with this total probability",
    )
    parser.add_text(
        "--stop",
        type=unescape,
        action="append",
        default=[],
        metavar="TEXT",
        help=r"end a sample after this text, such as '\n'; may be repeated",
    )
    add("--seed", type=whole_number(0, 2**63 - 1), default=1337, help="random seed (default: 1337)")
    add("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    if args.prompt and args.prompt_file:
        raise UserError("--prompt and --prompt_file can't be combined", status=2)
    if args.interactive and args.num_samples > 1:
        raise UserError("--interactive writes one text; drop --num_samples", status=2)

    # the model
    device, _ = pick_device(args.device)
    model, tokenizer = load_model(args.ckpt).build(device)
    for stop in args.stop:
        check_stop(stop, tokenizer)
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
        return decode_stream(stream(text), TextDecoder(tokenizer, args.stop, text))

    # the text
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    print_notes(known_line_ends(prompt, tokenizer), tokenizer)
    if args.interactive:
        encode_prompt(prompt, tokenizer)  # raises UserError if the model does not know it
        one_line = tokenizer.kind == "char" and "\n" not in tokenizer.characters
        converse(prompt, generate, line_end="" if one_line else "\n")
    elif args.num_samples > 1:
        decoders = [TextDecoder(tokenizer, args.stop, prompt) for _ in range(args.num_samples)]
        for i, text in enumerate(decode_samples(stream(prompt), decoders), 1):
            if tokenizer.separator != "\n":  # else the documents are lines
                print(f"--- sample {i} of {args.num_samples} ---")
            print(escape_controls(prompt + text))
    else:
        pieces = generate(prompt)  # an error in the prompt comes before it is printed
        print(escape_controls(prompt), end="", flush=True)
        for piece in pieces:
            print(escape_controls(piece), end="", flush=True)
        print()


if __name__ == "__main__":
    raise SystemExit(main())
