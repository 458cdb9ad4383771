import json
import os
import re
import shutil
import sys
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from helpers import contents, error_line, verses

import export
from common import bpe, checkpoint
from common.checkpoint import Checkpoint
from common.tokenizer import (
    END_OF_TEXT,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    TrainedBPETokenizer,
)
from config import Config
from model import GPT, GPTConfig, next_token_loss

os.environ["HF_HUB_OFFLINE"] = "1"
from transformers import AutoModelForCausalLM, AutoTokenizer

GPT2 = {"norm_type": "layernorm", "pos_type": "learned", "mlp_type": "gelu", "qk_norm": False}
KINDS = {
    "Qwen3": {},
    "Qwen3, untied": {"tie_embeddings": False},
    "Llama": {"qk_norm": False},
    "Llama, biases, untied": {"qk_norm": False, "bias": True, "tie_embeddings": False},
    "GPT2": GPT2,
    "GPT2, biases": GPT2 | {"bias": True},
    "GPT2, biases, untied, narrow": GPT2 | {"bias": True, "tie_embeddings": False, "d_ff": 24},
}
# settings of GPTConfig that every architecture has or that no architecture needs
SIZES = {"vocab_size", "block_size", "n_layers", "n_heads", "d_model", "d_ff"}
ANY_VALUE = SIZES | {"dropout", "bias", "tie_embeddings"}
TEXTS = [
    "To be, or not\nto be",
    "a\r\nb\rc\n\n\n\td",
    "  two  spaces   before .  ,  n't 's  ",
    "naïve café — “quoted”",
    "\U0001f468\u200d\U0001f469 🏳️‍🌈 e\u0301 \x85\u2028\x00\x7f",
    "<|endoftext|> <unk> <s></s> [UNK] ##a Ġ ▁",
    "\n",
    "",
]
CHARACTERS = "".join(sorted(set("".join(TEXTS))))
LONG = 1200  # tokens: more than GPT-2's default context in transformers


def build_model(**changes) -> GPT:
    """A small model whose gains, biases and logits all differ."""
    sizes = {"vocab_size": 50, "block_size": 64, "n_layers": 2, "n_heads": 2, "d_model": 32}
    torch.manual_seed(0)
    model = GPT(GPTConfig(**(sizes | changes))).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    return model


def make_tokenizer(kind: str):
    """A tokenizer of this kind; for the two kinds of BPE, of a text with many documents."""
    match kind:
        case "char":
            return CharTokenizer(CHARACTERS)
        case "byte":
            return ByteTokenizer()
        case "bpe":
            return BPETokenizer()
        case "bpe_trained":
            return TrainedBPETokenizer(bpe.train([*TEXTS, verses(200)], 100))


def save(model: GPT, tokenizer=None, **changes) -> None:
    """Saves run_best.pt, a checkpoint of this model; its tokens are characters by default."""
    tokenizer = tokenizer or CharTokenizer(CHARACTERS[: model.config.vocab_size])
    state = {
        "model": model.state_dict(),
        "config": vars(Config(**vars(model.config))),
        "tokenizer": tokenizer.to_dict(),
        "raw_model": {},
        "optimizers": [],
        "scaler": {},
        "step": 1500,
        "best_step": 1500,
        "patience_start": 1500,
        "best_val_loss": 1.2345,
        "dataset_fingerprint": "",
        "run_id": "id",
    }
    checkpoint.save(Path("run_best.pt"), Checkpoint(**(state | changes)))


def run_export(out: str = "hf") -> int:
    return export.main(["--ckpt=run_best.pt", f"--out={out}"])


def card() -> str:
    return Path("hf/README.md").read_text(encoding="utf-8")


# -------------------------------------------------------------------------------------------------
# the model


