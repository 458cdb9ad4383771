"""A GPT in one file: norm, attention, MLP, block, model, generation.

Shapes: B sequences, T positions, C = d_model channels, H heads of D = C / H channels, V = vocab_size.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass(frozen=True)
class GPTConfig:
    """The architecture: equal configs give parameters of equal names and shapes."""

    vocab_size: int | None = None  # number of different tokens, from the dataset's meta.json
    block_size: int = 256  # longest context, in tokens
    n_layers: int = 6  # transformer blocks
    n_heads: int = 6  # attention heads per block
    d_model: int = 384  # width of the residual stream
    d_ff: int | None = None  # width inside the MLP; none: 4 d_model, or 8/3 d_model for swiglu
    dropout: float = 0.0  # fraction of activations zeroed after the embedding and each sublayer
    norm_type: Literal["rmsnorm", "layernorm", "none"] = "rmsnorm"  # kind of normalization
    norm_position: Literal["pre", "post"] = "pre"  # pre: x + f(norm(x)); post: norm(x + f(x))
    pos_type: Literal["rope", "learned", "none"] = "rope"  # how positions are encoded
    mlp_type: Literal["swiglu", "gelu", "relu2"] = "swiglu"  # nonlinearity of the MLP
    qk_norm: bool = True  # RMSNorm on each head's queries and keys: attention logits stay bounded
    tie_embeddings: bool = True  # one matrix for the token embedding and the output head
    bias: bool = False  # biases in linear layers and layernorms, as in GPT-2

    def __post_init__(self):
        if problems := self.problems():
            raise ValueError("\n".join(problems))

    def problems(self) -> list[str]:
        """Every reason why this config can't be built, one sentence each."""
        found = [
            f"{name} must be at least 1, not {value}"
            for name in ("vocab_size", "block_size", "n_layers", "n_heads", "d_model", "d_ff")
            if (value := getattr(self, name)) is not None and value < 1
        ]
        for name, hint in get_type_hints(type(self)).items():
            if get_origin(hint) is Literal and getattr(self, name) not in get_args(hint):
                found.append(
                    f"{name} must be {' or '.join(get_args(hint))}, not {getattr(self, name)!r}"
                )
        if not 0 <= self.dropout < 1:
            found.append(f"dropout must lie in [0, 1), not {self.dropout}")
        if not found and self.d_model % self.n_heads:
            found.append(f"d_model ({self.d_model}) must be a multiple of n_heads ({self.n_heads})")
        elif not found and self.pos_type == "rope" and self.head_dim % 2:
            found.append(f"pos_type=rope needs an even d_model / n_heads, not {self.head_dim}")
        return found

    @property
    def head_dim(self) -> int:
        return self.d_model // self.n_heads

    @property
    def mlp_width(self) -> int:
        if self.d_ff is not None:
            return self.d_ff
        if (
            self.mlp_type == "swiglu"
        ):  # three matrices instead of two: 2/3 of the width, in multiples of 32
            return 32 * max(1, round(self.d_model * 8 / 3 / 32))
        return 4 * self.d_model


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters of GPT(config), by arithmetic alone."""
    C, W, V = config.d_model, config.mlp_width, config.vocab_size
    norm = {"rmsnorm": C, "layernorm": C * (1 + config.bias), "none": 0}[config.norm_type]
    attention = 4 * C * C + 4 * C * config.bias + 2 * config.head_dim * config.qk_norm
    up = W * (1 + (config.mlp_type == "swiglu"))
    mlp = (C + config.bias) * up + W * C + C * config.bias
    block = attention + mlp + 2 * norm
    embeddings = V * C * (2 - config.tie_embeddings) + config.block_size * C * (
        config.pos_type == "learned"
    )
    return embeddings + config.n_layers * block + norm * (config.norm_position == "pre")


class RMSNorm(nn.Module):
    """x / rms(x) * weight, in float32, over the last dimension (Zhang and Sennrich, 2019, arXiv:1910.07467).

    Written out, because the backward pass of F.rms_norm takes longer on a CPU; and so does that of a broadcast weight,
    which is spread over the heads first.
    """

    def __init__(self, *shape: int, eps: float = 1e-6):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.eps = eps

    def forward(self, x):
        h = x.float()
        mean_square = torch.linalg.vecdot(h, h).unsqueeze(-1) / h.size(-1)
        weight = self.weight.expand(x.shape[-self.weight.dim() :])
        return (h * torch.rsqrt(mean_square + self.eps) * weight).type_as(x)


def build_norm(config: GPTConfig) -> nn.Module:
    match config.norm_type:
        case "rmsnorm":
            return RMSNorm(config.d_model)
        case "layernorm":
            return nn.LayerNorm(config.d_model, bias=config.bias)
        case "none":
            return nn.Identity()


def rope_tables(
    block_size: int, head_dim: int, base: float = 10_000.0
) -> tuple[torch.Tensor, torch.Tensor]:
    """What `rotate` takes, each (block_size, head_dim): cos and -sin, sin of position times frequency
    (Su et al., 2021, arXiv:2104.09864)."""
    frequencies = base ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(block_size).float(), frequencies)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=1), torch.cat((-sin, sin), dim=1)


def rotate(x, cos, sin):
    """Rotates channel i of x (B, T, 2, H, D) together with channel i + D/2 by its position's angle ("rotate-half").

    cos, sin: (T, 1, 1, D).
    """
    return torch.addcmul(x * cos, x.roll(x.size(-1) // 2, dims=-1), sin)


def attend(q, k, v):
    """softmax(q k^T / sqrt(D)) v, for the last T of the S positions in k and v; T is S or 1.

    q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D).
    """
    (B, _, T, D), S = q.shape, k.size(2)
    if (
        q.is_cpu and q.dtype == torch.bfloat16 and B * T > 1
    ):  # PyTorch's kernel takes two to eight times as long there
        mask = torch.full((T, S), -math.inf, dtype=q.dtype).triu(1 + S - T)
        scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(D))
        return (scores.softmax(-1) @ v.flatten(0, 1)).view_as(q)
    return F.scaled_dot_product_attention(
        q, k, v, is_causal=T > 1
    )  # one new token may see all that is cached


class KVCache:
    """Keys and values of the positions seen so far, for every layer, in memory allocated once."""

    def __init__(
        self, config: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype
    ):
        shape = (config.n_layers, batch_size, config.n_heads, config.block_size, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.length = 0  # positions filled; GPT.forward moves it on when all layers are through

    def append(self, layer: int, k, v):
        """Takes (B, H, T, D) of the newest positions, gives (B, H, length + T, D) of all."""
        end = self.length + k.size(2)
        self.keys[layer, :, :, self.length : end] = k
        self.values[layer, :, :, self.length : end] = v
        return self.keys[layer, :, :, :end], self.values[layer, :, :, :end]


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Dropout falls on the output only: on the attention weights it would cost a CPU four times the attention.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.n_heads, self.head_dim = layer, config.n_heads, config.head_dim
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.qk_norm = (
            RMSNorm(2, 1, config.head_dim) if config.qk_norm else nn.Identity()
        )  # of each head by itself
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x, rope=None, cache=None):
        B, T, C = x.shape
        qk, v = self.qkv(x).view(B, T, 3, self.n_heads, self.head_dim).split((2, 1), dim=2)
        qk = self.qk_norm(qk.float())
        if rope is not None:
            qk = rotate(qk, *rope)
        q, k = qk.type_as(v).unbind(2)
        q, k, v = (
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.squeeze(2).transpose(1, 2),
        )  # each (B, H, T, D)
        if cache is not None:
            k, v = cache.append(self.layer, k, v)
        y = attend(q, k, v).transpose(1, 2).reshape(B, T, C)
        return self.dropout(self.out(y))


class MLP(nn.Module):
    """up -> nonlinearity -> down, at each position by itself."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp_type
        up = config.mlp_width * (
            2 if self.kind == "swiglu" else 1
        )  # swiglu: gate and value side by side
        self.up = nn.Linear(config.d_model, up, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x):
        h = self.up(x)
        match self.kind:
            case "swiglu":  # Shazeer, 2020, arXiv:2002.05202
                gate, value = h.chunk(2, dim=-1)
                h = F.silu(gate) * value
            case "gelu":  # the tanh form is GPT-2's
                h = F.gelu(h, approximate="tanh")
            case "relu2":  # So et al., 2021, arXiv:2109.08668
                h = F.relu(h).square()
        return self.dropout(self.down(h))


