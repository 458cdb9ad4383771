"""GPT's parameters under the names that transformers has for them, and GPT-2's weights read from there.

A table holds for each of our modules the name of theirs, or the names of those whose rows ours holds one after another.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import torch

from common import checkpoint
from common.checkpoint import SavedModel
from common.errors import UserError
from model import GPT, GPTConfig

GPT2 = {
    "blocks": "transformer.h", "token_embedding": "transformer.wte", "position_embedding": "transformer.wpe",
    "attn_norm": "ln_1", "attn.qkv": "attn.c_attn", "attn.out": "attn.c_proj",
    "mlp_norm": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj",
    "final_norm": "transformer.ln_f", "head": "lm_head",
}  # fmt: skip
LLAMA = {
    "blocks": "model.layers", "token_embedding": "model.embed_tokens",
    "attn_norm": "input_layernorm", "attn.qkv": "self_attn.q_proj self_attn.k_proj self_attn.v_proj",
    "attn.qk_norm": "self_attn.q_norm self_attn.k_norm", "attn.out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm", "mlp.up": "mlp.gate_proj mlp.up_proj", "mlp.down": "mlp.down_proj",
    "final_norm": "model.norm", "head": "lm_head",
}  # fmt: skip

GPT2_SIZES = {
    "vocab_size": "vocab_size", "block_size": "n_positions", "n_layers": "n_layer", "n_heads": "n_head",
    "d_model": "n_embd", "d_ff": "n_inner",
}  # fmt: skip
GPT2_FIXED = {
    "model_type": "gpt2", "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5, "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
}  # fmt: skip
GPT2_ARCHITECTURE = {
    "norm_type": "layernorm", "norm_position": "pre", "pos_type": "learned", "mlp_type": "gelu", "qk_norm": False,
}  # fmt: skip
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # by OpenAI, on the Hugging Face hub


def package(name: str) -> ModuleType:
    """A module that only this exchange needs. Raises UserError where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(
            f"{name.split('.')[0]} is not installed: pip install transformers safetensors tokenizers"
        ) from None


def their_names(name: str, table: dict[str, str]) -> list[str]:
    """Their names for one of our parameters, one for each part of it."""
    prefix = ""
    if name.startswith("blocks."):
        _, number, name = name.split(".", 2)
        prefix = f"{table['blocks']}.{number}."
    module, kind = name.rsplit(".", 1)
    return [f"{prefix}{theirs}.{kind}" for theirs in table[module].split()]


def turned(name: str, weight: torch.Tensor, table: dict[str, str]) -> torch.Tensor:
    """Ours as theirs, or theirs as ours: GPT-2 keeps the matrices of its blocks transposed (Conv1D)."""
    return (
        weight.T if table is GPT2 and name.startswith("blocks.") and weight.dim() == 2 else weight
    )


def to_theirs(model: GPT, table: dict[str, str]) -> dict[str, torch.Tensor]:
    """The model's parameters by their names, each in memory of its own; one that is used twice stands there once."""
    weights = {}
    for name, parameter in model.named_parameters():
        names = their_names(name, table)
        for theirs, part in zip(names, turned(name, parameter.detach(), table).chunk(len(names))):
            part = (
                part.flatten() if part.dim() == 3 else part
            )  # a gain of queries or keys, (1, 1, D)
            weights[theirs] = part.clone(memory_format=torch.contiguous_format)
    return weights


def load(path: str) -> SavedModel:
    """What checkpoint.load gives; of GPT-2, a folder or a name among PUBLISHED, its model, config and tokenizer.

    Raises UserError.
    """
    if Path(path).is_dir():
        return load_gpt2(Path(path))
    if path in PUBLISHED and not Path(path).exists():
        return load_gpt2(download(path))
    return checkpoint.load(path)


def download(name: str) -> Path:
    """The folder with config.json and model.safetensors of a published GPT-2, fetched once. Raises UserError."""
    hub = package("huggingface_hub")
    try:
        return Path(
            hub.snapshot_download(
                f"openai-community/{name}", allow_patterns=["config.json", "model.safetensors"]
            )
        )
    except (
        Exception
    ) as error:  # no network, no space, a server in trouble: each in a way of its own
        raise UserError(
            f"can't download {name} from huggingface.co ({type(error).__name__});"
            " a folder with its config.json and model.safetensors does as well"
        ) from None


def load_gpt2(folder: Path) -> SavedModel:
    """Model, config and tokenizer of GPT-2 as transformers saves it, as in a checkpoint. Raises UserError."""
    torch_files = package("safetensors.torch")
    try:
        theirs = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for name, wanted in GPT2_FIXED.items():
            if (value := theirs.get(name, None if name == "model_type" else wanted)) != wanted:
                raise UserError(
                    f"{folder} has {name} {value!r}; only GPT-2's {wanted!r} can be read"
                )
        sizes = {ours: theirs[name] for ours, name in GPT2_SIZES.items() if ours != "d_ff"}
        config = GPTConfig(
            **sizes, **GPT2_ARCHITECTURE, d_ff=theirs.get("n_inner"), bias=True,
            tie_embeddings=theirs.get("tie_word_embeddings", True),
        )  # fmt: skip
        with torch.device("meta"):  # names and shapes alone
            model = GPT(config)
    except OSError as error:
        raise UserError(f"can't read {folder / 'config.json'}: {error.strerror}") from None
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{folder / 'config.json'} does not describe a GPT-2: {error}") from None
    if config.vocab_size != 50257:
        raise UserError(
            f"{folder} has a vocabulary of {config.vocab_size} tokens, not the 50257 of GPT-2"
        )
    path = folder / "model.safetensors"
    try:
        saved = {
            name.removeprefix("transformer."): weight
            for name, weight in torch_files.load_file(path).items()
        }
    except Exception as error:  # a missing, foreign or damaged file can fail in any way
        raise UserError(f"can't read {path}: {str(error).splitlines()[0]}") from None
    weights, read = {}, set()
    for name, empty in model.state_dict().items():
        source = (
            "token_embedding.weight" if name == "head.weight" and config.tie_embeddings else name
        )
        [theirs] = their_names(source, GPT2)
        weight = saved.get(theirs.removeprefix("transformer."))
        if weight is None:
            raise UserError(f"{path} lacks {theirs}")
        read.add(theirs.removeprefix("transformer."))
        weights[name] = turned(name, weight.float(), GPT2)
        if weights[name].shape != empty.shape:
            raise UserError(
                f"{path} has another shape of {theirs} than config.json says: {tuple(weight.shape)}"
            )
    constants = (
        ".attn.bias",
        ".attn.masked_bias",
        "lm_head.weight",
    )  # the causal mask; the tied head, once more
    if surplus := sorted(name for name in saved.keys() - read if not name.endswith(constants)):
        raise UserError(
            f"{path} has weights that config.json says nothing of, such as {surplus[0]}"
        )
    return SavedModel(weights, vars(config), {"kind": "bpe"})
