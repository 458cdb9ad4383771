"""Text from a checkpoint.

python sample.py --ckpt out/capstone_best.pt --prompt "ROMEO:" --temperature 0.8
"""

import torch

import checkpoint
import pretrained
from cli import Parser, UserError, command, read_text
from device import pick_device, pick_weights_dtype
from tokenizer import Tokenizer, UnknownCharacters


def encode_prompt(text: str, tokenizer: Tokenizer) -> list[int]:
    """The prompt's ids; without a prompt, the id that a text starts from. Raises UserError."""
    try:
        return tokenizer.encode(text).tolist() or [tokenizer.start_id]
    except UnicodeEncodeError:
        raise UserError("the prompt is not valid text: it has bytes that are no UTF-8", status=2) from None
    except UnknownCharacters as error:
        raise UserError(f"the prompt has {error}; it can be written with {tokenizer.characters!r}", status=2) from None


def until(text: str, stop: str | None) -> str:
    """text up to and with the first `stop`."""
    return text[: text.index(stop) + len(stop)] if stop and stop in text else text


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="sample.py", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", default="out/capstone_best.pt", help="checkpoint, or gpt2 (default: %(default)s)")
    parser.add_argument("--prompt", default="", help="text to go on from")
    parser.add_argument("--prompt_file", help="UTF-8 file with the text to go on from")
    parser.add_argument("--max_new_tokens", type=int, default=500, help="length of a sample (default: %(default)s)")
    parser.add_argument("--num_samples", type=int, default=1, help="several are generated as one batch")
    parser.add_argument(
        "--temperature", type=float, default=0.8, help="0: always the likeliest token (default: %(default)s)"
    )
    parser.add_argument("--top_k", type=int, help="draw from the k likeliest tokens only")
    parser.add_argument("--top_p", type=float, help="draw from the likeliest tokens that make up this probability")
    parser.add_argument("--stop", help="end a sample after this text")
    parser.add_argument("--seed", type=int, default=1337, help="another seed, another text (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    wrong = [
        f"--{name} must be {wanted}, not {getattr(args, name)}"
        for name, ok, wanted in (
            ("max_new_tokens", 1 <= args.max_new_tokens <= 10**8, "at least 1 and at most 100,000,000"),
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
    if wrong:
        raise UserError("; ".join(wrong), status=2)

    device, _ = pick_device(args.device)
    model, tokenizer = checkpoint.build(pretrained.load(args.ckpt), device)
    model.to(pick_weights_dtype(device, args.num_samples))
    prompt = read_text(args.prompt_file) if args.prompt_file else args.prompt
    idx = torch.tensor([encode_prompt(prompt, tokenizer)], device=device).repeat(args.num_samples, 1)
    stream = model.stream(
        idx,
        args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        generator=torch.Generator(device).manual_seed(args.seed),
    )
    if args.num_samples == 1:
        stream_text(prompt, stream, tokenizer, args.stop)
    else:
        rows = torch.cat(list(stream), dim=1).tolist()
        for number, row in enumerate(rows, 1):
            print(f"--- sample {number} of {args.num_samples} ---\n{prompt}{until(tokenizer.decode(row), args.stop)}")


def stream_text(prompt: str, stream, tokenizer: Tokenizer, stop: str | None) -> None:
    """Prints a text as it is generated."""
    decode = tokenizer.stream_decoder()
    print(prompt, end="", flush=True)
    end = ""  # of what is printed, shorter than `stop`, which may have begun in it
    for token in stream:
        text = end + decode(token[0].tolist())
        print(until(text, stop)[len(end) :], end="", flush=True)
        if stop and stop in text:
            break
        end = text[max(0, len(text) - len(stop) + 1) :] if stop else ""
    print()


if __name__ == "__main__":
    raise SystemExit(main())
