"""A corpus -> data/<dataset>/{train.bin, val.bin, meta.json}.

python prepare.py shakespeare_char             one of the corpora in data/
python prepare.py notes_byte --input notes.txt your own files or folders
"""

import hashlib
import importlib
import json
import os
import pkgutil
import tempfile
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

import numpy as np

import data
import tokenizer as tokenizers
from cli import Parser, UserError, command
from data import Corpus
from dataset import DATA_DIR, SPLITS

SPLIT_SEED = 1337  # decides which documents are held back
SEPARATOR = "\n\n"  # between documents
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
PIECE = 1 << 22  # bytes of a file that are read at once


def corpora() -> dict[str, str]:
    """The corpora that come with the project: name -> what it is."""
    names = [module.name for module in pkgutil.iter_modules(data.__path__)]
    modules = {name: importlib.import_module(f"data.{name}") for name in names}
    return {name: module.ABOUT for name, module in modules.items() if hasattr(module, "load")}


def split_name(name: str) -> tuple[str, str]:
    """A dataset's name -> its corpus and the kind of its tokenizer. Raises UserError."""
    corpus, _, kind = Path(name).name.rpartition("_")
    if not corpus or kind not in tokenizers.KINDS:
        kinds = ", ".join(tokenizers.KINDS)
        raise UserError(
            f"a dataset is called <corpus>_<tokenizer> with a tokenizer of {kinds}; {name!r} is not", status=2
        )
    return corpus, kind


def read_pieces(path: Path) -> Iterator[str]:
    """The text of a file, a few MB at a time. Raises UserError where it is not UTF-8."""
    with open(path, "rb") as file:
        rest, offset = b"", 0
        while piece := file.read(PIECE):
            piece = rest + piece
            try:
                text, rest = piece.decode("utf-8"), b""
            except UnicodeDecodeError as error:
                if len(piece) - error.start > 3:  # more than a character that the end of the piece cuts in two
                    where = f"byte {offset + error.start} is {piece[error.start]:#04x}"
                    raise UserError(f"{path} is not UTF-8 text: {where}") from None
                text, rest = piece[: error.start].decode("utf-8"), piece[error.start :]
            offset += len(piece) - len(rest)
            yield text
        if rest:
            raise UserError(f"{path} is not UTF-8 text: it ends in the middle of a character")


def read_inputs(inputs: list[str]) -> Corpus:
    """One file as one continuous text; several files, or the .txt and .md files of folders, as documents."""
    files = []
    for path in map(Path, inputs):
        found = sorted(p for p in path.rglob("*") if p.suffix in (".txt", ".md")) if path.is_dir() else [path]
        if not found:
            raise UserError(f"the folder {path} holds no .txt or .md files")
        files += found
    for path in files:
        if not path.is_file():
            raise UserError(f"there is no file {path}")
    source = ", ".join(inputs)
    if len(files) == 1:
        return Corpus(source, lambda: read_pieces(files[0]), continuous=True)
    return Corpus(source, lambda: ("".join(read_pieces(path)) for path in files))


class Survey:
    """One pass over the documents of a corpus: how many there are, how long, their hash and their characters."""

    def __init__(self, corpus: Corpus):
        self.documents = self.characters = 0
        self.excerpt = ""
        digest = hashlib.sha256()
        seen = np.zeros(tokenizers.CODE_POINTS, dtype=bool)
        for text in chain(corpus.documents(), corpus.validation() if corpus.validation else ()):
            self.documents += 1
            self.characters += len(text)
            self.excerpt = self.excerpt or text[:200].strip()
            digest.update(text.encode("utf-8"))
            seen[tokenizers.code_points(text)] = True
        self.sha256 = digest.hexdigest()
        self.vocabulary = "".join(map(chr, np.flatnonzero(seen)))


def split(corpus: Corpus, survey: Survey, val_fraction: float) -> Iterator[tuple[str, str]]:
    """Yields each document, or each piece of a continuous text, with its split, "train" or "val"."""
    if corpus.validation:
        yield from (("train", text) for text in corpus.documents())
        yield from (("val", text) for text in corpus.validation())
    elif corpus.continuous:
        left = int(survey.characters * (1 - val_fraction))  # characters that still belong to train
        for text in corpus.documents():
            yield "train", text[:left]
            yield "val", text[left:]
            left = max(0, left - len(text))
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(survey.documents)
        held_back = set(order[: max(1, round(survey.documents * val_fraction))].tolist())
        for i, text in enumerate(corpus.documents()):
            yield ("val" if i in held_back else "train"), text