class Block(nn.Module):
    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attn_norm, self.attn = build_norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = build_norm(config), MLP(config)

    def forward(self, x, rope=None, cache=None):
        if self.pre_norm:
            x = x + self.attn(self.attn_norm(x), rope, cache)
            return x + self.mlp(self.mlp_norm(x))
        x = self.attn_norm(x + self.attn(x, rope, cache))
        return self.mlp_norm(x + self.mlp(x))


class GPT(nn.Module):
    """Decoder-only transformer: idx (B, T) int64 -> logits (B, T, V)."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("vocab_size is not set")
        self.config = config
        self.token_embedding = nn.Embedding(config.vocab_size, config.d_model)
        if config.pos_type == "learned":
            self.position_embedding = nn.Embedding(config.block_size, config.d_model)
        elif config.pos_type == "rope":
            cos, sin = rope_tables(config.block_size, config.head_dim)
            self.register_buffer("cos", cos, persistent=False)
            self.register_buffer("sin", sin, persistent=False)
        self.dropout = nn.Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """GPT-2's: normal(0.02), and 1/sqrt(2 n_layers) of it where a sublayer writes to the residual stream,
        so that the stream's variance at the end does not depend on the depth."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif name.endswith("norm.weight"):
                nn.init.ones_(parameter)
            elif name.endswith(("attn.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layers))
            elif name.endswith(
                ("embedding.weight", "attn.qkv.weight", "mlp.up.weight", "head.weight")
            ):
                nn.init.normal_(parameter, std=0.02)
            else:
                raise ValueError(f"init_weights does not know the parameter {name}")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Each parameter exactly once, by its part: what an optimizer treats alike."""
        groups = {"matrices": [], "embeddings": [], "gains and biases": []}
        for name, parameter in self.named_parameters():
            if name.endswith(("embedding.weight", "head.weight")):
                groups["embeddings"].append(parameter)
            elif name.endswith(("norm.weight", "bias")):
                groups["gains and biases"].append(parameter)
            else:
                groups["matrices"].append(parameter)
        return groups

    def forward(self, idx, cache: KVCache | None = None):
        """Logits (B, T, V) of idx (B, T); with a cache, idx follows the positions that are in it.

        A filled cache takes one token at a time; T > 1 starts an empty one.
        """
        start = cache.length if cache else 0
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} positions do not fit into block_size {self.config.block_size}")
        x = self.token_embedding(idx)
        rope = None
        if self.config.pos_type == "learned":
            x = x + self.position_embedding.weight[start:end]
        elif self.config.pos_type == "rope":
            rope = self.cos[start:end, None, None], self.sin[start:end, None, None]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rope, cache)
        if cache:
            cache.length = end
        return self.head(self.final_norm(x))

    @torch.inference_mode()
    def stream(
        self,
        idx,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Iterator[torch.Tensor]:
        """Goes on with idx (B, T), T >= 1, yielding the next token of every sequence, (B, 1), as it is drawn.

        When the window of block_size is full, its last half goes through the model again: the cost of a token
        stays flat, and no token sees less than half a window.
        """
        B, T = idx.shape
        block_size, dtype = self.config.block_size, self.token_embedding.weight.dtype
        tokens = torch.empty(B, T + max_new_tokens, dtype=idx.dtype, device=idx.device)
        tokens[:, :T] = idx
        cache = KVCache(self.config, B, idx.device, dtype)
        start = max(0, T - block_size)  # of the tokens the model has not seen yet
        for end in range(T, T + max_new_tokens):
            if cache.length + end - start > block_size:
                cache.length, start = 0, end - max(1, block_size // 2)
            logits = self(tokens[:, start:end], cache)[:, -1]
            tokens[:, end] = choose(logits, temperature, top_k, top_p, generator)
            start = end
            yield tokens[:, end : end + 1]

    def generate(self, idx, max_new_tokens: int, **sampling) -> torch.Tensor:
        """idx (B, T) and max_new_tokens more, (B, T + max_new_tokens); `sampling` as in stream."""
        return torch.cat([idx, *self.stream(idx, max_new_tokens, **sampling)], dim=1)


def choose(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Draws a token (B,) from logits (B, V). temperature 0, or nearly, takes the likeliest; top_k keeps the k likeliest;
    top_p keeps the smallest set with at least that probability (Holtzman et al., 2020, arXiv:1904.09751)."""
    if temperature < 1e-6:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.size(-1):
        likeliest, places = logits.topk(top_k)  # exactly k of them, whatever ties there are
        logits = torch.full_like(logits, -math.inf).scatter(-1, places, likeliest)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(descending=True)
        probs = ordered.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p  # the likeliest token always stays
        logits = logits.masked_fill(outside.scatter(-1, order, outside), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
