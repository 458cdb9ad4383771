import itertools
import math
import random
import typing
from dataclasses import replace

import pytest
import torch
from helpers import ROOT

from common.arguments import load_config
from config import SETTINGS
from model import (
    GPT,
    Dropout,
    GPTConfig,
    GraphCache,
    KVCache,
    RMSNorm,
    ShortConv,
    attend,
    count_parameters,
    entropy,
    flops_per_token,
    next_token_loss,
    rope_tables,
    rotate,
    sample_token,
)

SMALL = GPTConfig(vocab_size=17, block_size=16, n_layers=2, n_heads=2, d_model=16)

# every architecture, from GPTConfig itself: a new value there is tested without any change here
HINTS = typing.get_type_hints(GPTConfig)
CHOICES = {
    name: (True, False) if hint is bool else typing.get_args(hint)
    for name, hint in HINTS.items()
    if hint is bool or typing.get_origin(hint) is typing.Literal
}
ARCHITECTURES = [dict(zip(CHOICES, values)) for values in itertools.product(*CHOICES.values())]
KINDS = [{name: value} for name, values in CHOICES.items() for value in values]
KINDS = [kind for kind in KINDS if replace(SMALL, **kind) != SMALL] + ARCHITECTURES[::61]
KINDS += [{"conv_width": 2}, {"conv_width": 4, "norm_position": "post"}]


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def make(config: GPTConfig) -> GPT:
    """A model whose weights are large: at the initial scale all logits are near 0, and every
    comparison would pass. Norms have different gains."""
    torch.manual_seed(0)
    model = GPT(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm." in name:
                parameter.mul_(torch.empty_like(parameter).uniform_(0.5, 2))
            elif parameter.ndim == 2:
                parameter.normal_(std=0.3)
    return model


def tokens(*shape: int, vocab_size: int = 17) -> torch.Tensor:
    return torch.randint(vocab_size, shape, generator=seeded(1))


# the whole model


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_later_token_never_changes_an_earlier_logit(kind):
    model, idx = make(replace(SMALL, **kind)), tokens(2, 16)
    before = model(idx)
    idx[:, 9] = (idx[:, 9] + 1) % 17
    after = model(idx)
    assert torch.equal(before[:, :9], after[:, :9])
    changes = (before[:, 9:] - after[:, 9:]).abs().amax(-1)
    assert changes.min() > 1e-4  # every later logit depends on it


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_cached_logits_equal_uncached_ones(kind):
    config = replace(SMALL, **kind)
    model, idx = make(config), tokens(3, 16)
    cache = KVCache(config, 3, idx.device, torch.float32)
    logits = [model(idx[:, :5], cache)]
    logits += [model(idx[:, i : i + 1], cache) for i in range(5, 16)]
    assert torch.allclose(torch.cat(logits, 1), model(idx), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_tensor_as_position_in_the_cache_gives_the_same_logits(kind):
    config = replace(SMALL, **kind)
    model, idx = make(config), tokens(3, 16)
    cache = KVCache(config, 3, idx.device, torch.float32)
    graph_cache = GraphCache(cache)
    logits = [model(idx[:, :5], cache)]
    for i in range(5, 16):
        graph_cache.move_to(torch.tensor([i]))
        logits.append(model(idx[:, i : i + 1], graph_cache))
    assert torch.allclose(torch.cat(logits, 1), model(idx), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_parameter_has_a_gradient_and_one_group(kind):
    model = GPT(replace(SMALL, **kind))
    next_token_loss(model(tokens(4, 16)), tokens(4, 17)).backward()
    untrained = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert untrained == []
    groups = model.parameter_groups()
    grouped = [parameter for group in groups.values() for parameter in group]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert all(parameter.ndim == 2 for parameter in groups["matrices"])


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_one_window_can_be_memorized(kind):
    torch.manual_seed(0)
    model, ids = GPT(replace(SMALL, **kind)), tokens(1, 17)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = next_token_loss(model(ids[:, :-1]), ids)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.5 < math.log(17) - 1


def test_more_positions_than_block_size_are_refused():
    with pytest.raises(ValueError, match="17 positions exceed block_size 16"):
        make(SMALL)(tokens(1, 17))


def test_bfloat16_weights_predict_nearly_the_same():
    torch.manual_seed(0)
    model, idx = GPT(replace(SMALL, d_model=64)), tokens(4, 16)
    full = model(idx).log_softmax(-1)
    half = model.bfloat16()(idx).float().log_softmax(-1)
    assert (half - full).abs().max() < 0.02


# initial weights


# With tied embeddings the head favors the token that was just read, slightly off a uniform guess.
@pytest.mark.parametrize("tie_embeddings, tolerance", [(False, 0.15), (True, 0.25)])
def test_the_first_loss_is_near_that_of_guessing(tie_embeddings, tolerance):
    torch.manual_seed(0)
    model, ids = GPT(GPTConfig(65, tie_embeddings=tie_embeddings)), tokens(2, 257, vocab_size=65)
    loss = next_token_loss(model(ids[:, :-1]), ids)
    assert loss.item() == pytest.approx(math.log(65), abs=tolerance)


def test_the_residual_stream_starts_equally_large_at_any_depth():
    sizes = []

    def measure(module, args):
        sizes.append(args[0].std().item())

    for n_layers in (2, 24):
        torch.manual_seed(0)
        config = GPTConfig(65, n_layers=n_layers, d_model=128, n_heads=4, block_size=64)
        model = GPT(config)
        model.final_norm.register_forward_pre_hook(measure)
        model(tokens(2, 64, vocab_size=65))
    assert sizes[1] / sizes[0] == pytest.approx(1, abs=0.35)


def test_init_weights_keeps_the_weights_of_norms():
    model = GPT(SMALL)
    norms = [parameter for name, parameter in model.named_parameters() if "norm." in name]
    for parameter in norms:
        torch.nn.init.constant_(parameter, 4.0)
    model.init_weights()
    assert len(norms) == 9
    assert all((parameter == 4).all() for parameter in norms)


def test_init_weights_refuses_a_parameter_that_it_does_not_know():
    model = GPT(SMALL)
    model.extra = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(ValueError, match="init_weights does not know the parameter extra"):
        model.init_weights()


# sizes


def test_count_parameters_equals_the_built_model():
    rng = random.Random(0)
    for kind in ARCHITECTURES[::7]:
        n_heads = rng.randint(1, 3)
        config = GPTConfig(
            vocab_size=rng.randint(2, 300),
            block_size=rng.randint(1, 64),
            n_layers=rng.randint(1, 2),
            n_heads=n_heads,
            d_model=n_heads * rng.choice([2, 8, 18]),
            d_ff=rng.choice([None, 24, 33]),
            conv_width=rng.choice([1, 4]),
            **kind,
        )
        with torch.device("meta"):  # no memory for the weights
            model = GPT(config)
        assert count_parameters(config) == sum(p.numel() for p in model.parameters()), config


def test_the_course_settings_have_25_million_parameters():
    config, _ = load_config([str(ROOT / "configs/capstone.py"), "--on_cpu=false"])
    assert count_parameters(replace(config, vocab_size=65)) == 25_338_880


def test_gpt2_has_the_published_number_of_parameters():
    gpt2 = GPTConfig(
        vocab_size=50257,
        block_size=1024,
        n_layers=12,
        n_heads=12,
        d_model=768,
        norm_type="layernorm",
        pos_type="learned",
        mlp_type="gelu",
        qk_norm=False,
        bias=True,
    )
    assert count_parameters(gpt2) == 124_439_808


def test_flops_per_token_are_those_of_the_parameters_and_of_attention():
    assert flops_per_token(SMALL) == 6 * count_parameters(SMALL) + 12 * 2 * 16 * 16


def test_impossible_configs_are_refused_with_every_reason():
    with pytest.raises(ValueError) as error:
        GPTConfig(vocab_size=0, n_layers=-1, dropout=1.0, conv_width=0)
    for name in ("vocab_size", "n_layers", "dropout", "conv_width"):
        assert name in str(error.value)


def test_a_value_that_is_not_a_choice_is_refused():
    for name, values in CHOICES.items():
        if values != (True, False):
            with pytest.raises(ValueError, match=f"{name} must be {' or '.join(values)}, not 'x'"):
                GPTConfig(vocab_size=5, **{name: "x"})


def test_heads_of_other_widths_are_refused():
    with pytest.raises(ValueError, match=r"d_model \(30\) must be a multiple of n_heads \(4\)"):
        GPTConfig(vocab_size=5, d_model=30, n_heads=4)
    with pytest.raises(ValueError, match="pos_type=rope needs an even d_model / n_heads, not 3"):
        GPTConfig(vocab_size=5, d_model=12, n_heads=4)


def test_rmsnorm_and_pre_norm_are_the_default():
    assert SETTINGS["norm_type"].default == "rmsnorm"
    assert SETTINGS["norm_position"].default == "pre"


# the parts of a block


def test_attention_equals_the_naive_formula():
    config = replace(SMALL, pos_type="none", qk_norm=False, n_layers=1)
    attention = make(config).blocks[0].attn
    x = torch.randn(2, 7, 16, generator=seeded(2))
    q, k, v = (part.view(2, 7, 2, 8) for part in (x @ attention.qkv.weight.T).split(16, dim=-1))
    expected = torch.zeros(2, 7, 2, 8)
    for b in range(2):
        for h in range(2):
            for t in range(7):
                weights = torch.softmax(k[b, : t + 1, h] @ q[b, t, h] / math.sqrt(8), 0)
                expected[b, t, h] = weights @ v[b, : t + 1, h]
    expected = expected.reshape(2, 7, 16) @ attention.out.weight.T
    assert torch.allclose(attention(x), expected, atol=1e-5)


def test_queries_and_keys_are_normalized_per_head_with_separate_gains():
    attention = make(replace(SMALL, pos_type="none", n_layers=1)).blocks[0].attn
    x = torch.randn(1, 3, 16, generator=seeded(2))
    q, k, v = (part.view(3, 2, 8) for part in (x @ attention.qkv.weight.T)[0].split(16, dim=-1))
    q = q / q.square().mean(-1, keepdim=True).sqrt() * attention.q_norm.weight
    k = k / k.square().mean(-1, keepdim=True).sqrt() * attention.k_norm.weight
    mask = torch.full((3, 3), -math.inf).triu(1)
    weights = torch.softmax(torch.einsum("thd,shd->hts", q, k) / math.sqrt(8) + mask, -1)
    expected = torch.einsum("hts,shd->thd", weights, v).reshape(1, 3, 16) @ attention.out.weight.T
    assert torch.allclose(attention(x), expected, atol=1e-4)


@pytest.mark.parametrize("length", [24, 1])  # a whole window, and one new token after it
def test_attention_on_a_cpu_in_bfloat16_equals_pytorchs(length):
    q, k, v = torch.randn(3, 2, 4, 24, 16, generator=seeded(2)).bfloat16()
    q = q[:, :, -length:]
    upstream = torch.randn(2, 4, length, 16, generator=seeded(3))
    results = []
    for dtype in (torch.bfloat16, torch.float32):  # ours, and PyTorch's kernel
        leaves = [part.clone().to(dtype).requires_grad_() for part in (q, k, v)]
        y = attend(*leaves)
        assert y.dtype == dtype
        y.backward(upstream.to(dtype))
        results.append([y, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results):
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


@pytest.mark.parametrize("rate", [0.001, 0.1, 0.5, 0.999])
def test_dropout_zeroes_its_share_and_keeps_the_mean(rate):
    torch.manual_seed(0)
    x = torch.ones(99, 1001, requires_grad=True)
    y = Dropout(rate)(x)
    y.sum().backward()
    assert (y == 0).float().mean().item() == pytest.approx(rate, abs=0.006)
    assert y.mean().item() == pytest.approx(1, abs=0.03 if rate < 0.9 else 0.2)
    assert torch.equal(x.grad, y)  # only what was kept gets a gradient
    assert torch.equal(Dropout(rate).eval()(x), x)
    assert not torch.equal(Dropout(rate)(x), y)


def test_dropout_acts_on_the_embedding_and_on_every_sublayer():
    model, zeros = GPT(replace(SMALL, dropout=0.5)).train(), []
    for module in model.modules():
        if isinstance(module, Dropout):
            module.register_forward_hook(lambda _, x, y: zeros.append((y == 0).float().mean()))
    model(tokens(8, 16))
    assert len(zeros) == 1 + 2 * SMALL.n_layers
    assert all(0.4 < share < 0.6 for share in zeros)


def test_short_convolution_equals_the_naive_formula():
    conv, x = ShortConv(3, 4), torch.randn(2, 5, 4, generator=seeded(2))
    assert torch.equal(conv(x), x)  # before any training
    torch.nn.init.normal_(conv.weight, generator=seeded(3))
    expected = x.clone()
    expected[:, 1:] += conv.weight[0] * x[:, :-1]
    expected[:, 2:] += conv.weight[1] * x[:, :-2]
    assert torch.allclose(conv(x), expected)


def test_rope_scores_depend_on_the_distance_only():
    cos, sin = rope_tables(32, 8)
    q, k = torch.randn(2, 8, generator=seeded(3))

    def score(i, j):
        return (rotate(q, cos[i], sin[i]) * rotate(k, cos[j], sin[j])).sum()

    assert torch.allclose(score(5, 3), score(25, 23), atol=1e-5)
    assert not torch.allclose(score(5, 3), score(5, 4), atol=1e-3)


def test_rmsnorm_gives_an_rms_of_one_at_any_scale():
    norm, x = RMSNorm(64), torch.randn(5, 64, generator=seeded(4))
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(5), atol=1e-4)
    assert torch.allclose(norm(x), norm(100 * x), atol=1e-4)
    assert (norm(x.bfloat16()) - norm(x)).abs().max() < 0.05


def test_post_norm_normalizes_the_output_of_each_block():
    torch.manual_seed(0)
    model = GPT(replace(SMALL, norm_position="post"))
    seen = []

    def keep_output(module, args, output):
        seen.append(output)

    for block in model.blocks:
        block.register_forward_hook(keep_output)
    model(tokens(1, 16))
    assert len(seen) == 2
    for x in seen:
        assert torch.allclose(x.square().mean(-1), torch.ones(1, 16), atol=1e-2)


def test_next_token_loss_is_the_cross_entropy_of_every_token_but_the_first():
    logits, ids = torch.randn(2, 3, 5, generator=seeded(5)), tokens(2, 4, vocab_size=5)
    probabilities = logits.softmax(-1)
    expected = torch.zeros(2, 3)
    for b in range(2):
        for t in range(3):
            expected[b, t] = -math.log(probabilities[b, t, ids[b, t + 1]])
    assert torch.allclose(next_token_loss(logits, ids, "none"), expected.flatten())
    assert torch.allclose(next_token_loss(logits, ids, "sum"), expected.sum())
    assert torch.allclose(next_token_loss(logits, ids), expected.mean())


def test_entropy_is_the_mean_over_all_predictions():
    logits = torch.randn(2, 3, 5, generator=seeded(5))
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    assert torch.allclose(entropy(logits), expected)
    assert entropy(torch.zeros(1, 1, 8)).item() == pytest.approx(math.log(8))


# generation


@pytest.mark.parametrize("kind", [{}, {"pos_type": "learned"}, {"conv_width": 4}], ids=str)
@pytest.mark.parametrize("length", [1, 16, 30])
def test_generation_goes_on_with_the_last_half_of_a_full_window(kind, length):
    model, expected = make(replace(SMALL, **kind)), tokens(2, length)
    generated = model.generate(expected, 40, temperature=0)
    start = max(0, length - 16)
    for end in range(length, length + 40):
        start = start if end - start <= 16 else end - 8
        token = model(expected[:, start:])[:, -1].argmax(-1, keepdim=True)
        expected = torch.cat((expected, token), 1)
    assert torch.equal(generated, expected)


def test_equal_generators_give_equal_texts():
    model, idx = make(SMALL), tokens(2, 3)
    one, same = (model.generate(idx, 40, generator=seeded(7)) for _ in range(2))
    assert torch.equal(one, same)
    assert not torch.equal(one, model.generate(idx, 40, generator=seeded(8)))


@pytest.mark.parametrize("options", [{"temperature": 0}, {"top_k": 1}, {"top_p": 1e-300}])
def test_greedy_generation_takes_the_most_likely_token(options):
    model, idx = make(SMALL), tokens(2, 3)
    expected = idx
    for _ in range(13):
        expected = torch.cat((expected, model(expected)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(model.generate(idx, 13, **options), expected)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({}, [0.5, 0.3, 0.15, 0.05]),
        ({"top_k": 2}, [0.625, 0.375, 0, 0]),
        ({"top_p": 0.6}, [0.625, 0.375, 0, 0]),
        ({"temperature": 0.5}, [0.685, 0.247, 0.062, 0.007]),  # squared
        ({"temperature": 0}, [1, 0, 0, 0]),
        ({"temperature": 0.5, "top_p": 0.9}, [0.735, 0.265, 0, 0]),
        ({"top_k": 3, "top_p": 0.84}, [0.625, 0.375, 0, 0]),
    ],
)
def test_sample_token_samples_with_these_frequencies(options, expected):
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().repeat(4000, 1)
    sampled = sample_token(logits, generator=seeded(0), **options)
    frequencies = torch.bincount(sampled, minlength=4) / 4000
    assert frequencies.tolist() == pytest.approx(expected, abs=0.03)


def test_top_k_keeps_exactly_k_tokens_even_if_they_are_equally_likely():
    sampled = sample_token(torch.zeros(1000, 10), top_k=3, generator=seeded(0))
    assert len(sampled.unique()) == 3


def test_relu2_is_the_square_of_relu():
    mlp = make(replace(SMALL, mlp_type="relu2")).blocks[0].mlp
    x = torch.randn(2, 3, 16, generator=seeded(2))
    expected = (x @ mlp.up.weight.T).clamp(min=0).square() @ mlp.down.weight.T
    assert torch.allclose(mlp(x), expected, atol=1e-4)
