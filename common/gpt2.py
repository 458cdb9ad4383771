"""Our parameters under the names they have in transformers; load_model opens a checkpoint or GPT-2.

Where a table has several names for one of our modules, our weight is theirs, concatenated.
"""

import json
import os
from pathlib import Path

import torch

from common import checkpoint, gpt2_bpe
from common.checkpoint import SavedModel
from common.cli import optional_package
from common.errors import UserError, listed, one_line
from model import GPT, GPTConfig

GPT2_MODULES = {
    "token_embedding": ["transformer.wte"],
    "position_embedding": ["transformer.wpe"],
    "blocks": ["transformer.h"],
    "attn_norm": ["ln_1"],
    "attn.qkv": ["attn.c_attn"],
    "attn.out": ["attn.c_proj"],
    "mlp_norm": ["ln_2"],
    "mlp.up": ["mlp.c_fc"],
    "mlp.down": ["mlp.c_proj"],
    "final_norm": ["transformer.ln_f"],
    "head": ["lm_head"],
}
LLAMA_MODULES = {  # Qwen3's too
    "token_embedding": ["model.embed_tokens"],
    "blocks": ["model.layers"],
    "attn_norm": ["input_layernorm"],
    "attn.qkv": ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"],
    "attn.q_norm": ["self_attn.q_norm"],
    "attn.k_norm": ["self_attn.k_norm"],
    "attn.out": ["self_attn.o_proj"],
    "mlp_norm": ["post_attention_layernorm"],
    "mlp.up": ["mlp.gate_proj", "mlp.up_proj"],
    "mlp.down": ["mlp.down_proj"],
    "final_norm": ["model.norm"],
    "head": ["lm_head"],
}

# GPT-2 as transformers describes it in config.json: sizes that vary, and values that must not
GPT2_SIZES = {
    "vocab_size": "vocab_size",
    "block_size": "n_positions",
    "n_layers": "n_layer",
    "n_heads": "n_head",
    "d_model": "n_embd",
    "d_ff": "n_inner",
}
GPT2_FIXED = {
    "model_type": "gpt2",
    "activation_function": "gelu_new",
    "layer_norm_epsilon": 1e-5,
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
}
GPT2_ARCHITECTURE = {  # the same in our settings
    "norm_type": "layernorm",
    "norm_position": "pre",
    "pos_type": "learned",
    "mlp_type": "gelu",
    "qk_norm": False,
    "conv_width": 1,
}
PUBLISHED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # by OpenAI, on the Hugging Face hub
VOCAB_SIZE = 50257

# -------------------------------------------------------------------------------------------------
# names and layouts of parameters


def their_names(name: str, modules: dict[str, list[str]]) -> list[str]:
    """The names in `modules` of one of our parameters, such as blocks.0.attn.qkv.weight."""
    prefix = ""
    if name.startswith("blocks."):
        _, number, name = name.split(".", 2)
        prefix = f"{modules['blocks'][0]}.{number}."
    module, kind = name.rsplit(".", 1)
    return [f"{prefix}{theirs}.{kind}" for theirs in modules[module]]


def transposed(name: str, weight: torch.Tensor, modules: dict[str, list[str]]) -> torch.Tensor:
    """The weight in the other layout, from ours to theirs or back: transformers stores the
    matrices of GPT-2's blocks transposed.
    """
    conv1d = modules is GPT2_MODULES and name.startswith("blocks.") and weight.dim() == 2
    return weight.T if conv1d else weight


def renamed(model: GPT, modules: dict[str, list[str]]) -> dict[str, torch.Tensor]:
    """Copies of the model's parameters under their names in `modules`; a tied one appears once."""
    weights = {}
    for name, parameter in model.named_parameters():
        names = their_names(name, modules)
        weight = transposed(name, parameter.detach(), modules)
        for theirs, part in zip(names, weight.chunk(len(names))):
            weights[theirs] = part.clone(memory_format=torch.contiguous_format)
    return weights


# -------------------------------------------------------------------------------------------------
# GPT-2's weights


def load_model(path: str) -> SavedModel:
    """A checkpoint, or GPT-2: one of PUBLISHED, or a folder with its weights. Raises UserError."""
    place = Path(os.path.expanduser(path))  # unlike Path's, it accepts an unknown user
    if place.is_dir():
        checkpoints = sorted(map(str, place.glob("*.pt")))
        if not (place / "config.json").exists():
            hint = (
                f"it has {listed(checkpoints)}" if checkpoints else "name a checkpoint, a .pt file"
            )
            raise UserError(f"{place} is a folder without GPT-2's config.json; {hint}")
        return load_gpt2(place)
    if path in PUBLISHED and not place.exists():
        return load_gpt2(download(path))
    return checkpoint.load(place)


