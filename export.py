"""Writes a checkpoint as a folder that transformers opens: AutoModelForCausalLM and AutoTokenizer, without own code.

python export.py --ckpt out/capstone_best.pt --out hf
"""

import json
import math
import tempfile
from dataclasses import replace
from pathlib import Path

import torch

from common import checkpoint, gpt2_bpe
from common.arguments import saved_settings
from common.cli import Parser, command
from common.errors import UserError
from common.gpt2 import GPT2, GPT2_ARCHITECTURE, GPT2_FIXED, GPT2_SIZES, LLAMA, package, to_theirs
from common.tokenizer import Tokenizer
from config import make_config
from model import GPT, GPTConfig

ROPE = {"norm_type": "rmsnorm", "norm_position": "pre", "pos_type": "rope", "mlp_type": "swiglu"}
ARCHITECTURES = {
    "Qwen3": ROPE | {"qk_norm": True, "bias": False},  # its MLP can't have biases
    "Llama": ROPE | {"qk_norm": False},
    "GPT2": GPT2_ARCHITECTURE,  # it always has biases: zeros where ours has none
}
FILES = {
    "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "config.json",
}  # fmt: skip
MARK = "exported_run"  # in config.json: the run that the checkpoint is of

CARD = """\
---
library_name: transformers
pipeline_tag: text-generation
---

# A small language model, trained on {dataset}

| | |
|---|---|
| architecture | {architecture}, {n_layers} layers of {d_model}, {n_heads} heads |
| parameters | {parameters:,} |
| trained on | {dataset}: {steps:,} steps of {tokens_per_step:,} tokens, starting from {start} |
| validation loss | {loss} |
| context | {block_size:,} tokens |
| tokens | {vocab_size:,}, {kind} |

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained({folder!r})
model = AutoModelForCausalLM.from_pretrained({folder!r})
ids = tokenizer({prompt!r}, return_tensors="pt")
print(tokenizer.decode(model.generate(**ids, max_new_tokens={length}, do_sample=True, temperature=0.8, top_k=0)[0]))
```

(Without `top_k=0` transformers draws from the 50 likeliest tokens only.) A prompt and what is generated from it may have
{block_size:,} tokens together: there is no sliding window here. {note}
"""
NOTES = {
    "char": "The tokenizer knows only the characters of its training text, and raises an error (\"not found in the"
    ' vocabulary") on any other. No token ends a text.',
    "byte": "Tokens are the bytes of UTF-8. No token ends a text.",
    "bpe": 'Tokens are GPT-2\'s. The token 50256 ends a text; "<|endoftext|>" in a text is text like any other.',
}  # fmt: skip


def find_architecture(config: GPTConfig) -> str:
    """The one among ARCHITECTURES that computes what a GPT of this config does. Raises UserError where none does."""
    differences = {
        name: [setting for setting, value in settings.items() if getattr(config, setting) != value]
        for name, settings in ARCHITECTURES.items()
    }
    nearest = min(differences, key=lambda name: len(differences[name]))
    if differences[nearest]:
        own, theirs = (
            ", ".join(f"{setting}={value(setting)}".lower() for setting in differences[nearest])
            for value in (lambda setting: getattr(config, setting), ARCHITECTURES[nearest].get)
        )
        raise UserError(
            f"transformers has no counterpart of {own}: the nearest, {nearest}, has {theirs}"
        )
    return nearest


def describe_model(config: GPTConfig, architecture: str) -> dict:
    """The settings of a transformers model, as config.json holds them."""
    common = {"dtype": "float32", "tie_word_embeddings": config.tie_embeddings}
    if architecture == "GPT2":
        sizes = {theirs: getattr(config, ours) for ours, theirs in GPT2_SIZES.items()}
        dropout = {"embd_pdrop": config.dropout, "resid_pdrop": config.dropout, "attn_pdrop": 0.0}
        own = {
            "architectures": ["GPT2LMHeadModel"],
            "n_ctx": config.block_size,
        }  # n_ctx is read by llama.cpp
        return common | own | GPT2_FIXED | sizes | dropout
    return common | {
        "architectures": [f"{architecture}ForCausalLM"], "model_type": architecture.lower(), "vocab_size": config.vocab_size,
        "max_position_embeddings": config.block_size, "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads, "num_key_value_heads": config.n_heads, "head_dim": config.head_dim,
        "hidden_size": config.d_model, "intermediate_size": config.mlp_width, "hidden_act": "silu",
        "rms_norm_eps": 1e-6, "rope_theta": 10_000.0, "attention_bias": config.bias, "mlp_bias": config.bias,
    }  # fmt: skip


def find_weights(model: GPT, architecture: str) -> dict[str, torch.Tensor]:
    """The model's parameters by the names that the architecture has for them."""
    if architecture == "GPT2" and not model.config.bias:
        biased = GPT(replace(model.config, bias=True))  # zeros, until they are trained
        biased.load_state_dict(model.state_dict(), strict=False)
        model = biased
    return to_theirs(model, GPT2 if architecture == "GPT2" else LLAMA)


def byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte: itself, or the next one from 256 on where it can't be seen."""
    seen = {
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    }
    others = iter(range(256, 512))
    return [chr(byte if byte in seen else next(others)) for byte in range(256)]


