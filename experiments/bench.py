"""Benchmarks, alternating with nanoGPT on the same machine.

python -m experiments.bench training    --nanogpt DIR  tokens per second, and the fraction of peak
python -m experiments.bench commands    --nanogpt DIR  whole commands: time and validation loss
python -m experiments.bench busy                       a step, alone and beside a busy program
python -m experiments.bench generation  --nanogpt DIR  tokens per second, one text and ten at once
python -m experiments.bench llama_cpp                  the same, alternating with llama.cpp
python -m experiments.bench preparation                from text to ids; prepare.py on 30 to 300 MB
python -m experiments.bench cost                       time and memory of a step as the model grows
python -m experiments.bench table                      table.md from the kept results

--nanogpt is a checkout of github.com/karpathy/nanoGPT with its data/shakespeare_char prepared.
llama_cpp needs the packages gguf and llama-cpp-python; the latter compiles llama.cpp.
The results are medians over the rounds, in JSON files in <results>/bench_cpu/ (on a GPU,
bench_cuda/).
"""

import importlib.util
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from matplotlib.figure import Figure

import prepare
from common import gguf
from common.cli import Parser, command, optional_package, whole_number
from common.dataset import Dataset
from common.device import autocast, pick_device, pick_dtype, pick_weights_dtype, reuse_memory
from common.errors import UserError
from common.files import ROOT, data_dir
from common.metrics import read_metrics
from common.survey import survey
from common.threads import VARIABLES
from common.tokenizer import BPETokenizer, ByteTokenizer, CharTokenizer
from config import Config
from data import Corpus, python
from experiments.runs import add_results, machine, markdown, read_json, write_json
from model import GPT, GPTConfig, count_parameters, flops_per_token
from train import Run

VOCAB_SIZE = 65  # of Shakespeare's characters
SHAPES = {
    "0.8M": dict(n_layers=4, n_heads=4, d_model=128, block_size=128, batch_size=16),
    "10.65M": dict(n_layers=6, n_heads=6, d_model=384, block_size=256, batch_size=16),
}
TRAINED = {  # what to train, and the number of steps to time
    "cpu": [(SHAPES["0.8M"], 60), (SHAPES["10.65M"], 12)],
    "cuda": [(SHAPES["10.65M"], 300), (SHAPES["10.65M"] | {"batch_size": 64}, 300)],
}
NANOGPT_NAMES = {"n_layers": "n_layer", "n_heads": "n_head", "d_model": "n_embd"}
OUR_COMMANDS = {
    "cpu": [f"train.py configs/shakespeare_{name}.py" for name in ("quick", "char", "small")],
    "cuda": ["train.py configs/shakespeare_char.py", "train.py configs/shakespeare_best.py"],
}
NANOGPT_COMMANDS = {  # from nanoGPT's README
    "cpu": (
        "train.py config/train_shakespeare_char.py --device=cpu --compile=False --eval_iters=20"
        " --block_size=64 --batch_size=12 --n_layer=4 --n_head=4 --n_embd=128 --max_iters=2000"
        " --lr_decay_iters=2000 --dropout=0.0"
    ),
    "cuda": "train.py config/train_shakespeare_char.py",
}


def alternate(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Calls the contestants in turn, in several rounds. Returns what each of them returned."""
    results = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, run in contestants.items():
            results[name].append(run())
    return results


def time_call(run: Callable[[], object], device: torch.device) -> float:
    """The seconds that run() takes."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def run_python(
    arguments: list[str | Path], folder: str | Path = ".", variables: dict[str, str] | None = None
) -> str:
    """The output of a Python program started in a folder, with further environment variables.

    It starts without those that common/threads.py has set here. Raises UserError if it fails.
    """
    line = [sys.executable, *arguments]
    environment = {name: os.environ[name] for name in os.environ.keys() - VARIABLES.keys()}
    environment |= variables or {}
    process = subprocess.run(line, cwd=folder, env=environment, capture_output=True, text=True)
    if process.returncode:
        reason = (process.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"{arguments[0]} in {folder} failed: {reason}")
    return process.stdout


