"""A GPT in one file: config, norm, positions, attention, MLP, block, model, sampling, losses.

CUDA graphs, at the end, make training and generation on a GPU faster.

Shapes: B sequences, T positions, C = d_model channels, H heads of D = C / H channels, V tokens in
the vocabulary.
"""

import gc
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

import torch
import torch.nn as nn
import torch.nn.functional as F

RMS_EPS = 1e-6
ROPE_BASE = 10_000.0


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
    conv_width: int = 1  # positions that a convolution before each sublayer spans; 1: none
    tie_embeddings: bool = True  # one matrix for the token embedding and the output head
    bias: bool = False  # biases in linear layers and layernorms, as in GPT-2

    def __post_init__(self):
        if problems := self.problems():
            raise ValueError("\n".join(problems))

    def problems(self) -> list[str]:
        """Every reason why this config can't be built, one sentence each."""
        found = []
        sizes = ("vocab_size", "block_size", "n_layers", "n_heads", "d_model", "d_ff", "conv_width")
        for name in sizes:
            value = getattr(self, name)
            if value is not None and value < 1:
                found.append(f"{name} must be at least 1, not {value}")
        for name, hint in get_type_hints(type(self)).items():
            value, choices = getattr(self, name), get_args(hint)
            if get_origin(hint) is Literal and value not in choices:
                found.append(f"{name} must be {' or '.join(choices)}, not {value!r}")
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
        if self.mlp_type == "swiglu":  # three matrices, not two: 2/3 of the width, a multiple of 32
            return 32 * max(1, round(self.d_model * 8 / 3 / 32))
        return 4 * self.d_model


def count_parameters(config: GPTConfig) -> int:
    """Number of parameters of GPT(config), by arithmetic alone."""
    C, W = config.d_model, config.mlp_width
    bias = 1 if config.bias else 0
    norm = {"rmsnorm": C, "layernorm": C + bias * C, "none": 0}[config.norm_type]

    qkv = 3 * (C * C + bias * C)
    out = C * C + bias * C
    qk_norm = 2 * config.head_dim if config.qk_norm else 0
    conv = 2 * (config.conv_width - 1) * C
    up = (2 if config.mlp_type == "swiglu" else 1) * (C * W + bias * W)
    down = W * C + bias * C
    block = norm + qkv + qk_norm + out + norm + up + down + conv

    tokens = config.vocab_size * C
    positions = config.block_size * C if config.pos_type == "learned" else 0
    head = 0 if config.tie_embeddings else tokens
    final_norm = norm if config.norm_position == "pre" else 0
    return tokens + positions + config.n_layers * block + final_norm + head


def flops_per_token(config: GPTConfig) -> float:
    """Floating-point operations to train on one token: 6 per parameter, embeddings included, and
    those of attention (Chowdhery et al., 2022, arXiv:2204.02311, appendix B)."""
    attention = 12 * config.n_layers * config.d_model * config.block_size
    return 6.0 * count_parameters(config) + attention


# -------------------------------------------------------------------------------------------------
# the parts of a block


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, in float32 (Zhang and Sennrich, 2019,
    arXiv:1910.07467).
    """

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x):
        weight = self.weight.float()
        return F.rms_norm(x.float(), weight.shape, weight, RMS_EPS).type_as(x)


def build_norm(config: GPTConfig) -> nn.Module:
    match config.norm_type:
        case "rmsnorm":
            return RMSNorm(config.d_model)
        case "layernorm":
            return nn.LayerNorm(config.d_model, bias=config.bias)
        case "none":
            return nn.Identity()


class Dropout(nn.Module):
    """nn.Dropout, but on a CPU its random numbers are bytes: rates are multiples of 1/256.

    PyTorch draws a float for each activation, which takes a fifth of a training step.
    """

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x):
        if not x.is_cpu or not self.training or not self.rate:
            return F.dropout(x, self.rate, self.training)
        dropped = max(1, min(round(256 * self.rate), 255))  # of a byte's 256 values
        words = torch.empty(x.numel() // 8 + 1, dtype=torch.int64).random_(-(2**63), None)
        random_bytes = words.view(torch.uint8)[: x.numel()].view_as(x)
        return x * (random_bytes >= dropped).to(x.dtype) * (256 / (256 - dropped))


def rope_tables(block_size: int, head_dim: int):
    """cos and sin of every position's angles, each (block_size, D / 2) (Su et al., 2021,
    arXiv:2104.09864)."""
    frequencies = ROPE_BASE ** (-torch.arange(0, head_dim, 2).float() / head_dim)
    angles = torch.outer(torch.arange(block_size).float(), frequencies)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Rotates each pair of channels (i, i + D/2) of x (B, H, T, D) by its angle at each position.

    cos, sin: (T, D / 2).
    """
    x1, x2 = x.chunk(2, dim=-1)
    return torch.cat((x1 * cos - x2 * sin, x2 * cos + x1 * sin), dim=-1)