def describe_tokenizer(tokenizer: Tokenizer) -> dict:
    """The same tokenizer, as tokenizer.json holds it: BPE, which without merges is one token for each character."""
    model = {"type": "BPE", "unk_token": None, "merges": []}
    before = decoder = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": False,
        "use_regex": True,
    }
    if tokenizer.kind == "bpe":
        model["vocab"], model["merges"] = gpt2_bpe.read(gpt2_bpe.fetch(Path("data/downloads")))
    elif tokenizer.kind == "byte":
        model["vocab"] = {symbol: byte for byte, symbol in enumerate(byte_symbols())}
    else:
        model["vocab"] = {character: i for i, character in enumerate(tokenizer.characters)}
        model["unk_token"] = (
            "<unknown>"  # which has no id: an unknown character is an error, not left out
        )
        before, decoder = None, {"type": "Fuse"}
    return {
        "version": "1.0",
        "added_tokens": [],
        "pre_tokenizer": before,
        "decoder": decoder,
        "model": model,
    }


def describe_special_tokens(tokenizer: Tokenizer, config: GPTConfig) -> tuple[dict, dict]:
    """What tokenizer_config.json and generation_config.json hold."""
    own = {
        "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
        "model_max_length": config.block_size,
    }  # fmt: skip
    # how much is generated where nobody says it: past the block there is no sliding window
    generation = {"max_new_tokens": max(1, config.block_size // 2)}
    if tokenizer.kind != "bpe":
        return own, generation | {"bos_token_id": None, "eos_token_id": None}
    end, number = tokenizer.decode([tokenizer.start_id]), tokenizer.start_id
    own |= {"bos_token": end, "eos_token": end, "pad_token": end}
    own["split_special_tokens"] = True  # in a text they are text
    return own, generation | {
        "bos_token_id": number,
        "eos_token_id": number,
        "pad_token_id": number,
    }


def write_card(
    state: dict, model: GPT, tokenizer: Tokenizer, architecture: str, folder: str
) -> str:
    """The text of the model card: what was measured, and how to load it."""
    run, loss = make_config(saved_settings(state)), "not measured"
    if math.isfinite(state["best_val_loss"]):
        loss = f"{state['best_val_loss']:.4f} nats per token, on {run.eval_tokens:,} tokens at most"
        if state["best_step"] != state["step"]:
            loss += f": the lowest of the run, at step {state['best_step']:,}, not that of these weights"
    return CARD.format(
        **vars(model.config), architecture=architecture, parameters=sum(p.numel() for p in model.parameters()),
        dataset=run.dataset, steps=state["step"], loss=loss, kind=tokenizer.kind, note=NOTES[tokenizer.kind],
        tokens_per_step=run.tokens_per_step, prompt=tokenizer.decode([tokenizer.start_id]),
        length=model.config.block_size - 1, start=run.init_from or "random weights", folder=folder,
    )  # fmt: skip


def check_free(out: Path) -> None:
    """Raises UserError where `out` holds anything but an earlier export."""
    if not out.exists():
        return
    try:
        names = {path.name for path in out.iterdir()}
        if (
            not names
            or names <= FILES
            and MARK in json.loads((out / "config.json").read_text(encoding="utf-8"))
        ):
            return
    except (NotADirectoryError, FileNotFoundError, ValueError, TypeError):
        pass
    raise UserError(
        f"{out} is there already, and is not an earlier export: another --out, or remove it"
    )


def write(out: Path, texts: dict[str, str], weights: bytes) -> None:
    """Makes the folder `out` of these files, or leaves what was there; config.json, the key to it, must come last."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as temporary:
        new = Path(temporary) / "new"
        new.mkdir()
        (new / "model.safetensors").write_bytes(weights)
        for name, text in texts.items():
            (new / name).write_text(text, encoding="utf-8")
        old = Path(temporary) / "old"
        if out.exists():
            out.rename(old)
        try:
            new.rename(out)
        except OSError:
            if old.exists():
                old.rename(out)
            raise


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="export.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ckpt", default="out/capstone_best.pt", help="checkpoint (default: %(default)s)"
    )
    parser.add_argument("--out", default="hf", help="folder to make (default: %(default)s)")
    args = parser.parse_args(argv)

    safetensors, out = package("safetensors.torch"), Path(args.out).resolve()
    check_free(out)
    state = checkpoint.load(args.ckpt)
    model, tokenizer = checkpoint.build(state, torch.device("cpu"))
    architecture = find_architecture(model.config)
    own, generation = describe_special_tokens(tokenizer, model.config)
    ids = {name: value for name, value in generation.items() if name.endswith("token_id")}
    config = describe_model(model.config, architecture) | ids | {MARK: state["run_id"]}
    contents = {
        "tokenizer.json": describe_tokenizer(tokenizer), "tokenizer_config.json": own,
        "generation_config.json": generation, "config.json": config,
    }  # fmt: skip
    texts = {
        name: json.dumps(content, ensure_ascii=False, indent=2)
        for name, content in contents.items()
    }
    card = write_card(state, model, tokenizer, architecture, args.out)
    write(
        out,
        {"README.md": card} | texts,
        safetensors.save(find_weights(model, architecture), {"format": "pt"}),
    )
    print(
        f"{args.out} is a {architecture} of transformers: AutoModelForCausalLM.from_pretrained({args.out!r})"
    )


if __name__ == "__main__":
    raise SystemExit(main())