def write_tokens(
    folder: Path, pieces: Iterable[tuple[str, str]], tokenizer, separator: str
) -> dict[str, dict[str, int]]:
    """Writes <split>.bin of each split; counts its tokens, and the characters and bytes of its text.

    The separator goes between documents; it counts as tokens, not as text, so that bits per byte compare.
    """
    counts = {name: {"tokens": 0, "characters": 0, "bytes": 0} for name in SPLITS}
    with open(folder / "train.bin", "wb") as train, open(folder / "val.bin", "wb") as val:
        files = {"train": train, "val": val}
        for name, text in pieces:
            count = counts[name]
            ids = tokenizer.encode(separator + text if count["tokens"] else text)
            files[name].write(ids.astype("<u2"))
            count["tokens"] += len(ids)
            count["characters"] += len(text)
            count["bytes"] += len(text.encode("utf-8"))
    return counts


def prepare(name: str, inputs: list[str] | None = None, val_fraction: float = 0.1) -> None:
    """Makes data/<name>, from `inputs` (files and folders) or from the corpus that the name begins with.

    Either the whole dataset is there in the end, or what was there before. Raises UserError.
    """
    corpus_name, kind = split_name(name)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, not {val_fraction}", status=2)
    if inputs:
        corpus = read_inputs(inputs)
    elif corpus_name in corpora():
        corpus = importlib.import_module(f"data.{corpus_name}").load(DATA_DIR / "downloads")
    else:
        raise UserError(
            f"there is no corpus {corpus_name}; bring your own text: python prepare.py {name} --input FILE", 2
        )

    survey = Survey(corpus)
    separator = "" if corpus.continuous else SEPARATOR
    if kind == "char":
        tokenizer = tokenizers.CharTokenizer("".join(sorted(set(survey.vocabulary + separator))))
    else:
        tokenizer = tokenizers.ByteTokenizer()
    if tokenizer.vocab_size > MAX_VOCABULARY:
        raise UserError(f"{tokenizer.vocab_size:,} different characters do not fit into uint16; use {corpus_name}_byte")

    folder = DATA_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
        counts = write_tokens(Path(new), split(corpus, survey, val_fraction), tokenizer, separator)
        for part in SPLITS:
            if counts[part]["tokens"] < 2:
                raise UserError(
                    f"{survey.characters:,} characters of text are too few for a training and a validation part"
                )
        meta = {
            "source": corpus.source,
            "sha256": survey.sha256,
            "documents": survey.documents,
            "tokenizer": tokenizer.to_dict(),
            **counts,
        }
        (Path(new) / "meta.json").write_text(json.dumps(meta, indent=1, ensure_ascii=False), encoding="utf-8")
        (folder / "meta.json").unlink(missing_ok=True)  # until the new one is there, the dataset counts as missing
        for file in ("train.bin", "val.bin", "meta.json"):
            os.replace(Path(new) / file, folder / file)
    report(folder, survey, meta, tokenizer)


def report(folder: Path, survey: Survey, meta: dict, tokenizer: tokenizers.Tokenizer) -> None:
    """Prints what a person wants to know of a new dataset."""
    print(f"{folder}: {meta['source']}")
    for part in SPLITS:
        count = meta[part]
        per_token = count["bytes"] / count["tokens"]
        print(
            f"  {part:5}  {count['characters']:>13,} characters  {count['bytes']:>13,} bytes"
            f"  {count['tokens']:>13,} tokens  ({per_token:.2f} bytes each)"
        )
    vocabulary = f"{len(survey.vocabulary)} different characters: {survey.vocabulary[:100]!r}"
    print(f"  vocabulary of {tokenizer.vocab_size} tokens; {vocabulary}{' ...' * (len(survey.vocabulary) > 100)}")
    print(f"  sha256 of the text: {survey.sha256}")
    print("  it begins:\n")
    print("    " + survey.excerpt.replace("\n", "\n    ") + "\n")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="prepare.py", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", help="<corpus>_<tokenizer>, such as shakespeare_char or notes_byte")
    parser.add_argument(
        "--input", nargs="+", metavar="PATH", help="your own text: UTF-8 files, folders of .txt and .md"
    )
    parser.add_argument("--val_fraction", type=float, default=0.1, help="part held back for validation (default: 0.1)")
    args = parser.parse_args(argv)
    if args.dataset:
        prepare(args.dataset, args.input, args.val_fraction)
        return
    print("python prepare.py <corpus>_<tokenizer>, with one of these corpora:")
    for name, about in corpora().items():
        print(f"  {name:12} {about}")
    print(f"or any name for your own text with --input FILE or FOLDER; tokenizers: {', '.join(tokenizers.KINDS)}")


if __name__ == "__main__":
    raise SystemExit(main())
