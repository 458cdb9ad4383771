import math
import random
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from common.arguments import load_config
from config import SETTINGS
from model import (
    GPT,
    GPTConfig,
    KVCache,
    RMSNorm,
    attend,
    choose,
    count_parameters,
    rope_tables,
    rotate,
)

SMALL = GPTConfig(vocab_size=17, block_size=16, n_layers=2, n_heads=2, d_model=16)
KINDS = [
    {"norm_type": norm, "norm_position": position, "pos_type": pos, "mlp_type": mlp, "qk_norm": qk, "tie_embeddings": tie, "bias": bias}
    for norm, position, pos, mlp, qk, tie, bias in [
        ("rmsnorm", "pre", "rope", "swiglu", True, True, False),
        ("layernorm", "pre", "learned", "gelu", False, True, True),
        ("rmsnorm", "post", "none", "relu2", True, False, True),
        ("none", "pre", "rope", "gelu", False, False, False),
        ("layernorm", "post", "learned", "swiglu", True, True, False),
    ]
]  # fmt: skip


def make(config, seed=0):
    torch.manual_seed(seed)
    model = GPT(config).eval()
    with (
        torch.no_grad()
    ):  # at the initial scale all logits are near 0, and every comparison would pass
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.normal_(std=0.3)
            elif (
                parameter.ndim == 3
            ):  # the gains of queries and keys, which must not be taken for one another
                parameter.uniform_(0.5, 2)
    return model


def tokens(*shape, vocab_size=17):
    return torch.randint(vocab_size, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_token_never_changes_an_earlier_logit(kind):
    model, idx = make(replace(SMALL, **kind)), tokens(2, 16)
    before = model(idx)
    idx[:, 9] = (idx[:, 9] + 1) % 17
    after = model(idx)
    assert torch.equal(before[:, :9], after[:, :9])
    assert (before[:, 9:] - after[:, 9:]).abs().amax(
        -1
    ).min() > 1e-4  # and every later one depends on it


@pytest.mark.parametrize("kind", KINDS)
def test_cached_logits_equal_uncached(kind):
    config = replace(SMALL, **kind)
    model, idx = make(config), tokens(3, 16)
    cache = KVCache(config, 3, idx.device, torch.float32)
    pieces = [model(idx[:, :5], cache)] + [model(idx[:, i : i + 1], cache) for i in range(5, 16)]
    assert torch.allclose(torch.cat(pieces, 1), model(idx), atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_learns_and_belongs_to_one_group(kind):
    model = GPT(replace(SMALL, **kind))
    F.cross_entropy(model(tokens(4, 16)).flatten(0, 1), tokens(64)).backward()
    assert [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()
    ] == []
    grouped = [p for group in model.parameter_groups().values() for p in group]
    assert sorted(map(id, grouped)) == sorted(map(id, model.parameters()))
    assert all(p.ndim == 2 for p in model.parameter_groups()["matrices"])


# Tied, the head points at the very token that was read, which at the start leads a little away from guessing.
@pytest.mark.parametrize("tie_embeddings, tolerance", [(False, 0.15), (True, 0.25)])
def test_first_loss_is_near_that_of_guessing(tie_embeddings, tolerance):
    config = GPTConfig(vocab_size=65, tie_embeddings=tie_embeddings)
    torch.manual_seed(0)
    logits = GPT(config)(tokens(2, 256, vocab_size=65))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens(512, vocab_size=65).flip(0))
    assert abs(loss.item() - math.log(65)) < tolerance


def test_the_residual_stream_starts_equally_large_at_any_depth():
    sizes = []
    for n_layers in (2, 24):
        torch.manual_seed(0)
        model = GPT(
            GPTConfig(vocab_size=65, n_layers=n_layers, d_model=128, n_heads=4, block_size=64)
        )
        model.final_norm.register_forward_pre_hook(
            lambda module, args: sizes.append(args[0].std().item())
        )
        model(tokens(2, 64, vocab_size=65))
    assert 0.7 < sizes[1] / sizes[0] < 1.4


def random_config(seed):
    rng = random.Random(seed)
    heads = rng.choice([1, 2, 3, 4])
    return GPTConfig(
        vocab_size=rng.randint(2, 300),
        block_size=rng.randint(1, 64),
        n_layers=rng.randint(1, 4),
        n_heads=heads,
        d_model=heads * rng.choice([2, 8, 18]),
        d_ff=rng.choice([None, 24, 33]),
        norm_type=rng.choice(["rmsnorm", "layernorm", "none"]),
        norm_position=rng.choice(["pre", "post"]),
        pos_type=rng.choice(["rope", "learned", "none"]),
        mlp_type=rng.choice(["swiglu", "gelu", "relu2"]),
        qk_norm=rng.random() < 0.5,
        tie_embeddings=rng.random() < 0.5,
        bias=rng.random() < 0.5,
    )


@pytest.mark.parametrize("seed", range(20))
def test_count_parameters_equals_the_built_model(seed):
    config = random_config(seed)
    assert count_parameters(config) == sum(p.numel() for p in GPT(config).parameters())


def test_the_course_settings_give_25_million():
    config = load_config(["configs/capstone.py", "--on_cpu=false"])
    assert count_parameters(replace(config, vocab_size=65)) == 25_338_880


def test_gpt2s_shape_is_reachable_by_settings():
    gpt2 = GPTConfig(vocab_size=50257, block_size=1024, n_layers=12, n_heads=12, d_model=768, norm_type="layernorm",
                     pos_type="learned", mlp_type="gelu", qk_norm=False, bias=True)  # fmt: skip
    assert count_parameters(gpt2) == 124_439_808  # as published


def test_attention_equals_the_naive_formula():
    config = replace(SMALL, pos_type="none", qk_norm=False, n_layers=1)
    attention = make(config).blocks[0].attn
    x = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(2))
    q, k, v = (part.view(2, 7, 2, 8) for part in (x @ attention.qkv.weight.T).split(16, dim=-1))
    expected = torch.zeros(2, 7, 2, 8)
    for b in range(2):
        for h in range(2):
            for t in range(7):
                weights = torch.softmax(k[b, : t + 1, h] @ q[b, t, h] / math.sqrt(8), 0)
                expected[b, t, h] = weights @ v[b, : t + 1, h]
    assert torch.allclose(
        attention(x), expected.reshape(2, 7, 16) @ attention.out.weight.T, atol=1e-5
    )