def model_config(shape: dict[str, int]) -> GPTConfig:
    settings = {name: value for name, value in shape.items() if name != "batch_size"}
    return GPTConfig(vocab_size=VOCAB_SIZE, **settings)


# -------------------------------------------------------------------------------------------------
# training


def peak_flops(dtype: torch.dtype, device: torch.device) -> float:
    """FLOP/s of a product of two large matrices."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = statistics.median(time_call(lambda: a @ b, device) for _ in range(20))
    return 2 * size**3 / seconds


def our_training_rate(settings: dict, steps: int, variables: dict[str, str] | None = None) -> float:
    """Tokens per second of train.py, from its metrics, without the first steps."""
    settings = settings | {
        "max_steps": steps,
        "warmup_steps": 1,
        "log_interval": 1,
        "eval_tokens": 1,
        "sample_interval": 0,
        "run_name": "run",
    }
    with tempfile.TemporaryDirectory() as out:
        lines = [f"{name} = {value!r}\n" for name, value in settings.items()]
        Path(out, "config.py").write_text("".join(lines))
        line = [ROOT / "train.py", f"{out}/config.py", f"--out_dir={out}"]
        run_python(line, variables=variables)
        rows = [row for row in read_metrics(Path(out, "run_metrics.jsonl")) if "train/loss" in row]
    times = np.diff([row["seconds"] for row in rows])[3:]
    return rows[1]["tokens"] / statistics.median(times)


def nanogpt_training_rate(
    nanogpt: str, shape: dict[str, int], steps: int, device: torch.device
) -> float:
    """Tokens per second of nanoGPT's train.py, from what it prints, without the first steps."""
    flags = [f"--{NANOGPT_NAMES.get(name, name)}={value}" for name, value in shape.items()]
    flags += [f"--device={device}", f"--compile={device.type == 'cuda'}", f"--max_iters={steps}"]
    flags += ["--dropout=0.0", "--eval_iters=1", "--log_interval=1"]
    with tempfile.TemporaryDirectory() as out:
        line = ["train.py", "config/train_shakespeare_char.py", *flags, f"--out_dir={out}"]
        printed = run_python(line, nanogpt)
    milliseconds = re.findall(r"^iter \d+: .* time ([\d.]+)ms", printed, re.MULTILINE)
    seconds = statistics.median(float(value) / 1000 for value in milliseconds[4:])
    return shape["batch_size"] * shape["block_size"] / seconds


def training(nanogpt: str | None, rounds: int, device: torch.device) -> list[dict]:
    dtype, _ = pick_dtype("auto", device)
    precision = str(dtype).removeprefix("torch.")
    rows = []
    for shape, steps in TRAINED[device.type]:
        settings = shape | {"device": str(device)}
        contestants = {
            "peak": partial(peak_flops, dtype, device),
            "compiled": partial(our_training_rate, settings | {"compile": True}, steps),
            "not compiled": partial(our_training_rate, settings, steps),  # auto: too few steps
        }
        if nanogpt:
            contestants["nanogpt"] = partial(nanogpt_training_rate, nanogpt, shape, steps, device)
        rates = alternate(contestants, rounds)
        theirs = {"nanogpt": rates["nanogpt"]} if nanogpt else {}
        config = model_config(shape)
        size, flops = count_parameters(config) / 1e6, flops_per_token(config)
        utilization = [
            100 * flops * rate / peak for rate, peak in zip(rates["compiled"], rates["peak"])
        ]
        batch = f"{shape['batch_size']} x {shape['block_size']}"
        what = f"training, {size:.4g}M parameters, batches of {batch}"
        compiled = {"what": f"{what}, compiled, {precision}", "unit": "tokens/s"}
        not_compiled = {"what": f"{what}, {precision}", "unit": "tokens/s"}
        fraction = {"what": "FLOP/s when compiled, as a share of a large product's", "unit": "%"}
        product = {"what": f"product of two large matrices, {precision}", "unit": "GFLOP/s"}
        rows += [
            compiled | {"ours": rates["compiled"], **theirs},
            not_compiled | {"ours": rates["not compiled"], **theirs},
            fraction | {"ours": utilization},
            product | {"ours": [peak / 1e9 for peak in rates["peak"]]},
        ]
    return rows


