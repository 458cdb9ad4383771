"""How fast it is here, beside others on the same machine in the same run.

python -m experiments.bench generation [--nanogpt DIR]   tokens per second of a 10.65M model, one stream and ten at once
python -m experiments.bench preparation                  from text to ids, and whole commands for 30, 100 and 300 MB

--nanogpt is a checkout of github.com/karpathy/nanoGPT anywhere on the disk. Two programs alternate; what is printed is
the median over the rounds, with the smallest and largest, and the ratio of the medians.
"""

import importlib.util
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

import prepare
from cli import Parser, UserError, command
from data import Corpus, python
from device import pick_device, pick_weights_dtype
from model import GPT, GPTConfig
from tokenizer import BPETokenizer, ByteTokenizer

SHAPE = {"vocab_size": 65, "block_size": 256}  # n_layers 6, d_model 384: the defaults are the 10.65M model


def load_nanogpt(folder: str):
    """The module model.py of a nanoGPT checkout. Raises UserError."""
    path = Path(folder, "model.py")
    if not path.is_file():
        raise UserError(f"there is no nanoGPT in {folder}: git clone https://github.com/karpathy/nanoGPT", status=2)
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def alternate(
    contestants: dict[str, Callable[[], None]], work: int, rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Runs them in turn, after a round to warm up; the rate of each round, in units of `work` per second."""
    rates = {name: [] for name in contestants}
    for round in range(rounds + 1):
        for name, run in contestants.items():
            tick = time.perf_counter()
            run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if round:
                rates[name].append(work / (time.perf_counter() - tick))
    return rates


def generation(nanogpt, tokens: int, rounds: int, device: torch.device) -> None:
    """Prints the rates of one stream and of ten."""
    ours = GPT(GPTConfig(**SHAPE)).to(device).eval()
    if nanogpt:
        config = nanogpt.GPTConfig(
            block_size=256, vocab_size=65, n_layer=6, n_head=6, n_embd=384, dropout=0.0, bias=False
        )
        theirs = nanogpt.GPT(config).to(device).eval()
    for streams in (1, 10):
        ours.to(pick_weights_dtype(device, streams))  # as sample.py does
        idx = torch.zeros(streams, 1, dtype=torch.long, device=device)
        contestants = {"ours": lambda idx=idx: ours.generate(idx, tokens)}
        if nanogpt:
            contestants["nanoGPT"] = torch.no_grad()(lambda idx=idx: theirs.generate(idx, tokens))
        rates = alternate(contestants, streams * tokens, rounds, device)
        medians = {name: statistics.median(values) for name, values in rates.items()}
        print(f"{streams} at once, {tokens} tokens each:")
        for name, values in rates.items():
            print(f"  {name:8} {medians[name]:8,.0f} tokens/s  ({min(values):,.0f} to {max(values):,.0f}, n={rounds})")
        if nanogpt:
            print(f"  ratio of the medians: {medians['ours'] / medians['nanoGPT']:.1f}")


def some_text(size: int) -> str:
    """About `size` characters of Python's standard library, over and over."""
    documents = list(python.load(Path("data/downloads")).documents())
    text = "\n\n".join(documents)
    return (text * (size // len(text) + 1))[:size]


def preparation(rounds: int) -> None:
    """Prints MB of text per second, from memory to ids and for whole commands, with their peak memory."""
    text = some_text(40_000_000)
    pieces = [text[i : i + prepare.PIECE] for i in range(0, len(text), prepare.PIECE)]
    corpus = Corpus("", lambda: pieces, continuous=True)
    tiktoken = BPETokenizer()

    def write(tokenizer):
        with tempfile.TemporaryDirectory() as folder:
            prepare.write_tokens(Path(folder), (("train", False, piece) for piece in pieces), tokenizer)

    def whole(kind: str):
        write(prepare.make_tokenizer(kind, prepare.Survey(corpus)))

    chars = prepare.make_tokenizer("char", prepare.Survey(corpus))
    contestants = {
        "char: survey, encode and write": lambda: whole("char"),
        "byte: survey, encode and write": lambda: whole("byte"),
        "char: encode and write": lambda: write(chars),
        "byte: encode and write": lambda: write(ByteTokenizer()),
        "bpe: encode and write": lambda: write(tiktoken),
        "tiktoken.encode_ordinary, one thread": lambda: [tiktoken._encoding.encode_ordinary(piece) for piece in pieces],
    }
    rates = alternate(contestants, len(text.encode()) / 1e6, rounds, torch.device("cpu"))
    for name, values in rates.items():
        print(f"{name:38} {statistics.median(values):6.1f} MB/s  ({min(values):.1f} to {max(values):.1f}, n={rounds})")
    bpe, plain = (statistics.median(rates[name]) for name in list(rates)[-2:])
    print(f"bpe beside one thread of tiktoken: ratio of the medians {bpe / plain:.2f}")

    # VmHWM is Linux's account of a process's own peak; getrusage would count what this one held when it forked.
    watched = "import sys, prepare; prepare.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").mkdir()
        Path(folder, "data", "downloads").symlink_to(Path("data/downloads").resolve())
        for kind in ("char", "byte", "bpe"):
            for size in (30, 100, 300):
                Path(folder, "text.txt").write_text(some_text(size * 1_000_000), encoding="utf-8")
                command = [sys.executable, "-c", watched, f"text_{kind}", "--input", "text.txt"]
                environment = os.environ | {"PYTHONPATH": os.getcwd()}
                tick = time.perf_counter()
                printed = subprocess.run(
                    command, cwd=folder, env=environment, capture_output=True, text=True, check=True
                )
                seconds = time.perf_counter() - tick
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", printed.stdout)[1]) / 1000
                print(f"prepare.py, {kind:4}, {size:3} MB: {seconds:5.1f} s, peak memory {peak:4.0f} MB")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["generation", "preparation"])
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT to run in turn")
    parser.add_argument("--tokens", type=int, default=300, help="tokens in a sample (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count (default: %(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    args = parser.parse_args(argv)
    device, _ = pick_device(args.device)
    name = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"{torch.get_num_threads()} threads of a CPU"
    )
    print(f"{name}, torch {torch.__version__}, Python {platform.python_version()}")
    if args.what == "generation":
        generation(load_nanogpt(args.nanogpt) if args.nanogpt else None, args.tokens, args.rounds, device)
    else:
        preparation(args.rounds)


if __name__ == "__main__":
    raise SystemExit(main())