@pytest.mark.parametrize("length", [24, 1])  # a whole window, and one new token after it
def test_attention_written_out_for_bfloat16_equals_torchs(length):
    q, k, v = torch.randn(3, 2, 4, 24, 16, generator=torch.Generator().manual_seed(2)).bfloat16()
    q, upstream = (
        q[:, :, -length:],
        torch.randn(2, 4, length, 16, generator=torch.Generator().manual_seed(3)),
    )
    results = []
    for dtype in (torch.bfloat16, torch.float32):  # written out, and torch's kernel
        leaves = [part.clone().to(dtype).requires_grad_() for part in (q, k, v)]
        y = attend(*leaves)
        assert y.dtype == dtype
        y.backward(upstream.to(dtype))
        results.append([y, *(leaf.grad for leaf in leaves)])
    for ours, theirs in zip(*results):
        assert (ours.float() - theirs).norm() < 0.01 * theirs.norm()


def test_queries_and_keys_are_normalised_head_by_head_with_gains_of_their_own():
    attention = make(replace(SMALL, pos_type="none", n_layers=1)).blocks[0].attn
    x = torch.randn(1, 3, 16, generator=torch.Generator().manual_seed(2))
    q, k, v = (part.view(3, 2, 8) for part in (x @ attention.qkv.weight.T)[0].split(16, dim=-1))
    q, k = (
        part / part.square().mean(-1, keepdim=True).sqrt() * gain
        for part, gain in zip((q, k), attention.qk_norm.weight)
    )
    weights = torch.softmax(
        torch.einsum("thd,shd->hts", q, k) / math.sqrt(8) + torch.full((3, 3), -math.inf).triu(1),
        -1,
    )
    expected = torch.einsum("hts,shd->thd", weights, v).reshape(1, 3, 16) @ attention.out.weight.T
    assert torch.allclose(attention(x), expected, atol=1e-4)


def test_weights_in_bfloat16_predict_nearly_the_same():
    torch.manual_seed(0)
    model, idx = GPT(replace(SMALL, d_model=64)), tokens(4, 16)
    full = model(idx).log_softmax(-1)
    assert (model.bfloat16()(idx).float().log_softmax(-1) - full).abs().max() < 0.02