WAITING = {  # ways in which OpenMP's threads wait for one another, by environment variables
    "as shipped": {},
    "OpenMP's default": {"OMP_DISPLAY_ENV": "false"},  # any variable of OpenMP's turns ours off
    "passive": {"OMP_WAIT_POLICY": "passive"},
    "one thread": {"OMP_NUM_THREADS": "1"},
}
LOAD = """
import hashlib, threading

def work():
    while True:
        hashlib.sha256(bytes(1 << 20))

for _ in range(2):
    threading.Thread(target=work).start()
"""


@contextmanager
def busy_program() -> Iterator[subprocess.Popen]:
    """Another program, with two threads that compute all the time and never wait."""
    process = subprocess.Popen([sys.executable, "-c", LOAD])
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def busy(rounds: int) -> list[dict]:
    """Milliseconds of a training step on a CPU, alone and while another program is busy."""
    shape, steps = TRAINED["cpu"][0]
    settings = shape | {"device": "cpu", "compile": False}

    def step(waiting: str, place: Callable) -> float:
        with place():
            rate = our_training_rate(settings, steps, WAITING[waiting])
        return 1000 * shape["batch_size"] * shape["block_size"] / rate

    places = {"alone": nullcontext, "beside two busy threads": busy_program}
    contestants = {
        f"a step of 0.8M parameters, threads waiting {waiting}, {name}": partial(
            step, waiting, place
        )
        for waiting in WAITING
        for name, place in places.items()
    }
    times = alternate(contestants, rounds)
    return [{"what": what, "unit": "ms", "ours": values} for what, values in times.items()]


def commands(nanogpt: str | None, rounds: int, device: torch.device) -> list[dict]:
    """Whole commands as run for the first time: the time includes start-up, compilation,
    evaluations and samples. nanoGPT's loss is the lowest that it prints.
    """
    prepare.prepare_missing("shakespeare_char")  # as nanoGPT's must be
    our_lines, their_line = OUR_COMMANDS[device.type], NANOGPT_COMMANDS[device.type]
    losses = {line: [] for line in [*our_lines, their_line]}

    def run(line: str, folder: str) -> float:
        """Runs a command; keeps its validation loss and returns its time in seconds."""
        arguments = line.split()
        if line != their_line:  # nanoGPT has no setting for its seed
            arguments += [f"--seed={len(losses[line]) + 1}", f"--device={device}"]
        with tempfile.TemporaryDirectory() as out:
            start = time.perf_counter()
            new = {"TORCHINDUCTOR_CACHE_DIR": out}  # nothing is compiled already
            printed = run_python([*arguments, f"--out_dir={out}"], folder, new)
            seconds = time.perf_counter() - start
        printed_losses = [float(x) for x in re.findall(r"val(?:idation)? loss ([\d.]+)", printed)]
        losses[line].append(min(printed_losses) if line == their_line else printed_losses[-1])
        return seconds

    contestants = {line: partial(run, line, ".") for line in our_lines}
    if nanogpt:
        contestants[their_line] = partial(run, their_line, nanogpt)
    times = alternate(contestants, rounds)
    rows = []
    for line in our_lines:
        seconds = {"what": f"`python {line}`", "unit": "s", "ours": times[line]}
        loss = {"what": "its validation loss", "unit": "nats", "ours": losses[line]}
        if nanogpt:
            seconds["nanogpt"] = times[their_line]
            loss["nanogpt"] = losses[their_line]
        rows += [seconds, loss]
    return rows


# -------------------------------------------------------------------------------------------------
# generation


