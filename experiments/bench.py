"""How fast it is here, beside nanoGPT on the same machine in the same run.

python -m experiments.bench generation [--nanogpt DIR]   tokens per second of a 10.65M model, one stream and ten at once

--nanogpt is a checkout of github.com/karpathy/nanoGPT anywhere on the disk. The two alternate; what is printed is the
median over the rounds, with the smallest and largest, and the ratio of the medians.
"""

import importlib.util
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from cli import Parser, UserError, command
from device import pick_device
from model import GPT, GPTConfig

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


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["generation"])
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
    generation(load_nanogpt(args.nanogpt) if args.nanogpt else None, args.tokens, args.rounds, device)


if __name__ == "__main__":
    raise SystemExit(main())
