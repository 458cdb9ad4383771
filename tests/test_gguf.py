"""Export to GGUF: what is in the file, and what llama.cpp computes from it if it is installed.

llama.cpp comes with the package llama-cpp-python; without it these tests are skipped.
"""

import sys
from pathlib import Path

import pytest
import torch
from helpers import contents, error_line
from test_export import CHARACTERS, KINDS, TEXTS, build_model, make_tokenizer, save

import export
from common import bpe
from common.tokenizer import ByteTokenizer, CharTokenizer

gguf = pytest.importorskip("gguf")


def run_export(out: str = "model.gguf") -> int:
    return export.main(["--ckpt=run_best.pt", "--format=gguf", f"--out={out}"])


def value(name: str):
    field = gguf.GGUFReader("model.gguf").get_field(name)
    return field and field.contents()


# -------------------------------------------------------------------------------------------------
# the file


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_has_every_weight(folder, kind):
    model = build_model(**KINDS[kind])
    save(model)
    assert run_export() == 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader("model.gguf").tensors}
    count = sum(tensor.n_elements for tensor in tensors.values())
    zeros = 0  # GPT-2 always has biases
    if kind == "GPT2":
        zeros = sum(tensor.n_elements for name, tensor in tensors.items() if name.endswith("bias"))
    assert count - zeros == sum(parameter.numel() for parameter in model.parameters())
    found = torch.from_numpy(tensors["blk.1.ffn_down.weight"].data.copy())
    assert torch.equal(found, model.blocks[1].mlp.down.weight)
    assert ("output.weight" in tensors) != model.config.tie_embeddings
    assert value("general.architecture") == kind.split(",")[0].lower()


def test_characters_and_bytes_are_tokens_without_an_end(folder):
    save(build_model(vocab_size=256), ByteTokenizer())
    assert run_export() == 0
    assert value("tokenizer.ggml.tokens")[:2] == ["\\x00", "\\x01"]
    assert value("tokenizer.ggml.eos_token_id") is None


def test_a_separator_of_one_character_is_the_end_token(folder):
    tokenizer = CharTokenizer("\nab–", "\n")
    save(build_model(vocab_size=4), tokenizer)
    assert run_export() == 0
    assert value("tokenizer.ggml.tokens") == ["\\x0a", "\\x61", "\\x62", "\\xe2\\x80\\x93"]
    assert value("tokenizer.ggml.eos_token_id") == 0


def test_an_earlier_file_is_replaced_and_anything_else_is_not(folder, capsys):
    save(build_model())
    assert run_export() == 0
    assert run_export() == 0
    Path("foreign.gguf").write_bytes(b"GGUF and more")
    Path("changed.gguf").write_bytes(Path("model.gguf").read_bytes() + b"more")
    Path("folder").mkdir()
    before = contents(folder)
    for out in ("foreign.gguf", "changed.gguf", "folder", "run_best.pt"):
        capsys.readouterr()
        assert run_export(out) == 1
        assert "is not an earlier export, or was changed since" in error_line(capsys)
    assert contents(folder) == before


def test_a_full_disk_is_named(folder, monkeypatch, capsys):
    def write(*_):
        raise OSError("802816 requested and 1024 written")  # numpy's words

    save(build_model())
    monkeypatch.setattr("common.gguf.write", write)
    assert run_export() == 1
    assert "the disk may be full" in error_line(capsys)


def test_the_missing_package_is_named(folder, monkeypatch, capsys):
    save(build_model())
    before = contents(folder)
    monkeypatch.setitem(sys.modules, "gguf", None)
    assert run_export() == 1
    assert "gguf is not installed: pip install gguf" in error_line(capsys)
    assert contents(folder) == before


# -------------------------------------------------------------------------------------------------
# llama.cpp


def load():
    """The model in llama.cpp, with its cache in float32."""
    llama_cpp = pytest.importorskip("llama_cpp")
    return llama_cpp.Llama(
        "model.gguf", n_ctx=0, n_threads=1, type_k=0, type_v=0, logits_all=True, verbose=False
    )


@pytest.mark.parametrize("kind", KINDS)
def test_llama_cpp_computes_the_same_logits_and_tokens(folder, kind):
    model = build_model(block_size=256, **KINDS[kind])
    save(model)
    assert run_export() == 0
    theirs = load()
    ids = model.generate(torch.tensor([[1, 2, 3]]), 200, temperature=0)
    theirs.eval(ids[0].tolist())
    found = torch.from_numpy(theirs.scores[: ids.size(1)])
    with torch.no_grad():
        expected = model(ids)[0]
    tolerance = 1e-2 if kind.startswith("GPT2") else 1e-3  # its GELU is a table in float16
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    first, second = expected.topk(2).values.unbind(-1)
    clear = first - second > 2 * tolerance
    assert clear.float().mean() > 0.9
    assert torch.equal(found.argmax(-1)[clear], expected.argmax(-1)[clear])


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "bpe_trained"])
def test_llama_cpp_gives_the_same_ids_and_texts(folder, request, kind):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    ours = make_tokenizer(kind)
    save(build_model(vocab_size=ours.vocab_size, n_layers=1), ours)
    assert run_export() == 0
    theirs = load()
    for text in [*TEXTS, "".join(TEXTS), Path(bpe.__file__).read_text(), Path(bpe.__file__).name]:
        if kind == "char" and not set(text) <= set(CHARACTERS):
            continue
        ids = ours.encode(text).tolist()
        assert theirs.tokenize(text.encode(), add_bos=True, special=False) == ids
        assert theirs.detokenize(ids).decode(errors="replace") == text
    last = ours.vocab_size - 1 if kind.startswith("bpe") else -1
    assert theirs.token_eos() == last