def attend(q, k, v, mask=None):
    """Causal attention, softmax(q k^T / sqrt(D)) v.

    q (B, H, T, D), k and v (B, H, S, D) -> (B, H, T, D). T is S, or 1 when generating with a cache;
    then the query sees all S positions except those where mask (1, S), if given, is -inf.
    """
    if q.is_cpu and q.dtype == torch.bfloat16 and q.size(2) > 1:
        return attend_on_cpu_in_bfloat16(q, k, v)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=q.size(2) > 1)


def attend_on_cpu_in_bfloat16(q, k, v):
    """attend() written out for T = S: PyTorch's kernel is 2 to 8 times slower here."""
    T, D = q.size(2), q.size(3)
    mask = torch.full((T, T), -math.inf, dtype=q.dtype).triu(1)
    scores = torch.baddbmm(mask, q.flatten(0, 1), k.flatten(0, 1).mT, alpha=1 / math.sqrt(D))
    return (scores.softmax(-1) @ v.flatten(0, 1)).view_as(q)


class KVCache:
    """Keys and values of the positions seen so far, for every layer, in memory allocated once.

    It also keeps the last inputs of each sublayer, which the short convolutions need.
    """

    def __init__(
        self, config: GPTConfig, batch_size: int, device: torch.device, dtype: torch.dtype
    ):
        shape = (config.n_layers, batch_size, config.n_heads, config.block_size, config.head_dim)
        self.keys = torch.empty(shape, device=device, dtype=dtype)
        self.values = torch.empty(shape, device=device, dtype=dtype)
        self.inputs = {}  # (B, conv_width - 1, C) by ShortConv
        self.length = 0  # positions filled; GPT.forward advances it after the last layer

    def clear(self) -> None:
        self.length = 0
        for inputs in self.inputs.values():
            inputs.zero_()

    def positions(self, T: int):
        """Where the next T positions belong: a slice; in a GraphCache, a tensor of one index."""
        return slice(self.length, self.length + T)

    def append(self, layer: int, k, v):
        """Stores the newest positions (B, H, T, D).

        Returns all keys and values (B, H, length + T, D), and a mask for attend().
        """
        new = self.positions(k.size(2))
        self.keys[layer, :, :, new] = k
        self.values[layer, :, :, new] = v
        return self.keys[layer, :, :, : new.stop], self.values[layer, :, :, : new.stop], None


class ShortConv(nn.Module):
    """Adds to each position of x (B, T, C) the width - 1 before it, each times a learned gain per
    channel.

    A causal depthwise convolution with a residual, as in the Canon layers of Allen-Zhu, 2025,
    arXiv:2512.17351. The gains start at 0.
    """

    def __init__(self, width: int, channels: int):
        super().__init__()
        if width > 1:
            self.weight = nn.Parameter(torch.zeros(width - 1, channels))
        self.past = width - 1

    def forward(self, x, cache: KVCache | None = None):
        T, past = x.size(1), self.past
        if not past:
            return x
        if cache is None:
            x = F.pad(x, (0, 0, past, 0))  # zeros before the first position
        else:
            if self not in cache.inputs:
                cache.inputs[self] = x.new_zeros(x.size(0), past, x.size(2))
            x = torch.cat((cache.inputs[self], x), dim=1)
            cache.inputs[self].copy_(x[:, -past:])
        y = x[:, past:]
        for i, gain in enumerate(self.weight, start=1):
            y = y + gain * x[:, past - i : past - i + T]
        return y


