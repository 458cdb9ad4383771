"""How fast it is here, beside nanoGPT on the same machine in the same run.

python -m experiments.bench training    --nanogpt DIR  tokens per second, beside what its matrix products alone allow
python -m experiments.bench commands    --nanogpt DIR  whole commands: how long, and to which validation loss
python -m experiments.bench generation  --nanogpt DIR  tokens per second, one stream and ten at once
python -m experiments.bench preparation                from text to ids; prepare.py on 30, 100 and 300 MB
python -m experiments.bench cost                       time and memory of a step against width, depth, context and batch
python -m experiments.bench table                      table.md, from what was measured

--nanogpt is a checkout of github.com/karpathy/nanoGPT anywhere on the disk, its data/shakespeare_char prepared. Programs
alternate, and what counts is the median over the rounds. Results go to --out, as JSON.
"""

import importlib.util
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import prepare
from common.cli import Parser, command
from common.device import has_bfloat16, pick_device, pick_weights_dtype, reuse_memory
from common.errors import UserError
from common.metrics import read_metrics
from common.tokenizer import BPETokenizer, ByteTokenizer
from config import Config
from data import Corpus, python
from model import GPT, GPTConfig, count_parameters
from train import Run, optimizer_step

ROOT = Path(__file__).parent.parent
RESULTS = Path("experiments/results/bench_cpu")
SHAPES = {  # what to train: settings, and how many steps of them to time
    "0.8M": (dict(n_layers=4, n_heads=4, d_model=128, block_size=128, batch_size=16), 60),
    "10.65M": (dict(n_layers=6, n_heads=6, d_model=384, block_size=256, batch_size=16), 12),
}
NANOGPTS_NAMES = {"n_layers": "n_layer", "n_heads": "n_head", "d_model": "n_embd"}
ON_CPU = [  # without a GPU, from the shell
    "train.py configs/shakespeare_quick.py",
    "train.py configs/shakespeare_char.py",
    "train.py configs/shakespeare_char.py --optimizer=adamw --learning_rate=4e-3 --max_steps=1400",
]
NANOGPT_ON_CPU = (  # what nanoGPT's README tells a computer without a GPU to do
    "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20 --block_size=64"
    " --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000 --lr_decay_iters=2000 --dropout=0.0"
)


def of_the_model(shape: dict[str, int]) -> dict[str, int]:
    return {name: value for name, value in shape.items() if name != "batch_size"}


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each of them returns, in rounds: the first, the second, ..., the first again."""
    returned = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            returned[name].append(run())
    return returned


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long it takes."""
    tick = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - tick