@pytest.fixture(scope="module", params=KINDS)
def exported(request, tmp_path_factory):
    """For each of KINDS: its name, our model, and transformers' model with its loading report."""
    model = build_model(block_size=LONG, **KINDS[request.param])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("exported"))
        save(model)
        assert run_export() == 0
        theirs, report = AutoModelForCausalLM.from_pretrained("hf", output_loading_info=True)
    return request.param, model, theirs, report


def test_transformers_loads_every_weight_and_lacks_none(exported):
    kind, model, theirs, report = exported
    assert type(theirs).__name__.startswith(kind.split(",")[0])
    assert theirs.config.architectures == [type(theirs).__name__]
    assert theirs.config.tie_word_embeddings == model.config.tie_embeddings
    assert theirs.dtype == torch.float32
    for name, problems in report.items():
        assert not problems, name


def test_transformers_computes_the_same_logits_to_the_end_of_the_context(exported):
    _, model, theirs, _ = exported
    assert theirs.config.max_position_embeddings == LONG
    ids = torch.randint(50, (2, LONG), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, found = model(ids), theirs(ids).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_transformers_generates_the_same_greedy_text(exported):
    text = generate_the_same(exported, torch.tensor([[0, 1, 2]]), 150)
    assert len(set(text)) > 10  # not a repetition of a few tokens


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["Qwen3", "Llama", "GPT2"], indirect=True)
def test_transformers_generates_the_same_text_to_the_end_of_the_context(exported):
    start = torch.randint(50, (1, LONG - 50), generator=torch.Generator().manual_seed(1))
    generate_the_same(exported, start, 50)


def generate_the_same(exported, start, length: int) -> list[int]:
    """The ids that both programs generate after `start`, (1, T)."""
    _, model, theirs, _ = exported
    expected = model.generate(start, length, temperature=0)
    found = theirs.generate(start, max_new_tokens=length, do_sample=False)
    assert found.tolist() == expected.tolist()
    return found[0].tolist()


def test_no_character_starts_or_ends_a_text(exported):
    _, _, theirs, _ = exported
    for config in (theirs.config, theirs.generation_config):
        assert config.bos_token_id is None
        assert config.eos_token_id is None


def test_without_a_length_transformers_generates_half_a_context(folder):
    save(build_model(vocab_size=256), ByteTokenizer())
    assert run_export() == 0
    ids = AutoTokenizer.from_pretrained("hf")("The king", return_tensors="pt")
    text = AutoModelForCausalLM.from_pretrained("hf").generate(**ids)
    assert text.size(1) == len("The king") + 64 // 2


def test_a_transformers_pipeline_continues_a_prompt(folder):
    from transformers import pipeline

    save(build_model(vocab_size=256), ByteTokenizer())
    assert run_export() == 0
    [result] = pipeline("text-generation", "hf")("The king")
    assert result["generated_text"].startswith("The king")
    assert len(result["generated_text"]) > len("The king")


@pytest.mark.parametrize("architecture", export.ARCHITECTURES)
def test_every_setting_of_the_model_is_known_to_every_architecture(architecture):
    settings = {field.name for field in fields(GPTConfig)}
    assert settings == ANY_VALUE | export.ARCHITECTURES[architecture].keys()


@pytest.mark.parametrize(
    "changes, named",
    [
        ({"norm_position": "post"}, "norm_position=post"),
        ({"norm_type": "none"}, "norm_type=none"),
        ({"pos_type": "none"}, "pos_type=none"),
        ({"mlp_type": "relu2"}, "mlp_type=relu2"),
        ({"bias": True}, "bias=true"),
        ({"conv_width": 2}, "conv_width=2"),
        (GPT2 | {"qk_norm": True}, "qk_norm=true"),
        (GPT2 | {"norm_type": "rmsnorm"}, "norm_type=rmsnorm"),
    ],
)
def test_a_model_without_an_equivalent_is_refused(folder, capsys, changes, named):
    save(build_model(**changes))
    before = contents(folder)
    assert run_export() == 1
    assert f"no exported architecture has {named};" in error_line(capsys)
    assert contents(folder) == before