class Attention(nn.Module):
    """Causal multi-head self-attention.

    Dropout is applied to the output only: on the attention weights it would make attention four
    times slower on a CPU.
    """

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.n_heads, self.head_dim = layer, config.n_heads, config.head_dim
        self.conv = ShortConv(config.conv_width, config.d_model)
        self.qkv = nn.Linear(config.d_model, 3 * config.d_model, bias=config.bias)
        self.q_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(config.head_dim) if config.qk_norm else nn.Identity()
        self.out = nn.Linear(config.d_model, config.d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x, rope=None, cache=None):
        B, T, C = x.shape
        x = self.conv(x, cache)
        # (B, T, 3 C) -> q, k and v, each (B, H, T, D)
        q, k, v = self.qkv(x).view(B, T, 3, self.n_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k = self.q_norm(q.float()), self.k_norm(k.float())  # in float32
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        q, k = q.type_as(v), k.type_as(v)
        mask = None
        if cache is not None:
            k, v, mask = cache.append(self.layer, k, v)
        y = attend(q, k, v, mask).transpose(1, 2).reshape(B, T, C)
        return self.dropout(self.out(y))


class MLP(nn.Module):
    """up -> nonlinearity -> down, at each position independently, except for the convolution."""

    def __init__(self, config: GPTConfig):
        super().__init__()
        self.kind = config.mlp_type
        self.conv = ShortConv(config.conv_width, config.d_model)
        width = config.mlp_width * (2 if self.kind == "swiglu" else 1)  # swiglu: gate and value
        self.up = nn.Linear(config.d_model, width, bias=config.bias)
        self.down = nn.Linear(config.mlp_width, config.d_model, bias=config.bias)
        self.dropout = Dropout(config.dropout)

    def forward(self, x, cache=None):
        h = self.up(self.conv(x, cache))
        match self.kind:
            case "swiglu":  # Shazeer, 2020, arXiv:2002.05202
                gate, value = h.chunk(2, dim=-1)
                h = F.silu(gate) * value
            case "gelu":  # GPT-2's tanh approximation
                h = F.gelu(h, approximate="tanh")
            case "relu2":  # So et al., 2021, arXiv:2109.08668
                h = F.relu(h).square()
        return self.dropout(self.down(h))


class Block(nn.Module):
    """Attention, then the MLP; each adds to the residual stream x."""

    def __init__(self, config: GPTConfig, layer: int):
        super().__init__()
        self.pre_norm = config.norm_position == "pre"
        self.attn_norm, self.attn = build_norm(config), Attention(config, layer)
        self.mlp_norm, self.mlp = build_norm(config), MLP(config)

    def forward(self, x, rope=None, cache=None):
        """x (B, T, C) -> (B, T, C). rope: cos and sin, each (T, D / 2); cache: see KVCache."""
        if self.pre_norm:
            x = x + self.attn(self.attn_norm(x), rope, cache)
            return x + self.mlp(self.mlp_norm(x), cache)
        x = self.attn_norm(x + self.attn(x, rope, cache))
        return self.mlp_norm(x + self.mlp(x, cache))


# -------------------------------------------------------------------------------------------------
# the model


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
        self.dropout = Dropout(config.dropout)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.final_norm = build_norm(config) if config.norm_position == "pre" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.token_embedding.weight
        self.init_weights()

    @torch.no_grad()
    def init_weights(self):
        """As in GPT-2: normal(0.02), scaled by 1/sqrt(2 n_layers) for the layers that write to the
        residual stream, so that its variance at the end does not depend on the depth.

        Norms keep the weights that their constructors gave them.
        """
        for name, parameter in self.named_parameters():
            if "norm." in name:
                continue
            elif name.endswith(("bias", "conv.weight")):
                nn.init.zeros_(parameter)
            elif name.endswith(("attn.out.weight", "mlp.down.weight")):
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * self.config.n_layers))
            elif name.endswith(("embedding.weight", "qkv.weight", "up.weight", "head.weight")):
                nn.init.normal_(parameter, std=0.02)
            else:
                raise ValueError(f"init_weights does not know the parameter {name}")

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """All parameters, grouped by how an optimizer treats them."""
        groups = {"matrices": [], "embeddings": [], "gains and biases": []}
        for name, parameter in self.named_parameters():
            if name.endswith(("embedding.weight", "head.weight")):
                groups["embeddings"].append(parameter)
            elif "norm." in name or name.endswith(("bias", "conv.weight")):
                groups["gains and biases"].append(parameter)
            else:
                groups["matrices"].append(parameter)
        return groups

    @property
    def device(self) -> torch.device:
        return self.token_embedding.weight.device

    def forward(self, idx, cache: KVCache | None = None, last_only: bool = False):
        """idx (B, T) -> logits (B, T, V), or (B, V) of the last position only.

        With a cache, idx continues the cached positions: an empty cache takes any number of them, a
        filled one takes one at a time. Raises ValueError if a filled one gets several, or if there
        are more than block_size positions.
        """
        start = cache.length if cache is not None else 0
        end = start + idx.size(1)
        if end > self.config.block_size:
            raise ValueError(f"{end} positions exceed block_size {self.config.block_size}")
        if start and idx.size(1) > 1:
            raise ValueError("a filled cache takes one position at a time")
        positions = slice(0, end) if cache is None else cache.positions(idx.size(1))
        x = self.token_embedding(idx)
        rope = None
        if self.config.pos_type == "learned":
            x = x + self.position_embedding.weight[positions]
        elif self.config.pos_type == "rope":
            rope = self.cos[positions], self.sin[positions]
        x = self.dropout(x)
        for block in self.blocks:
            x = block(x, rope, cache)
        if cache is not None:
            cache.length = end
        return self.head(self.final_norm(x[:, -1] if last_only else x))

    # ---------------------------------------------------------------------------------------------
    # generation

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
        """Continues idx (B, T), T >= 1: yields the next token of every sequence, (B, 1), as it is
        sampled.

        When the context is full its last half is encoded again, so the cost per token stays
        constant and every token sees at least half a context.
        """
        B, T = idx.shape
        block_size, dtype = self.config.block_size, self.token_embedding.weight.dtype
        tokens = torch.empty(B, T + max_new_tokens, dtype=idx.dtype, device=idx.device)
        tokens[:, :T] = idx
        cache, graph = KVCache(self.config, B, idx.device, dtype), None
        if idx.is_cuda and idx.device.index == torch.cuda.current_device():
            graph, graph_cache = Graph(generator), GraphCache(cache)

        def next_token(new, cache):
            logits = self(new, cache, last_only=True)
            return sample_token(logits, temperature, top_k, top_p, generator)

        def next_token_at(position, token):
            graph_cache.move_to(position)
            return next_token(token, graph_cache)

        start = max(0, T - block_size)  # first token that is not in the cache yet
        for end in range(T, T + max_new_tokens):
            if cache.length + end - start > block_size:
                cache.clear()
                start = end - max(1, block_size // 2)
            new = tokens[:, start:end]
            if graph and cache.length:
                position = torch.full((1,), cache.length, device=idx.device)
                tokens[:, end] = graph(next_token_at, position, new)
                cache.length += 1
            else:
                tokens[:, end] = next_token(new, cache)
            start = end
            yield tokens[:, end : end + 1]

    def generate(self, idx, max_new_tokens: int, **sampling) -> torch.Tensor:
        """idx (B, T) with max_new_tokens more, (B, T + max_new_tokens); `sampling` as in stream."""
        return torch.cat([idx, *self.stream(idx, max_new_tokens, **sampling)], dim=1)


# -------------------------------------------------------------------------------------------------
# sampling, and losses


def sample_token(logits, temperature=1.0, top_k=None, top_p=None, generator=None):
    """Samples a token (B,) from logits (B, V).

    temperature 0, or nearly 0, takes the most likely token; top_k keeps the k most likely ones;
    top_p keeps the smallest set of at least that probability (Holtzman et al., 2020,
    arXiv:1904.09751).
    """
    if temperature < 1e-6:
        return logits.argmax(-1)
    logits = logits.float() / temperature
    if top_k is not None and top_k < logits.size(-1):
        values, indices = logits.topk(top_k)  # exactly k, even with ties
        logits = torch.full_like(logits, -math.inf).scatter(-1, indices, values)
    if top_p is not None and top_p < 1:
        values, indices = logits.sort(descending=True)
        probs = values.softmax(-1)
        outside = probs.cumsum(-1) - probs >= top_p
        outside[..., 0] = False  # keep the first even if top_p rounds to 0 in float32
        logits = logits.masked_fill(outside.scatter(-1, indices, outside), -math.inf)
    return torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)


