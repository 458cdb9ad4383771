"""Exports a checkpoint for transformers or llama.cpp, which open it without code of this project.

python export.py --ckpt out/capstone_best.pt --out hf
python export.py --ckpt out/capstone_best.pt --format gguf --out model.gguf
"""

import hashlib
import json
import math
import os
import shutil
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import torch

from common import bpe, gguf, gpt2_bpe
from common.checkpoint import Checkpoint
from common.cli import Parser, command, optional_package, quote
from common.errors import UserError
from common.gpt2 import (
    GPT2_ARCHITECTURE,
    GPT2_FIXED,
    GPT2_MODULES,
    GPT2_SIZES,
    LLAMA_MODULES,
    PUBLISHED,
    load_model,
    renamed,
)
from common.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    TrainedBPETokenizer,
    find_end_id,
)
from model import GPT, RMS_EPS, ROPE_BASE, GPTConfig, count_parameters

ROPE = {
    "norm_type": "rmsnorm",
    "norm_position": "pre",
    "pos_type": "rope",
    "mlp_type": "swiglu",
    "conv_width": 1,
}
ARCHITECTURES = {
    "Qwen3": ROPE | {"qk_norm": True, "bias": False},  # its MLP can't have biases
    "Llama": ROPE | {"qk_norm": False},
    "GPT2": GPT2_ARCHITECTURE,  # it always has biases: zeros if ours has none
}
FILES = {
    "README.md",
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}
MARK = "exported_run"  # the name, in both formats, of the id of the run that wrote the checkpoint
# in config.json: the hash of each other file; in a GGUF file: that of all after its first START
# bytes. They reveal later edits
HASHES = "exported_sha256"
START = 1000  # bytes; the metadata begins with both marks
UNFINISHED = ".export-"  # prefix of the temporary folder that files are written to first
NOT_OURS = "{} is not an earlier export, or was changed since: choose another --out"

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# A small language model, trained on {dataset}