# -------------------------------------------------------------------------------------------------
# the tokenizer


def export_tokenizer(kind: str):
    """Our tokenizer of this kind, and transformers' tokenizer from an export of it."""
    ours = make_tokenizer(kind)
    sizes = {"n_layers": 1, "n_heads": 1, "d_model": 2}
    save(build_model(vocab_size=ours.vocab_size, **sizes), ours)
    assert run_export() == 0
    return ours, AutoTokenizer.from_pretrained("hf")


@pytest.mark.parametrize("kind", ["char", "byte", "bpe", "bpe_trained"])
def test_transformers_tokenizer_gives_the_same_ids_and_texts(folder, request, kind):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    ours, theirs = export_tokenizer(kind)
    assert len(theirs) == ours.vocab_size
    assert not theirs.clean_up_tokenization_spaces
    for text in [*TEXTS, "".join(TEXTS)]:
        ids = theirs(text)["input_ids"]
        assert ids == ours.encode(text).tolist()
        assert theirs.decode(ids) == text
        assert theirs.decode(ids, skip_special_tokens=True) == text
    for i in range(0, ours.vocab_size, 97 if kind == "bpe" else 1):
        assert theirs.decode([i]) == ours.decode([i])
    end_id = ours.vocab_size - 1 if kind.startswith("bpe") else None
    assert theirs.bos_token_id == end_id
    assert theirs.eos_token_id == end_id


def test_bytes_that_are_not_utf8_are_decoded_alike(folder):
    ours, theirs = export_tokenizer("byte")
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        ids = torch.randint(256, (40,), generator=generator).tolist()
        assert theirs.decode(ids) == ours.decode(ids)


def test_the_end_of_text_token_of_a_single_text_only_pads(folder):
    ours = TrainedBPETokenizer(make_tokenizer("bpe_trained").merged, separator=None)
    save(build_model(vocab_size=ours.vocab_size), ours)
    assert run_export() == 0
    theirs = AutoTokenizer.from_pretrained("hf")
    assert theirs.eos_token_id is None
    assert theirs.pad_token == END_OF_TEXT
    assert theirs.pad_token_id == ours.vocab_size - 1
    assert "tokenizer('\\n', return_tensors" in card()


@pytest.mark.parametrize("text", ["ß", "to ß be", "日本"])
def test_an_unknown_character_is_an_error_in_transformers_too(folder, text):
    _, theirs = export_tokenizer("char")
    with pytest.raises(Exception, match="not found in the vocabulary"):
        theirs(text)
    assert 'raises an error ("not found in the vocabulary")' in card()


# -------------------------------------------------------------------------------------------------
# the program in the model card, and what it says on several prompts


