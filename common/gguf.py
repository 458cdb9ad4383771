"""GGUF, the file format of llama.cpp: a model and its tokenizer in one file.

Written with the package `gguf`. Its names of parameters and settings are llama.cpp's.
"""

from pathlib import Path

import torch

from common.cli import optional_package
from common.gpt2 import GPT2_FIXED, renamed
from common.tokenizer import BPETokenizer, Tokenizer, find_end_id
from model import GPT, RMS_EPS, ROPE_BASE

NAMES = {
    "token_embedding": ["token_embd"],
    "blocks": ["blk"],
    "attn_norm": ["attn_norm"],
    "attn.qkv": ["attn_q", "attn_k", "attn_v"],
    "attn.q_norm": ["attn_q_norm"],
    "attn.k_norm": ["attn_k_norm"],
    "attn.out": ["attn_output"],
    "mlp_norm": ["ffn_norm"],
    "mlp.up": ["ffn_gate", "ffn_up"],
    "mlp.down": ["ffn_down"],
    "final_norm": ["output_norm"],
    "head": ["output"],
}
GPT2_NAMES = NAMES | {
    "position_embedding": ["position_embd"],
    "attn.qkv": ["attn_qkv"],
    "mlp.up": ["ffn_up"],
}


def write(
    path: Path, model: GPT, architecture: str, tokenizer: Tokenizer, bpe_model: dict, mark: dict
) -> None:
    """Writes the file. Raises UserError if the package is missing.

    architecture: one of export.ARCHITECTURES, whose parameters the model has.
    bpe_model: of a BPE, its "vocab" and "merges", as in tokenizer.json.
    mark: more strings for the metadata of the file, by name.
    """
    gguf, config = optional_package("gguf"), model.config
    writer = gguf.GGUFWriter(path, architecture.lower())
    for name, value in mark.items():
        writer.add_string(name, value)
    writer.add_context_length(config.block_size)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.mlp_width)
    writer.add_head_count(config.n_heads)
    if architecture == "GPT2":
        writer.add_layer_norm_eps(GPT2_FIXED["layer_norm_epsilon"])
    else:
        writer.add_layer_norm_rms_eps(RMS_EPS)
        writer.add_rope_freq_base(ROPE_BASE)
    add_tokenizer(writer, gguf.TokenType, tokenizer, bpe_model)
    for name, weight in find_weights(model, architecture).items():
        writer.add_tensor(name, weight.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer, types, tokenizer: Tokenizer, bpe_model: dict) -> None:
    """Adds the tokenizer: a BPE as "gpt2", characters and bytes as "rwkv".

    "rwkv" always takes the longest token that matches. llama.cpp's other tokenizers reserve an id
    for the end of the text, and here that id belongs to an ordinary character.
    """
    end_id = find_end_id(tokenizer)
    if isinstance(tokenizer, BPETokenizer):
        end_id = tokenizer.vocab_size - 1
        tokens = sorted(bpe_model["vocab"], key=bpe_model["vocab"].get)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("gpt-2")
        writer.add_token_merges(bpe_model["merges"])
        writer.add_token_types([types.NORMAL] * end_id + [types.CONTROL])
    else:
        texts = [bytes([i]) for i in range(256)]
        if tokenizer.kind == "char":
            texts = [character.encode() for character in tokenizer.characters]
        tokens = ["".join(f"\\x{byte:02x}" for byte in text) for text in texts]
        writer.add_tokenizer_model("rwkv")
        writer.add_token_types([types.NORMAL] * len(tokens))
    writer.add_token_list(tokens)
    writer.add_add_bos_token(False)
    if end_id is not None:
        writer.add_bos_token_id(end_id)
        writer.add_eos_token_id(end_id)


def find_weights(model: GPT, architecture: str) -> dict[str, torch.Tensor]:
    """The model's parameters by their names in llama.cpp."""
    if architecture == "GPT2":
        return renamed(model, GPT2_NAMES)
    weights = renamed(model, NAMES)
    if architecture == "Llama":  # there llama.cpp rotates neighbors: (0, 1), (2, 3), ...
        for name, weight in weights.items():
            if ".attn_q." in name or ".attn_k." in name:
                halves = weight.unflatten(0, (model.config.n_heads, 2, -1))
                weights[name] = halves.transpose(1, 2).flatten(0, 2).contiguous()
    return weights