def load_nanogpt(folder: str):
    """Imports model.py of a nanoGPT checkout. Raises UserError."""
    path = Path(folder, "model.py")
    if not path.is_file():
        clone = "git clone https://github.com/karpathy/nanoGPT"
        raise UserError(f"no nanoGPT in {folder}: {clone}", status=2)
    spec = importlib.util.spec_from_file_location("nanogpt", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_nanogpt(folder: str, config: GPTConfig) -> torch.nn.Module:
    """nanoGPT's model of the same shape."""
    module = load_nanogpt(folder)
    shape = {theirs: getattr(config, ours) for ours, theirs in NANOGPT_NAMES.items()}
    shape |= {"block_size": config.block_size, "vocab_size": config.vocab_size}
    return module.GPT(module.GPTConfig(**shape, dropout=0.0, bias=False))


def generation(
    nanogpt: str | None, rounds: int, device: torch.device, tokens: int = 500
) -> list[dict]:
    config = model_config(SHAPES["10.65M"])
    ours = GPT(config).to(device).eval()
    theirs = build_nanogpt(nanogpt, config).to(device).eval() if nanogpt else None
    # nanoGPT's sample.py uses autocast, but on a GPU only
    their_dtype = pick_dtype("auto", device)[0] if device.type == "cuda" else torch.float32

    @torch.no_grad()
    def rate(model: torch.nn.Module, samples: int, length: int = tokens) -> float:
        """Generated tokens per second."""
        idx = torch.zeros(samples, 1, dtype=torch.long, device=device)
        with autocast(device, their_dtype if model is theirs else torch.float32):
            return samples * length / time_call(lambda: model.generate(idx, length), device)

    rows = []
    for samples in (1, 10):
        dtype = pick_weights_dtype(device, samples)  # as sample.py does
        contestants = {"ours": partial(rate, ours.to(dtype), samples)}
        if nanogpt:  # its sample.py generates one text after another
            contestants["nanogpt"] = partial(rate, theirs, 1)
        for run in contestants.values():
            run(length=8)  # warmup; a GPU also records its graph
        what = f"generation, 10.65M parameters, {samples} at once, {tokens} tokens each"
        what += f", weights in {str(dtype).removeprefix('torch.')}"
        rows.append({"what": what, "unit": "tokens/s", **alternate(contestants, rounds)})
    return rows


LLAMA_CPP_TYPES = {"float32": None, "bfloat16": 32, "Q8_0": 7}  # numbers in llama.h


def llama_cpp(rounds: int, tokens: int = 250) -> list[dict]:
    """Greedy generation of one text in llama.cpp, with its weights in several types."""
    theirs = optional_package("llama_cpp")
    silent = theirs.llama_log_callback(lambda *_: None)
    theirs.llama_log_set(silent, None)
    config = model_config(SHAPES["10.65M"])
    ours = GPT(config).eval()
    dtype = pick_weights_dtype(torch.device("cpu"), 1)  # as sample.py does when it samples
    start = torch.zeros(1, 1, dtype=torch.long)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder, "model.gguf")
        characters = CharTokenizer("".join(map(chr, range(VOCAB_SIZE))))
        gguf.write(exported, ours, "Qwen3", characters, {}, {})
        ours.to(dtype)
        for name, number in LLAMA_CPP_TYPES.items():
            path = exported
            if number is not None:
                path = Path(folder, f"{name}.gguf")
                params = theirs.llama_model_quantize_default_params()
                params.ftype = number
                theirs.llama_model_quantize(bytes(exported), bytes(path), params)
            contestants = {
                "ours": lambda n: ours.generate(start, n, temperature=0),
                "llama_cpp": llama_cpp_generator(theirs, path, config),
            }
            rates = {
                which: lambda run=run: tokens / time_call(partial(run, tokens), torch.device("cpu"))
                for which, run in contestants.items()
            }
            for run in contestants.values():
                run(2)  # warmup
            what = f"greedy generation, 10.65M parameters, one text of {tokens} tokens, "
            what += f"threads: {torch.get_num_threads()}, weights in {name}"
            what += f" (ours in {str(dtype).removeprefix('torch.')})"
            rows.append({"what": what, "unit": "tokens/s", **alternate(rates, rounds)})
    return rows