@pytest.mark.parametrize(
    "kind, architecture",
    [("char", "Qwen3"), ("byte", "GPT2"), ("bpe", "Llama"), ("bpe_trained", "GPT2")],
)
def test_the_cards_program_runs_and_the_model_in_it_is_ours(
    folder, request, capsys, kind, architecture
):
    if kind == "bpe":
        request.getfixturevalue("bpe")
    ours = make_tokenizer(kind)
    model = build_model(vocab_size=ours.vocab_size, **KINDS[architecture])
    save(model, ours)
    assert run_export() == 0
    capsys.readouterr()
    names = {}
    exec(card().split("```python\n")[1].split("```")[0], names)
    tokenizer, theirs, ids = names["tokenizer"], names["model"], names["ids"]

    # what it generated fills the context
    assert names["text"].numel() == model.config.block_size
    start = "" if kind.startswith("bpe") else "\n"
    assert capsys.readouterr().out.startswith(start)
    assert ids["input_ids"].tolist() == [ours.start_ids]

    # the same ids, logits and text
    text = "to be, or not"
    ids = tokenizer(text, return_tensors="pt")
    assert ids["input_ids"].tolist() == [ours.encode(text).tolist()]
    with torch.no_grad():
        torch.testing.assert_close(theirs(**ids).logits, model(ids["input_ids"]), atol=1e-4, rtol=0)
    greedy = {"do_sample": False, "max_new_tokens": 20}
    [found] = theirs.generate(**ids, **greedy).tolist()
    [expected] = model.generate(ids["input_ids"], 20, temperature=0).tolist()
    assert found == expected
    assert tokenizer.decode(found, skip_special_tokens=True) == ours.decode(expected)

    # and for several prompts at once
    prompts = ["or", text, "a"]
    if kind == "char":
        exec(re.search(r"tokenizer\.pad_token = [^`]+", card())[0], names)
    ids = eval(re.search(r"tokenizer\(prompts[^`]+", card())[0], names | {"prompts": prompts})
    batch = theirs.generate(**ids, **greedy)[:, ids["input_ids"].size(1) :].tolist()
    for prompt, found in zip(prompts, batch):
        idx = torch.tensor([ours.encode(prompt).tolist()])
        expected = model.generate(idx, 20, temperature=0)[0, idx.size(1) :].tolist()
        assert found == expected
        assert tokenizer.decode(found, skip_special_tokens=True) == ours.decode(expected)


@pytest.mark.parametrize("kind", ["char", "byte"])
def test_texts_of_different_lengths_train_as_the_card_says(folder, kind):
    from transformers import DataCollatorForLanguageModeling, DataCollatorForSeq2Seq

    ours = make_tokenizer(kind)
    model = build_model(vocab_size=ours.vocab_size)
    save(model, ours)
    assert run_export() == 0
    tokenizer = AutoTokenizer.from_pretrained("hf")
    texts = ["to be,\n", "or not\nto be"]
    examples = [tokenizer(text) for text in texts]
    if kind == "char":
        assert "DataCollatorForSeq2Seq" in card()
        tokenizer.pad_token = "\n"
        examples = [{**example, "labels": example["input_ids"]} for example in examples]
        batch = DataCollatorForSeq2Seq(tokenizer)(examples)
    else:
        batch = DataCollatorForLanguageModeling(tokenizer, mlm=False)(examples)
    loss = AutoModelForCausalLM.from_pretrained("hf")(**batch).loss
    total = 0.0
    for text in texts:
        idx = torch.tensor([ours.encode(text).tolist()])
        total += next_token_loss(model(idx[:, :-1]), idx, reduction="sum")
    assert loss.item() == pytest.approx(total.item() / (len("".join(texts)) - 2), abs=1e-4)


# -------------------------------------------------------------------------------------------------
# the model card and the folder


def test_the_card_describes_the_model_and_its_training(folder):
    model = build_model(vocab_size=256)
    save(model, ByteTokenizer())
    assert run_export() == 0
    parameters = sum(parameter.numel() for parameter in model.parameters())
    assert "| architecture | Qwen3; layers: 2, width: 32, heads: 2 |" in card()
    assert f"| parameters | {parameters:,} |" in card()
    assert "shakespeare_char: 1,500 steps of 4,096 tokens, starting from random weights" in card()
    assert "1.2345 nats per token" in card()
    assert "| context | 64 tokens |" in card()
    assert "| tokens | 256, byte |" in card()


def test_the_card_says_if_its_loss_is_that_of_an_earlier_step(folder):
    save(build_model(), step=1700)
    assert run_export() == 0
    assert "the lowest of the run, at step 1,500, not of these weights" in card()


def test_the_card_says_if_no_loss_was_measured(folder):
    save(build_model(), best_val_loss=float("inf"))
    assert run_export() == 0
    assert "| validation loss | not measured |" in card()


def test_an_earlier_export_is_replaced(folder):
    save(build_model())
    assert run_export() == 0
    save(build_model(n_layers=1))
    assert run_export() == 0
    assert json.loads(Path("hf/config.json").read_text())["num_hidden_layers"] == 1
    assert {path.name for path in Path("hf").iterdir()} == export.FILES