| | |
|---|---|
| architecture | {architecture}; layers: {n_layers}, width: {d_model}, heads: {n_heads} |
| parameters | {parameters:,} |
| trained on | {dataset}: {steps:,} steps of {tokens_per_step:,} tokens, starting from {weights} |
| validation loss | {loss} |
| context | {block_size:,} tokens |
| tokens | {vocab_size:,}, {kind} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r})
ids = tokenizer({start}, return_tensors="pt")
sampling = {{"do_sample": True, "temperature": 0.8, "top_k": 0{stop}}}
text = model.generate(**ids, max_new_tokens={length}, **sampling)[0]
print(tokenizer.decode(text{skip}))
```

(Without `top_k=0`, transformers samples from the 50 most likely tokens only.) A prompt and the text
generated from it have at most {block_size:,} tokens in all: there is no sliding window here. {note}

For several prompts at once, use `tokenizer(prompts, padding=True, padding_side="left",
return_tensors="pt")`. {padding}
"""
NOTES = {
    CharTokenizer: "The tokenizer knows only the characters of its training text; any other raises"
    ' an error ("not found in the vocabulary").',
    ByteTokenizer: "The tokens are the bytes of UTF-8.",
    BPETokenizer: 'The tokens are GPT-2\'s; "<|endoftext|>" inside a text is text like any other.',
    TrainedBPETokenizer: "The tokens are a byte-pair encoding that was trained on the same text;"
    ' "<|endoftext|>" inside a text is text like any other.',
}
INVALID_BYTE = 255  # never occurs in UTF-8


def find_architecture(config: GPTConfig) -> str:
    """The one of ARCHITECTURES that computes the same as a GPT of this config.

    Raises UserError if there is none.
    """
    differences = {
        name: [setting for setting, value in settings.items() if getattr(config, setting) != value]
        for name, settings in ARCHITECTURES.items()
    }
    nearest = min(differences, key=lambda name: len(differences[name]))
    if different := differences[nearest]:
        ours = ", ".join(f"{name}={getattr(config, name)}" for name in different)
        theirs = ", ".join(f"{name}={ARCHITECTURES[nearest][name]}" for name in different)
        message = f"no exported architecture has {ours}; the nearest, {nearest}, has {theirs}"
        raise UserError(message.replace("True", "true").replace("False", "false"))
    return nearest


def describe_model(config: GPTConfig, architecture: str) -> dict:
    """The content of config.json."""
    common = {"dtype": "float32", "tie_word_embeddings": config.tie_embeddings}
    if architecture == "GPT2":
        sizes = {theirs: getattr(config, ours) for ours, theirs in GPT2_SIZES.items()}
        others = {
            "architectures": ["GPT2LMHeadModel"],
            "n_ctx": config.block_size,  # llama.cpp reads it
            "embd_pdrop": config.dropout,
            "resid_pdrop": config.dropout,
            "attn_pdrop": 0.0,
        }
        return common | GPT2_FIXED | sizes | others
    if architecture == "Qwen3":
        common["sliding_window"] = None  # transformers 4 warns of any other value
    return common | {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": architecture.lower(),
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_heads,
        "head_dim": config.head_dim,
        "hidden_size": config.d_model,
        "intermediate_size": config.mlp_width,
        "hidden_act": "silu",
        "rms_norm_eps": RMS_EPS,
        "rope_theta": ROPE_BASE,
        "attention_bias": config.bias,
        "mlp_bias": config.bias,
    }


def build(saved: Checkpoint) -> tuple[GPT, Tokenizer, str]:
    """The model, its tokenizer, and the name of its architecture. Raises UserError."""
    model, tokenizer = saved.build(torch.device("cpu"))
    architecture = find_architecture(model.config)
    if architecture == "GPT2":  # always has biases: zeros if ours has none
        biased = GPT(replace(model.config, bias=True))
        biased.load_state_dict(model.state_dict(), strict=False)
        model = biased
    return model, tokenizer, architecture


def describe_tokenizer(tokenizer: Tokenizer) -> dict:
    """The content of tokenizer.json: always a BPE; without merges each character is a token."""
    model = {"type": "BPE", "unk_token": None, "merges": []}
    byte_level = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": True,
    }
    pre_tokenizer = decoder = byte_level
    if tokenizer.kind == "bpe":
        model["vocab"], model["merges"] = gpt2_bpe.read()
    elif isinstance(tokenizer, TrainedBPETokenizer):
        model["vocab"], model["merges"] = bpe.vocab_and_merges(tokenizer.tokens)
        model["vocab"][END_OF_TEXT] = len(tokenizer.tokens)
        model["ignore_merges"] = True  # a part of the text that is a token needs none
    elif tokenizer.kind == "byte":
        model["vocab"] = {symbol: byte for byte, symbol in enumerate(bpe.byte_symbols())}
    else:
        model["vocab"] = {character: i for i, character in enumerate(tokenizer.characters)}
        model["unk_token"] = "<unknown>"  # has no id, so that an unknown character is an error
        pre_tokenizer, decoder = None, {"type": "Fuse"}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": pre_tokenizer,
        "decoder": decoder,
        "model": model,
    }


def describe_special_tokens(tokenizer: Tokenizer, config: GPTConfig) -> tuple[dict, dict]:
    """The contents of tokenizer_config.json and generation_config.json."""
    end_id = find_end_id(tokenizer)
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],  # transformers 4: token_type_ids too
        "split_special_tokens": True,  # inside a text they are text
        "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }
    generation = {
        # leaves room for a prompt: transformers has no sliding window here
        "max_new_tokens": max(1, config.block_size // 2),
        "bos_token_id": end_id,
        "eos_token_id": end_id,
        "pad_token_id": end_id,
    }
    if isinstance(tokenizer, BPETokenizer):
        settings["pad_token"] = END_OF_TEXT
        generation["pad_token_id"] = tokenizer.vocab_size - 1
        if end_id is not None:
            settings |= {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT}
    elif tokenizer.kind == "byte":
        settings["pad_token"] = bpe.byte_symbols()[INVALID_BYTE]
        generation["pad_token_id"] = INVALID_BYTE
    return settings, generation


def describe_end(tokenizer: Tokenizer) -> str:
    """A sentence on how a text ends."""
    end, end_id = tokenizer.separator, find_end_id(tokenizer)
    if end_id is not None:
        return f"Token {end_id}, {end!r}, begins and ends a text."
    if end:
        return f"{end!r}, several tokens, begins and ends a text: it needs `stopping_criteria`."
    return "There is no end-of-text token."


def describe_padding(tokenizer: Tokenizer) -> str:
    """Sentences on the token that pads a text in a batch, and on training with such batches."""
    if tokenizer.kind == "byte":
        return "It pads with the byte 255, which no text contains."
    if isinstance(tokenizer, BPETokenizer):
        if not tokenizer.separator:
            return f'It pads with "{END_OF_TEXT}", a token that no text contains.'
        pad = "It pads with the end-of-text token."
    else:
        pad = (
            f"First set `tokenizer.pad_token = {tokenizer.decode(tokenizer.start_ids[:1])!r}`: no"
            " character is unused, and any will do, because the attention mask hides it. Don't save"
            " it: a saved one would be missing from decoded texts."
        )
    return (
        f"{pad} `DataCollatorForLanguageModeling` never trains the model to predict it;"
        " `DataCollatorForSeq2Seq`, with the ids as `labels`, trains on every token of the texts."
    )


def model_card(saved: Checkpoint, tokenizer: Tokenizer, architecture: str, folder: str) -> str:
    """The text of README.md: what was measured, and how to load the model."""
    run, loss = saved.settings(), "not measured"
    if math.isfinite(saved.best_val_loss):
        tokens = f"on at most {run.eval_tokens:,} tokens"
        loss = f"{saved.best_val_loss:.4f} nats per token, {tokens}"
        if saved.best_step != saved.step:
            loss += f": the lowest of the run, at step {saved.best_step:,}, not of these weights"
    stop, end = "", tokenizer.start_ids
    start = repr(tokenizer.decode(end))
    if isinstance(tokenizer, BPETokenizer) and tokenizer.separator:
        start += ", split_special_tokens=False"
    if tokenizer.separator and len(end) > 1:
        last = f"ids[:, -{len(end)}:] == ids.new_tensor({end})"
        stop = f', "stopping_criteria": [lambda ids, scores: ({last}).all(-1)]'
    return CARD.format(
        dataset=run.dataset,
        architecture=architecture,
        n_layers=run.n_layers,
        d_model=run.d_model,
        n_heads=run.n_heads,
        parameters=count_parameters(run),
        steps=saved.step,
        tokens_per_step=run.tokens_per_step,
        weights=run.init_from or "random weights",
        loss=loss,
        block_size=run.block_size,
        vocab_size=run.vocab_size,
        kind=tokenizer.kind,
        folder=folder,
        start=start,
        length=run.block_size - len(end),
        stop=stop,
        skip="" if tokenizer.kind == "char" else ", skip_special_tokens=True",
        note=f"{NOTES[type(tokenizer)]} {describe_end(tokenizer)}",
        padding=describe_padding(tokenizer),
    )


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def to_json(content: dict) -> bytes:
    return json.dumps(content, ensure_ascii=False, indent=2).encode()


def check_folder(out: Path) -> None:
    """Raises UserError unless `out` is missing, empty or an earlier export."""
    if not out.exists():
        return
    with suppress(NotADirectoryError, FileNotFoundError, ValueError, TypeError, AttributeError):
        names = {path.name for path in out.iterdir() if not path.name.startswith(".")}
        names.discard("lost+found")  # of a mounted disk
        interrupted = "config.json" not in names and any(out.glob(f"{UNFINISHED}*"))
        if not names or names <= FILES and interrupted:
            return
        config = json.loads((out / "config.json").read_text(encoding="utf-8"))
        # save_pretrained adds transformers_version, after fine-tuning
        if names <= FILES and MARK in config and "transformers_version" not in config:
            hashes, others = config.get(HASHES, {}), names - {"config.json"}
            if all(sha256((out / name).read_bytes()) == hashes.get(name) for name in others):
                return
    raise UserError(NOT_OURS.format(out))


def check_file(out: Path) -> None:
    """Raises UserError unless `out` is missing or an earlier export."""
    try:
        with open(out, "rb") as file:
            start = file.read(START)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return
    except IsADirectoryError:
        start, digest = b"", ""
    if not start.startswith(b"GGUF") or digest.encode() not in start:
        raise UserError(NOT_OURS.format(out))


def write_folder(out: Path, files: dict[str, bytes]) -> None:
    """Writes these files to the folder `out`; if the disk is full, what was there is unchanged.

    config.json is removed first and replaced last: a process that is killed meanwhile leaves a
    folder that can't be loaded.
    """
    made = not out.exists()
    out.mkdir(parents=True, exist_ok=True)  # it may be a mount point, which can't be renamed
    try:
        with tempfile.TemporaryDirectory(dir=out, prefix=UNFINISHED) as temporary:
            for name, content in files.items():
                (Path(temporary) / name).write_bytes(content)
            (out / "config.json").unlink(missing_ok=True)
            try:
                for name in sorted(files, key=lambda name: name == "config.json"):
                    os.replace(Path(temporary) / name, out / name)
            except BaseException:  # Ctrl-C, for example
                (out / f"{UNFINISHED}interrupted").mkdir(exist_ok=True)
                raise
        for left in out.glob(f"{UNFINISHED}*"):  # by killed processes
            shutil.rmtree(left, ignore_errors=True)
    finally:
        if made and not any(out.iterdir()):
            out.rmdir()


def export_folder(saved: Checkpoint, out: Path) -> str:
    """Writes a folder for transformers. Returns the architecture. Raises UserError."""
    safetensors = optional_package("safetensors.torch")
    check_folder(out)
    model, tokenizer, architecture = build(saved)
    modules = GPT2_MODULES if architecture == "GPT2" else LLAMA_MODULES
    special_tokens, generation = describe_special_tokens(tokenizer, model.config)
    ids = {name: generation[name] for name in ("bos_token_id", "eos_token_id")}
    config = describe_model(model.config, architecture) | ids | {MARK: saved.run_id}
    card = model_card(saved, tokenizer, architecture, str(out))
    files = {
        "README.md": card.encode("utf-8", "replace"),
        "model.safetensors": safetensors.save(renamed(model, modules), {"format": "pt"}),
        "tokenizer.json": to_json(describe_tokenizer(tokenizer)),
        "tokenizer_config.json": to_json(special_tokens),
        "generation_config.json": to_json(generation),
    }
    config[HASHES] = {name: sha256(content) for name, content in files.items()}
    write_folder(out, files | {"config.json": to_json(config)})
    return architecture


def export_file(saved: Checkpoint, out: Path) -> str:
    """Writes a GGUF file for llama.cpp. Returns the architecture. Raises UserError."""
    optional_package("gguf")
    check_file(out)
    model, tokenizer, architecture = build(saved)
    bpe_model = describe_tokenizer(tokenizer)["model"]
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".") as temporary:
        new = Path(temporary) / "new.gguf"
        try:
            marks = {MARK: saved.run_id, HASHES: 64 * "0"}
            gguf.write(new, model, architecture, tokenizer, bpe_model, marks)
            with open(new, "r+b") as file:
                start = file.read(START)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                file.seek(start.index(marks[HASHES].encode()))
                file.write(digest.encode())
        except OSError as error:
            if error.strerror:
                raise
            raise UserError(f"can't write {out}: the disk may be full") from None  # numpy's
        os.replace(new, out)
    return architecture


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="export.py", description=__doc__)
    add = parser.add_argument
    add("--ckpt", default="out/capstone_best.pt", help="checkpoint (default: %(default)s)")
    add(
        "--format",
        choices=("transformers", "gguf"),
        default="transformers",
        help="a folder for transformers (the default), or a GGUF file for llama.cpp",
    )
    add("--out", help="folder or file to make (default: hf, or model.gguf)")
    args = parser.parse_args(argv)
    saved = None if args.ckpt in PUBLISHED else load_model(args.ckpt)
    if not isinstance(saved, Checkpoint):
        raise UserError(f"{args.ckpt} is GPT-2, which transformers can open as it is", status=2)
    if args.format == "gguf":
        out = args.out or "model.gguf"
        architecture = export_file(saved, Path(out))
        use = f"run it with: llama-completion -no-cnv -m {quote(out)} -p 'the start of a text'"
    else:
        out = args.out or "hf"
        architecture = export_folder(saved, Path(out))
        use = f"load it with AutoModelForCausalLM.from_pretrained({out!r})"
    print(f"exported to {out} as a {architecture} model; {use}")


if __name__ == "__main__":
    raise SystemExit(main())