def next_token_loss(logits, ids, reduction: str = "mean"):
    """Cross-entropy in nats of each token of ids (B, T + 1) but the first, given logits (B, T, V).

    reduction: "mean" or "sum" over all tokens, or "none" for a loss of each, (B T,).
    """
    return F.cross_entropy(logits.float().flatten(0, 1), ids[:, 1:].flatten(), reduction=reduction)


def entropy(logits):
    """Mean entropy in nats of the predicted distributions, given logits (B, T, V)."""
    log_p = logits.float().log_softmax(-1)
    return -(log_p.exp() * log_p).sum(-1).mean()


# -------------------------------------------------------------------------------------------------
# CUDA graphs, which make training and generation on a GPU faster


class Graph:
    """Calls a function of tensors on the current GPU, from the fourth call on as a CUDA graph.

    A graph launches all kernels at once: launching them one by one takes longer than the kernels of
    a small model. Each call passes the same function, and tensors of the same shapes; nothing but
    these tensors and random numbers may differ between calls. The function must not wait for the
    GPU. A call overwrites the results of the one before.
    """

    EAGER_CALLS = 3  # these compile, load kernels and allocate the states of optimizers

    def __init__(self, generator: torch.Generator | None = None):
        """generator: from which the function draws random numbers, if not PyTorch's default."""
        self.generator, self.calls, self.graph = generator, 0, None

    def __call__(self, function: Callable, *tensors: torch.Tensor):
        self.calls += 1
        if self.calls <= self.EAGER_CALLS:
            return function(*tensors)
        if self.graph is None:
            self.record(function, tensors)
        for memory, tensor in zip(self.inputs, tensors):
            memory.copy_(tensor)
        self.graph.replay()
        return self.results

    def record(self, function: Callable, tensors: tuple[torch.Tensor, ...]) -> None:
        gc.collect()  # garbage may hold another graph, and freeing it would break the recording
        graph, self.inputs = torch.cuda.CUDAGraph(), [tensor.clone() for tensor in tensors]
        if self.generator is not None and torch.__version__ < (2, 14):  # later it does so itself
            graph.register_generator_state(self.generator)
        with torch.cuda.graph(graph):
            self.results = function(*self.inputs)
        self.graph = graph


class GraphCache(KVCache):
    """A KVCache as a CUDA graph sees it, which repeats the same operations on the same memory.

    The position is a tensor, and attention reads all of the memory, with a mask.
    """

    def __init__(self, cache: KVCache):
        self.keys, self.values, self.inputs = cache.keys, cache.values, cache.inputs
        for memory in (self.keys, self.values):
            memory.zero_()  # masked positions are read too: they must not be nan
        self.all_positions = torch.arange(cache.keys.size(3), device=cache.keys.device)

    def move_to(self, position) -> None:
        """Prepares for a token at this position, an int64 tensor (1,)."""
        self.length, self.position = 0, position  # GPT.forward's checks can't see a tensor's value
        mask = torch.zeros_like(self.all_positions, dtype=self.keys.dtype)
        self.mask = mask.masked_fill(self.all_positions > position, -math.inf).unsqueeze(0)

    def positions(self, T: int):
        return self.position

    def append(self, layer: int, k, v):
        keys, values = self.keys[layer], self.values[layer]
        keys.index_copy_(2, self.position, k)
        values.index_copy_(2, self.position, v)
        return keys, values, self.mask