def llama_cpp_generator(
    library: ModuleType, path: Path, config: GPTConfig
) -> Callable[[int], list[int]]:
    """A function that generates a number of tokens from token 0, greedily, with llama.cpp."""
    model = library.llama_model_load_from_file(bytes(path), library.llama_model_default_params())
    params = library.llama_context_default_params()
    params.n_ctx = config.block_size
    params.n_threads = torch.get_num_threads()
    context = library.llama_init_from_model(model, params)

    def generate(length: int) -> list[int]:
        library.llama_memory_clear(library.llama_get_memory(context), True)
        token, ids = (library.llama_token * 1)(0), []
        for _ in range(length):
            library.llama_decode(context, library.llama_batch_get_one(token, 1))
            logits = library.llama_get_logits(context)
            token[0] = int(np.ctypeslib.as_array(logits, (config.vocab_size,)).argmax())
            ids.append(token[0])
        return ids

    return generate


# -------------------------------------------------------------------------------------------------
# preparation


def library_text(size: int) -> str:
    """`size` characters of Python's standard library, repeated if necessary."""
    text = "\n\n".join(filter(None, python.load(data_dir() / "downloads").text()))
    return (text * (size // len(text) + 1))[:size]


def preparation_rates(rounds: int) -> list[dict]:
    """MB of text per second, from memory to ids on disk."""
    text, size = library_text(40_000_000), prepare.JOB_CHARACTERS
    pieces = [text[i : i + size] for i in range(0, len(text), size)]
    corpus = Corpus("", lambda: pieces)
    bpe, bpe4096 = BPETokenizer(), prepare.train_tokenizer(4096, pieces[:10], None)
    chars = prepare.make_tokenizer("char", survey(corpus).vocabulary)

    def write(tokenizer: ByteTokenizer | CharTokenizer | BPETokenizer) -> None:
        with tempfile.TemporaryDirectory() as folder:
            numbered = (("train", 0, piece) for piece in pieces)
            prepare.write_tokens(Path(folder), numbered, tokenizer)

    def survey_and_write(kind: str) -> None:
        write(prepare.make_tokenizer(kind, survey(corpus).vocabulary))

    def encode_with_tiktoken(tokenizer: BPETokenizer) -> None:
        for piece in pieces:
            tokenizer._encoding.encode_ordinary(piece)

    runs = {
        "char: survey, encode and write": partial(survey_and_write, "char"),
        "byte: survey, encode and write": partial(survey_and_write, "byte"),
        "char: encode and write": partial(write, chars),
        "byte: encode and write": partial(write, ByteTokenizer()),
        "bpe: encode and write": partial(write, bpe),
        "bpe4096: encode and write": partial(write, bpe4096),
        "tiktoken.encode_ordinary, one thread": partial(encode_with_tiktoken, bpe),
        "the same with bpe4096": partial(encode_with_tiktoken, bpe4096),
    }
    cpu, megabytes = torch.device("cpu"), len(text.encode()) / 1e6
    times = alternate(
        {name: partial(time_call, run, cpu) for name, run in runs.items()}, rounds + 1
    )
    rows = []
    for name, seconds in times.items():
        rates = [megabytes / value for value in seconds[1:]]  # the first round is warmup
        rows.append({"what": f"preparation, {name}", "unit": "MB/s", "ours": rates})
    return rows


def preparation_commands() -> list[dict]:
    """Seconds and peak memory of prepare.py on files of 30, 100 and 300 MB."""
    # VmHWM is the peak of the process itself; getrusage would include its parent at the fork
    watched = "import sys, prepare; failed = prepare.main(sys.argv[1:]);"
    watched += " print(open('/proc/self/status').read()); sys.exit(failed)"
    variables = {"PYTHONPATH": os.getcwd(), "CAPSTONE_DATA": "data"}
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data").mkdir()
        Path(folder, "data", "downloads").symlink_to((data_dir() / "downloads").resolve())
        for kind in ("char", "byte", "bpe", "bpe4096"):
            for size in (30, 100, 300):
                Path(folder, "text.txt").write_text(library_text(size * 10**6), encoding="utf-8")
                arguments = ["-c", watched, f"text_{kind}", "--input", "text.txt"]
                start = time.perf_counter()
                printed = run_python(arguments, folder, variables)
                seconds = time.perf_counter() - start
                peak = int(re.search(r"VmHWM:\s+(\d+) kB", printed)[1]) / 1000
                what = f"`prepare.py text_{kind}` of {size} MB"
                rows.append({"what": what, "unit": "s", "ours": [seconds]})
                rows.append({"what": "its peak memory", "unit": "MB", "ours": [peak]})
    return rows


# -------------------------------------------------------------------------------------------------
# cost of a step as the model grows

COST_BASE = Config(vocab_size=VOCAB_SIZE, **SHAPES["0.8M"], device="cpu", dtype="float32")
COST_AXES = {
    "width (d_model)": [
        {"d_model": width, "n_heads": width // 32} for width in (64, 128, 256, 512)
    ],
    "depth (n_layers)": [{"n_layers": layers} for layers in (2, 4, 8, 16)],
    "context (block_size)": [{"block_size": length} for length in (64, 128, 256, 512, 1024)],
    "batch (batch_size)": [{"batch_size": size} for size in (4, 8, 16, 32, 64)],
}


def process_memory(key: str) -> int:
    """Bytes of memory of this process, from Linux: VmRSS is the present use, VmHWM the peak."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{key}:\s+(\d+) kB", status)[1]) * 1024


def random_dataset(config: Config) -> Dataset:
    """Random ids, enough for a few steps."""
    rng = np.random.default_rng(0)
    ids = rng.integers(config.vocab_size, size=10 * config.tokens_per_step + 1, dtype=np.uint16)
    return Dataset("random", None, {}, ids, ids)


def step_cost(config: Config, rounds: int) -> dict[str, float]:
    """Time and memory of a step, measured and counted. Needs a process to itself."""
    reuse_memory()
    device, before = torch.device(config.device), process_memory("VmRSS")
    run = Run(config, random_dataset(config), device, torch.float32)
    times = [time_call(partial(run.update, step), device) for step in range(rounds + 1)]
    peak = process_memory("VmHWM") - before

    kept = {}  # storages that the forward pass keeps for the backward pass: weights, activations

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        run.model(run.batches(0)[:, :-1])
    gradients_and_averages = 3 * 4 * count_parameters(config)  # AdamW keeps two averages
    return {
        "milliseconds": 1000 * statistics.median(times[1:]),
        "million FLOPs": flops_per_token(config) * config.tokens_per_step / 1e6,
        "MB": peak / 1e6,
        "MB by count": (sum(kept.values()) + gradients_and_averages) / 1e6,
    }


def cost(rounds: int) -> list[dict]:
    """A row for each size along each axis; everything else as in COST_BASE."""
    rows = []
    for axis, changes in COST_AXES.items():
        for change in changes:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                costs = pool.submit(step_cost, replace(COST_BASE, **change), rounds).result()
            rows.append({"what": axis, "size": next(iter(change.values())), **costs})
    return rows


def power(sizes: list[float], values: list[float]) -> float:
    """The exponent of the power law between sizes and values."""
    return np.polyfit(np.log(sizes), np.log(values), 1)[0]


def cost_figure(rows: list[dict]) -> Figure:
    """Time and memory of a step along each axis, measured and counted, on log scales."""
    figure = Figure(figsize=(13, 6), layout="constrained")
    times, memories = figure.subplots(2, len(COST_AXES), sharey="row")
    for axis, panel in zip(COST_AXES, times):
        draw_cost(panel, rows, axis, "milliseconds", "million FLOPs", "FLOPs")
    for axis, panel in zip(COST_AXES, memories):
        draw_cost(panel, rows, axis, "MB", "MB by count", "bytes counted")
    times[0].set_ylabel("step [ms]")
    memories[0].set_ylabel("memory [MB]")
    return figure


def draw_cost(panel, rows: list[dict], axis: str, measured: str, counted: str, name: str) -> None:
    """One panel: measurements, and the count scaled to their level."""
    points = [row for row in rows if row["what"] == axis]
    sizes, ours, theory = ([row[key] for row in points] for key in ("size", measured, counted))
    scale = np.exp(np.mean(np.log(ours)) - np.mean(np.log(theory)))
    scaled = [scale * value for value in theory]
    ours_label = f"measured: power {power(sizes, ours):.2f}"
    theory_label = f"{name}: power {power(sizes, theory):.2f}"
    panel.loglog(sizes, ours, "o-", color="#0072b2", label=ours_label)
    panel.loglog(sizes, scaled, "--", color="#d55e00", label=theory_label)
    panel.set_xticks(sizes, [str(size) for size in sizes], minor=False)
    panel.minorticks_off()
    panel.set_xlabel(axis)
    panel.grid(alpha=0.3)
    panel.legend(frameon=False, fontsize=9)


# -------------------------------------------------------------------------------------------------
# results


def median_and_range(values: list[float]) -> str:
    """Median (minimum to maximum), or a single value."""
    median = statistics.median(values)
    digits = 0 if median >= 100 else 1 if median >= 10 else 3
    if len(values) == 1:
        return f"{median:,.{digits}f}"
    return f"{median:,.{digits}f} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def results_table(folder: Path) -> str:
    """All results in a folder but those of `cost`, as Markdown."""
    lines = []
    kinds = ("commands", "training", "busy", "generation", "llama_cpp", "preparation")
    others = {"nanogpt": "nanoGPT", "llama_cpp": "llama.cpp"}
    for what in kinds:
        path = folder / f"{what}.json"
        rows = read_json(path)["rows"] if path.exists() else []
        for row in rows:
            line = {
                "what": row["what"],
                "unit": row["unit"],
                "n": f"{len(row['ours'])}",
                "ours": median_and_range(row["ours"]),
                "other": "",
                "ratio": "",
            }
            for other in others.keys() & row.keys():
                theirs = row[other]
                line["other"] = f"{others[other]} {median_and_range(theirs)}"
                ratio = statistics.median(row["ours"]) / statistics.median(theirs)
                if row["unit"] == "tokens/s":
                    line["ratio"] = f"{ratio:.1f}"
                elif row["unit"] == "s":
                    line["ratio"] = f"{1 / ratio:.1f}"
            lines.append(line)
    return markdown(lines)


def write_table(folder: Path) -> None:
    """Writes the table of what is in a folder, and draws the figure of `cost` if it is there."""
    text, costs = results_table(folder), folder / "cost.json"
    (folder / "table.md").write_text(text + "\n", encoding="utf-8")
    print(text)
    if costs.exists():
        rows = read_json(costs)["rows"]
        cost_figure(rows).savefig(folder / "cost.png", dpi=110)


# -------------------------------------------------------------------------------------------------
# the command


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="-m experiments.bench", description=__doc__)
    choices = ["training", "busy", "commands", "generation", "llama_cpp", "preparation", "cost"]
    parser.add_argument("what", choices=[*choices, "table"])
    parser.add_argument("--nanogpt", metavar="DIR", help="a checkout of nanoGPT to compare with")
    parser.add_argument(
        "--rounds",
        type=whole_number(1, 1000),
        default=3,
        help="rounds to take medians over (default: %(default)s)",
    )
    parser.add_argument(
        "--device", default="auto", help="for training, commands and generation: auto, cpu, cuda"
    )
    add_results(parser)
    args = parser.parse_args(argv)
    device, _ = pick_device(args.device)
    if args.what in ("busy", "llama_cpp", "preparation", "cost"):
        device = torch.device("cpu")
    if device.type == "mps":
        raise UserError("benchmarks run on a CPU or an NVIDIA GPU: use --device=cpu", status=2)
    folder = args.results / f"bench_{device.type}"
    if args.what == "table":
        write_table(folder)
        return
    measure = {
        "training": partial(training, args.nanogpt, args.rounds, device),
        "busy": partial(busy, args.rounds),
        "commands": partial(commands, args.nanogpt, args.rounds, device),
        "generation": partial(generation, args.nanogpt, args.rounds, device),
        "llama_cpp": partial(llama_cpp, args.rounds),
        "preparation": lambda: preparation_rates(args.rounds) + preparation_commands(),
        "cost": partial(cost, args.rounds),
    }
    if args.nanogpt:
        load_nanogpt(args.nanogpt)
    rows = measure[args.what]()
    result = {
        "machine": machine(device),
        "command": f"python -m experiments.bench {args.what}",
        "rows": rows,
    }
    write_json(folder / f"{args.what}.json", result, indent=1)
    write_table(folder)


if __name__ == "__main__":
    raise SystemExit(main())