def download(name: str) -> Path:
    """The folder of a published GPT-2, downloaded once. Raises UserError."""
    hub = optional_package("huggingface_hub")
    patterns = ["config.json", "model.safetensors"]
    try:
        return Path(hub.snapshot_download(f"openai-community/{name}", allow_patterns=patterns))
    except Exception as error:  # no network, no space, server trouble: many kinds of failure
        raise UserError(
            f"can't download {name} from huggingface.co ({type(error).__name__});"
            " instead of the name, a folder with its config.json and model.safetensors works too"
        ) from None


def load_gpt2(folder: Path) -> SavedModel:
    """GPT-2 from a folder with config.json and model.safetensors. Raises UserError."""
    config, expected = read_gpt2_config(folder / "config.json")
    path = folder / "model.safetensors"
    saved = read_gpt2_weights(path)

    weights, read = {}, set()
    for name, parameter in expected.items():
        tied = name == "head.weight" and config.tie_embeddings
        [theirs] = their_names("token_embedding.weight" if tied else name, GPT2_MODULES)
        if theirs not in saved:
            raise UserError(f"{path} lacks {theirs}")
        if not saved[theirs].is_floating_point():
            raise UserError(f"{path}: {theirs} is quantized ({saved[theirs].dtype}), not a float")
        read.add(theirs)
        weights[name] = transposed(name, saved[theirs].float(), GPT2_MODULES)
        if weights[name].shape != parameter.shape:
            shape = tuple(saved[theirs].shape)
            raise UserError(f"{path}: the shape of {theirs}, {shape}, contradicts config.json")

    # OpenAI's logits lie far below 0, where bfloat16 is coarse. Without the head's mean row, all
    # logits of a position shift by the same amount, which a softmax ignores. A tied embedding loses
    # that row too, so the position embedding gets it.
    mean = weights["head.weight"].mean(0)
    weights["head.weight"] = weights["head.weight"] - mean
    if config.tie_embeddings:
        weights["token_embedding.weight"] = weights["head.weight"]
        weights["position_embedding.weight"] = weights["position_embedding.weight"] + mean

    constants = (".attn.bias", ".attn.masked_bias", "lm_head.weight")  # masks, and the tied head
    surplus = sorted(name for name in saved.keys() - read if not name.endswith(constants))
    if surplus:
        raise UserError(f"{path} has weights that config.json does not describe: {surplus[0]}")
    check_gpt2_tokens(folder)
    return SavedModel(weights, vars(config), {"kind": "bpe"})


def check_gpt2_tokens(folder: Path) -> None:
    """Raises UserError if the folder has a vocabulary of 50,257 other tokens."""
    ours = None
    for name, keys in (("vocab.json", ()), ("tokenizer.json", ("model", "vocab"))):
        path = folder / name
        if not path.exists():
            continue
        ours = ours or gpt2_bpe.read()[0]
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
            for key in keys:
                theirs = theirs[key]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"can't read {path}: {one_line(error)}") from None
        if theirs != ours:
            raise UserError(f"{path} has other tokens than OpenAI's GPT-2, which is needed here")


def read_gpt2_config(path: Path) -> tuple[GPTConfig, dict[str, torch.Tensor]]:
    """The architecture in a config.json, and its parameters' names and shapes, without memory.

    Raises UserError if it is not GPT-2's.
    """
    try:
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for name, wanted in GPT2_FIXED.items():
            default = None if name == "model_type" else wanted
            if (value := theirs.get(name, default)) != wanted:
                raise UserError(f"{path} has {name} {value!r}; GPT-2 has {wanted!r}")
        sizes = {ours: theirs[name] for ours, name in GPT2_SIZES.items() if name != "n_inner"}
        width = theirs.get("n_inner")  # null or missing: 4 n_embd, as in our d_ff
        tied = theirs.get("tie_word_embeddings", True)
        config = GPTConfig(**sizes, d_ff=width, **GPT2_ARCHITECTURE, bias=True, tie_embeddings=tied)
        with torch.device("meta"):
            expected = GPT(config).state_dict()
    except OSError as error:
        raise UserError(f"can't read {path}: {error.strerror}") from None
    except KeyError as error:
        raise UserError(f"{path} does not describe a GPT-2: it lacks {error.args[0]}") from None
    except (ValueError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f"{path} does not describe a GPT-2: {one_line(error)}") from None
    if config.vocab_size != VOCAB_SIZE:
        raise UserError(f"{path} has {config.vocab_size} tokens; GPT-2 has {VOCAB_SIZE}")
    return config, expected


def read_gpt2_weights(path: Path) -> dict[str, torch.Tensor]:
    """The weights in a model.safetensors, by their names in transformers. Raises UserError."""
    safetensors = optional_package("safetensors.torch")
    try:
        saved = safetensors.load_file(path)
    except Exception as error:  # a missing, foreign or damaged file can fail in many ways
        raise UserError(f"can't read {path}: {one_line(error)}") from None
    # OpenAI's files have h.0.ln_1.weight for transformer.h.0.ln_1.weight
    prefixed = ("transformer.", "lm_head.")
    return {
        name if name.startswith(prefixed) else f"transformer.{name}": weight
        for name, weight in saved.items()
    }