def output(line: list[str | Path], folder: str | Path = ".") -> str:
    """What a Python program prints. Raises UserError where it fails."""
    done = subprocess.run([sys.executable, *line], cwd=folder, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise UserError(f"{line[0]} in {folder} failed: {reason}")
    return done.stdout


# ---------------------------------------------------------------------------------------------------------------------
# training


def ceiling(dtype: torch.dtype, device: torch.device) -> float:
    """Operations per second of a product of two large matrices: the most that there is to be had."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / statistics.median(seconds(lambda: a @ b, device) for _ in range(20))


def our_rate(settings: dict, steps: int) -> float:
    """Tokens per second of train.py by its metrics, the first steps left out."""
    settings = settings | {
        "max_steps": steps,
        "warmup_steps": 1,
        "log_interval": 1,
        "run_name": "run",
    }
    settings |= {"eval_tokens": 1, "sample_interval": 0}
    with tempfile.TemporaryDirectory() as out:
        Path(out, "config.py").write_text(
            "".join(f"{name} = {value!r}\n" for name, value in settings.items())
        )
        output([ROOT / "train.py", f"{out}/config.py", f"--out_dir={out}"])
        rows = [row for row in read_metrics(Path(out, "run_metrics.jsonl")) if "train/loss" in row]
    return rows[1]["tokens"] / statistics.median(np.diff([row["seconds"] for row in rows])[3:])


def nanogpt_rate(nanogpt: str, shape: dict[str, int], steps: int, device: torch.device) -> float:
    """The same of nanoGPT's train.py, by what it prints."""
    with tempfile.TemporaryDirectory() as out:
        flags = [f"--{NANOGPTS_NAMES.get(name, name)}={value}" for name, value in shape.items()]
        flags += [f"--device={device}", f"--compile={device.type == 'cuda'}", "--dropout=0.0", f"--max_iters={steps}",
                  "--eval_iters=1", "--log_interval=1", f"--out_dir={out}"]  # fmt: skip
        printed = output(["train.py", "config/train_shakespeare_char.py", *flags], nanogpt)
    times = [
        float(ms) / 1000
        for ms in re.findall(r"^iter \d+: .* time ([\d.]+)ms", printed, re.MULTILINE)
    ]
    return shape["batch_size"] * shape["block_size"] / statistics.median(times[4:])


def training(nanogpt: str | None, rounds: int, device: torch.device) -> list[dict]:
    dtype = torch.bfloat16 if has_bfloat16(device) else torch.float32
    precision = str(dtype).removeprefix("torch.")
    rows = []
    for size, (shape, steps) in SHAPES.items():
        ours = shape | {"device": str(device)}
        contestants = {
            "ceiling": partial(ceiling, dtype, device),
            "compiled": partial(our_rate, ours | {"compile": True}, steps),
            "eager": partial(our_rate, ours | {"compile": False}, steps),
        }
        if nanogpt:
            contestants["nanogpt"] = partial(nanogpt_rate, nanogpt, shape, steps, device)
        rates = alternate(contestants, rounds)
        config = GPTConfig(vocab_size=65, **of_the_model(shape))
        operations = (
            6 * count_parameters(config) + 12 * config.n_layers * config.d_model * config.block_size
        )
        shares = [
            100 * operations * ours / most
            for ours, most in zip(rates["compiled"], rates["ceiling"])
        ]
        what = (
            f"training, {size} parameters, batches of {shape['batch_size']} x {shape['block_size']}"
        )
        theirs = {"nanogpt": rates["nanogpt"]} if nanogpt else {}
        rows += [
            {"what": f"{what}, compiled blocks, {precision}", "unit": "tokens/s", "ours": rates["compiled"], **theirs},
            {"what": f"{what}, {precision}", "unit": "tokens/s", "ours": rates["eager"], **theirs},
            {"what": "its operations, as a share of the product's below", "unit": "%", "ours": shares},
            {"what": f"product of two large matrices, {precision}", "unit": "GFLOP/s",
             "ours": [rate / 1e9 for rate in rates["ceiling"]]},
        ]  # fmt: skip
    return rows


def commands(nanogpt: str | None, rounds: int) -> list[dict]:
    """Whole commands as a shell sees them: start-up, compilation, evaluations and samples are in their time."""
    losses = {line: [] for line in [*ON_CPU, NANOGPT_ON_CPU]}

    def run(line: str, folder: str) -> float:
        """Seconds."""
        with tempfile.TemporaryDirectory() as out:
            tick = time.perf_counter()
            seed = (
                [] if line == NANOGPT_ON_CPU else [f"--seed={len(losses[line]) + 1}"]
            )  # it has none to set
            printed = output([*line.split(), *seed, f"--out_dir={out}"], folder)
            took = time.perf_counter() - tick
        losses[line].append(float(re.findall(r"val(?:idation)? loss ([\d.]+)", printed)[-1]))
        return took

    contestants = {line: partial(run, line, ".") for line in ON_CPU}
    if nanogpt:
        contestants[NANOGPT_ON_CPU] = partial(run, NANOGPT_ON_CPU, nanogpt)
    times = alternate(contestants, rounds)
    rows = []
    for line in ON_CPU:
        theirs = {"nanogpt": times[NANOGPT_ON_CPU]} if nanogpt else {}
        rows.append({"what": f"`python {line}`", "unit": "s", "ours": times[line], **theirs})
        theirs = {"nanogpt": losses[NANOGPT_ON_CPU]} if nanogpt else {}
        rows.append({"what": "its validation loss", "unit": "nats", "ours": losses[line], **theirs})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# generation


def load_nanogpt(folder: str):
    """The module model.py of a nanoGPT checkout. Raises UserError."""
    path = Path(folder, "model.py")
    if not path.is_file():
        raise UserError(
            f"there is no nanoGPT in {folder}: git clone https://github.com/karpathy/nanoGPT",
            status=2,
        )
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def generation(
    nanogpt: str | None, rounds: int, device: torch.device, tokens: int = 500
) -> list[dict]:
    shape, _ = SHAPES["10.65M"]
    ours = GPT(GPTConfig(vocab_size=65, **of_the_model(shape)))
    ours.to(device).eval()
    if nanogpt:
        module = load_nanogpt(nanogpt)
        theirs = {
            NANOGPTS_NAMES.get(name, name): value for name, value in of_the_model(shape).items()
        }
        theirs = (
            module.GPT(module.GPTConfig(vocab_size=65, dropout=0.0, bias=False, **theirs))
            .to(device)
            .eval()
        )
    rows = []
    for streams in (1, 10):
        weights = pick_weights_dtype(device, streams)  # as sample.py does
        idx = torch.zeros(streams, 1, dtype=torch.long, device=device)

        def rate(model: torch.nn.Module, count: int, idx=idx) -> float:
            with torch.no_grad():
                return len(idx) * count / seconds(lambda: model.generate(idx, count), device)

        contestants = {"ours": partial(rate, ours.to(weights), tokens)}
        if nanogpt:  # its sample.py draws one after another
            contestants["nanogpt"] = partial(rate, theirs, tokens, idx[:1])
        for run in contestants.values():
            run.func(run.args[0], 2)  # warms up
        what = f"generation, 10.65M parameters, {streams} at once, {tokens} tokens each, weights in {str(weights)[6:]}"
        rows.append({"what": what, "unit": "tokens/s", **alternate(contestants, rounds)})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# preparation


def some_text(size: int) -> str:
    """About `size` characters of Python's standard library, over and over."""
    documents = python.load(Path("data/downloads")).text()
    text = "\n\n".join(filter(None, documents))
    return (text * (size // len(text) + 1))[:size]


def preparation(rounds: int) -> list[dict]:
    """MB of text per second from memory to ids; seconds and peak memory of whole commands."""
    text = some_text(40_000_000)
    pieces = [
        text[i : i + prepare.JOB_CHARACTERS] for i in range(0, len(text), prepare.JOB_CHARACTERS)
    ]
    corpus = Corpus("", lambda: pieces)
    tiktoken = BPETokenizer()

    def write(tokenizer):
        with tempfile.TemporaryDirectory() as folder:
            prepare.write_tokens(Path(folder), (("train", 0, piece) for piece in pieces), tokenizer)

    def whole(kind: str):
        write(prepare.make_tokenizer(kind, prepare.survey(corpus).vocabulary))

    chars = prepare.make_tokenizer("char", prepare.survey(corpus).vocabulary)
    contestants = {
        "char: survey, encode and write": lambda: whole("char"),
        "byte: survey, encode and write": lambda: whole("byte"),
        "char: encode and write": lambda: write(chars),
        "byte: encode and write": lambda: write(ByteTokenizer()),
        "bpe: encode and write": lambda: write(tiktoken),
        "tiktoken.encode_ordinary, one thread": lambda: [
            tiktoken._encoding.encode_ordinary(piece) for piece in pieces
        ],
    }
    cpu, megabytes = torch.device("cpu"), len(text.encode()) / 1e6
    rates = alternate(
        {name: lambda run=run: megabytes / seconds(run, cpu) for name, run in contestants.items()},
        rounds + 1,
    )
    rows = [
        {"what": f"preparation, {name}", "unit": "MB/s", "ours": values[1:]}
        for name, values in rates.items()
    ]

    # VmHWM is Linux's account of a process's own peak; getrusage would count what this one held when it forked.
    watched = (
        "import sys, prepare; prepare.main(sys.argv[1:]); print(open('/proc/self/status').read())"
    )
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").mkdir()
        Path(folder, "data", "downloads").symlink_to(Path("data/downloads").resolve())
        for kind in ("char", "byte", "bpe"):
            for size in (30, 100, 300):
                Path(folder, "text.txt").write_text(some_text(size * 1_000_000), encoding="utf-8")
                command = [sys.executable, "-c", watched, f"text_{kind}", "--input", "text.txt"]
                environment = os.environ | {"PYTHONPATH": os.getcwd()}
                run = partial(
                    subprocess.run,
                    command,
                    cwd=folder,
                    env=environment,
                    capture_output=True,
                    text=True,
                    check=True,
                )
                tick = time.perf_counter()
                status = run().stdout
                taken = time.perf_counter() - tick
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) / 1000
                what = f"`prepare.py text_{kind}` of {size} MB"
                rows.append({"what": what, "unit": "s", "ours": [taken]})
                rows.append({"what": "its peak memory", "unit": "MB", "ours": [peak]})
    return rows


# ---------------------------------------------------------------------------------------------------------------------
# cost as work grows

BASE = Config(
    vocab_size=65,
    n_layers=4,
    n_heads=4,
    d_model=128,
    block_size=128,
    batch_size=16,
    device="cpu",
    dtype="float32",
)
GROWING = {
    "width (d_model)": [
        {"d_model": width, "n_heads": width // 32} for width in (64, 128, 256, 512)
    ],
    "depth (n_layers)": [{"n_layers": layers} for layers in (2, 4, 8, 16)],
    "context (block_size)": [{"block_size": length} for length in (64, 128, 256, 512, 1024)],
    "batch (batch_size)": [{"batch_size": size} for size in (4, 8, 16, 32, 64)],
}


def memory(key: str) -> int:
    """Bytes of this process's memory by Linux's account: VmRSS now, VmHWM at most so far."""
    return int(re.search(rf"{key}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def step_cost(config: Config, rounds: int) -> dict[str, float]:
    """Time and memory of a step, measured, beside what arithmetic says; to be called in a process of its own."""
    reuse_memory()
    device, before = torch.device(config.device), memory("VmRSS")
    run = Run(config, None, device, torch.float32)
    ids = torch.randint(
        config.vocab_size, (config.batch_size, config.block_size + 1), device=device
    )
    step = partial(
        optimizer_step, run.model, run.optimizers, run.scaler, ids, 0, torch.float32, config
    )
    times = [seconds(step, device) for _ in range(rounds + 1)][1:]
    peak = memory("VmHWM") - before

    kept = {}  # what the forward pass keeps for the backward pass, each storage once: weights and activations

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.model(ids[:, :-1])
    parameters = count_parameters(config)
    attention = 12 * config.n_layers * config.d_model * config.block_size
    return {
        "milliseconds": 1000 * statistics.median(times),
        "million operations": (6 * parameters + attention) * config.tokens_per_step / 1e6,
        "MB": peak / 1e6,
        "MB by count": (sum(kept.values()) + 4 * 3 * parameters)
        / 1e6,  # gradients, and AdamW's two averages
    }


def cost(rounds: int) -> list[dict]:
    """A row for each size along each axis; the other three stay at 4 layers of 128, batches of 16 x 128, float32."""
    rows = []
    for axis, changes in GROWING.items():
        for change in changes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                costs = pool.submit(step_cost, replace(BASE, **change), rounds).result()
            rows.append({"what": axis, "size": next(iter(change.values())), **costs})
    return rows


def slope(sizes: list[float], values: list[float]) -> float:
    """The power of its size that a value grows with."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def cost_figure(rows: list[dict]) -> Figure:
    """Time and memory of a step along each axis, measured and by arithmetic, in logarithms."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    panels = figure.subplots(2, len(GROWING), sharey="row")
    pairs = [
        ("milliseconds", "million operations", "step [ms]"),
        ("MB", "MB by count", "memory [MB]"),
    ]
    for (measured, predicted, label), line in zip(pairs, panels):
        line[0].set_ylabel(label)
        for axis, panel in zip(GROWING, line):
            points = [row for row in rows if row["what"] == axis]
            sizes, ours, theory = (
                [row[key] for row in points] for key in ("size", measured, predicted)
            )
            scale = np.exp(np.mean(np.log(ours)) - np.mean(np.log(theory)))
            what = "operations" if "operations" in predicted else "bytes counted"
            panel.loglog(
                sizes,
                ours,
                "o-",
                color="#0072b2",
                label=f"measured: power {slope(sizes, ours):.2f}",
            )
            panel.loglog(sizes, [scale * value for value in theory], "--", color="#d55e00",
                         label=f"{what}: power {slope(sizes, theory):.2f}")  # fmt: skip
            panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
            panel.minorticks_off()
            panel.set_xlabel(axis)
            panel.grid(alpha=0.3)
            panel.legend(frameon=False, fontsize=9)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# what was measured


def spread(values: list[float]) -> str:
    """Median, and in brackets the smallest and largest."""
    digits = 0 if statistics.median(values) >= 100 else 1 if statistics.median(values) >= 10 else 3
    median, least, most = (
        f"{value:,.{digits}f}" for value in (statistics.median(values), min(values), max(values))
    )
    return median if len(values) == 1 else f"{median} ({least} to {most})"


def table(folder: Path) -> str:
    """All results in a folder, as Markdown."""
    lines = ["| what | unit | n | ours | nanoGPT | ratio |", "|---|---|---|---|---|---|"]
    for what in ("commands", "training", "generation", "preparation"):
        path = folder / f"{what}.json"
        for row in json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []:
            theirs, ratio = row.get("nanogpt"), ""
            if theirs and row["unit"] in ("s", "tokens/s"):
                ratio = statistics.median(row["ours"]) / statistics.median(theirs)
                ratio = f"{1 / ratio if row['unit'] == 's' else ratio:.1f}"
            lines.append(
                f"| {row['what']} | {row['unit']} | {len(row['ours'])} | {spread(row['ours'])} |"
                f" {spread(theirs) if theirs else ''} | {ratio} |"
            )
    return "\n".join(lines)


def write_table(folder: Path) -> None:
    text = table(folder)
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)


def machine(device: torch.device) -> str:
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        info = Path("/proc/cpuinfo")
        found = re.search(r"model name\s*: (.*)", info.read_text()) if info.exists() else None
        name = f"{torch.get_num_threads()} cores of {found[1] if found else platform.processor()}"
        name += f" ({torch.backends.cpu.get_cpu_capability()}{', bfloat16' * has_bfloat16(device)})"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.bench", description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", choices=["training", "commands", "generation", "preparation", "cost", "table"]
    )
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT to run in turn")
    parser.add_argument(
        "--rounds", type=int, default=3, help="of which the median is taken (default: %(default)s)"
    )
    parser.add_argument(
        "--device", default="auto", help="for training and generation: auto, cpu, cuda, mps"
    )
    parser.add_argument(
        "--out", type=Path, default=RESULTS, help="folder of the results (default: %(default)s)"
    )
    args = parser.parse_args(argv)
    if args.what == "table":
        write_table(args.out)
        return
    device, _ = pick_device(args.device)
    measure = {
        "training": partial(training, args.nanogpt, args.rounds, device),
        "commands": partial(commands, args.nanogpt, args.rounds),
        "generation": partial(generation, args.nanogpt, args.rounds, device),
        "preparation": partial(preparation, args.rounds),
        "cost": partial(cost, args.rounds),
    }
    if args.nanogpt:
        load_nanogpt(args.nanogpt)
    rows = measure[args.what]()
    args.out.mkdir(parents=True, exist_ok=True)
    result = {
        "machine": machine(device),
        "command": f"python -m experiments.bench {args.what}",
        "rows": rows,
    }
    (args.out / f"{args.what}.json").write_text(
        json.dumps(result, indent=1) + "\n", encoding="utf-8"
    )
    if args.what == "cost":
        cost_figure(rows).savefig(args.out / "cost.png", dpi=110)
        print(f"{args.out / 'cost.png'}")
    else:
        write_table(args.out)


if __name__ == "__main__":
    raise SystemExit(main())