def test_rope_depends_on_distance_alone():
    cos, sin = rope_tables(32, 8)
    q, k = torch.randn(2, 8, generator=torch.Generator().manual_seed(3))
    score = lambda i, j: (rotate(q, cos[i], sin[i]) * rotate(k, cos[j], sin[j])).sum()  # noqa: E731
    assert torch.allclose(score(5, 3), score(25, 23), atol=1e-5)
    assert not torch.allclose(score(5, 3), score(5, 4), atol=1e-3)


def test_rmsnorm_gives_rms_one_and_ignores_scale():
    norm, x = RMSNorm(64), torch.randn(5, 64)
    assert torch.allclose(norm(x).square().mean(-1), torch.ones(5), atol=1e-4)
    assert torch.allclose(norm(x), norm(100 * x), atol=1e-4)
    assert norm(x.bfloat16()).sub(norm(x)).abs().max() < 0.05


def test_post_norm_normalises_what_leaves_each_block():
    model = make(replace(SMALL, norm_position="post"))
    seen = []
    model.head.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    model(tokens(1, 16))
    assert torch.allclose(seen[0].square().mean(-1), torch.ones(1, 16), atol=1e-3)


def test_generation_goes_on_past_a_full_window():
    model = make(SMALL)
    generator = lambda: torch.Generator().manual_seed(7)  # noqa: E731
    out = model.generate(tokens(2, 30), 50, generator=generator())
    assert out.shape == (2, 80) and torch.equal(out[:, :30], tokens(2, 30))
    assert torch.equal(out, model.generate(tokens(2, 30), 50, generator=generator()))
    assert torch.equal(
        out, torch.cat([tokens(2, 30), *model.stream(tokens(2, 30), 50, generator=generator())], 1)
    )


def test_greedy_generation_equals_the_plain_way():
    model, idx = make(SMALL), tokens(2, 3)
    plain = idx
    for _ in range(13):
        plain = torch.cat((plain, model(plain)[:, -1].argmax(-1, keepdim=True)), 1)
    assert torch.equal(model.generate(idx, 13, temperature=0), plain)
    assert torch.equal(model.generate(idx, 13, top_k=1), plain)
    assert torch.equal(model.generate(idx, 13, top_p=1e-9), plain)


def test_after_a_full_window_half_of_it_remains():
    model, idx = make(SMALL), tokens(1, 16)
    first = model(idx)[:, -1].argmax(-1, keepdim=True)
    half = torch.cat((idx, first), 1)[:, -8:]
    second = model(half)[:, -1].argmax(-1, keepdim=True)
    assert torch.equal(model.generate(idx, 2, temperature=0)[:, 16:], torch.cat((first, second), 1))


def test_choose_draws_what_it_is_told_to():
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).repeat(4000, 1)
    draw = lambda **options: choose(logits, generator=torch.Generator().manual_seed(0), **options)  # noqa: E731
    shares = lambda drawn: (torch.bincount(drawn, minlength=4) / 4000).tolist()  # noqa: E731
    assert shares(draw()) == pytest.approx([0.5, 0.3, 0.15, 0.05], abs=0.03)
    assert shares(draw(top_k=2)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(draw(top_p=0.6)) == pytest.approx([0.625, 0.375, 0, 0], abs=0.03)
    assert shares(draw(temperature=0.5))[0] > 0.6
    assert shares(draw(temperature=0)) == [1, 0, 0, 0]


def test_impossible_configs_are_refused_with_every_reason():
    with pytest.raises(ValueError) as error:
        GPTConfig(vocab_size=0, n_layers=-1, dropout=1.0)
    assert [word in str(error.value) for word in ("vocab_size", "n_layers", "dropout")] == [
        True
    ] * 3
    with pytest.raises(ValueError, match="multiple of n_heads"):
        GPTConfig(vocab_size=5, d_model=30, n_heads=4)
    with pytest.raises(ValueError, match="rope"):
        GPTConfig(vocab_size=5, d_model=12, n_heads=4)
    with pytest.raises(ValueError, match="17 positions"):
        make(SMALL)(tokens(1, 17))


def test_rmsnorm_and_pre_norm_are_the_default():
    assert SETTINGS["norm_type"].default == "rmsnorm" and SETTINGS["norm_position"].default == "pre"