def fine_tune() -> None:
    AutoModelForCausalLM.from_pretrained("hf").save_pretrained("hf")


def edit_card() -> None:
    with open("hf/README.md", "a") as file:
        file.write("license: mit")


def edit_generation() -> None:
    path = Path("hf/generation_config.json")
    path.write_text(path.read_text().replace("max_new_tokens", "max_length"))


def test_a_folder_is_no_checkpoint(folder, capsys):
    save(build_model())
    Path("out").mkdir(exist_ok=True)
    assert export.main(["--ckpt", "out"]) == 1
    assert "out is a folder without GPT-2's config.json" in error_line(capsys)
    assert export.main(["--ckpt", "gpt2"]) == 2
    assert "gpt2 is GPT-2, which transformers can open" in error_line(capsys)


@pytest.mark.parametrize("change", [fine_tune, edit_card, edit_generation])
def test_an_export_that_was_changed_is_not_replaced(folder, capsys, change):
    save(build_model())
    assert run_export() == 0
    change()
    before = contents(folder)
    capsys.readouterr()
    assert run_export() == 1
    assert "is not an earlier export, or was changed since" in error_line(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize("killed", [True, False])
def test_an_interrupted_export_can_not_be_loaded_and_can_be_repeated(folder, monkeypatch, killed):
    save(build_model())
    assert run_export() == 0
    save(build_model(n_layers=1))
    replace = os.replace

    def kill_after_the_first(source, target):
        if killed:  # then its temporary folder stays
            shutil.copytree(Path(source).parent, "hf/.export-left")
        replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", kill_after_the_first)
    assert run_export() == 130
    assert not Path("hf/config.json").exists()
    monkeypatch.undo()
    monkeypatch.chdir(folder)
    assert run_export() == 0
    assert {path.name for path in Path("hf").iterdir()} == export.FILES


def test_an_empty_folder_stays_the_same_folder(folder):
    """It may be a mount point, which can't be renamed or removed."""
    (folder / "hf" / "lost+found").mkdir(parents=True)
    number = os.stat("hf").st_ino
    save(build_model())
    assert run_export() == 0
    assert run_export() == 0
    assert os.stat("hf").st_ino == number


@pytest.mark.parametrize(
    "path, text",
    [
        ("hf/notes.txt", "a file that is not ours, in an export"),
        ("hf/onnx/model.onnx", "a folder that is not ours, in an export"),
        ("other/config.json", "{}"),
        ("other/config.json", "damaged"),
        ("other/config.json", "[]"),
        ("other/README.md", "a folder without config.json"),
        ("file", "not a folder"),
    ],
)
def test_anything_else_is_not_replaced(folder, capsys, path, text):
    save(build_model())
    assert run_export() == 0
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    before = contents(folder)
    assert run_export(path.parts[0]) == 1
    assert "is not an earlier export, or was changed since" in error_line(capsys)
    assert contents(folder) == before


@pytest.mark.parametrize("out", ["hf", "new"])
def test_an_export_that_fails_changes_nothing(folder, monkeypatch, capsys, out):
    save(build_model())
    assert run_export() == 0
    save(build_model(n_layers=1))
    before = contents(folder)
    write = Path.write_bytes

    def write_until_full(path, content):
        if path.name == "config.json":
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_until_full)
    assert run_export(out) == 1
    assert error_line(capsys) == "error: No space left on device\n"
    assert contents(folder) == before


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    save(build_model())
    before = contents(folder)
    for name in ("safetensors", "safetensors.torch"):
        monkeypatch.setitem(sys.modules, name, None)
    assert run_export() == 1
    install = "safetensors is not installed: pip install transformers safetensors tokenizers"
    assert install in error_line(capsys)
    assert contents(folder) == before
