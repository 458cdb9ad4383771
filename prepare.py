"""Turns a corpus into a dataset: data/<dataset>/{train.bin, val.bin, meta.json}.

python prepare.py shakespeare_char               one of the corpora in data/
python prepare.py python_bpe4096                 with a vocabulary of 4,096 tokens, trained on it
python prepare.py notes_byte --input notes.txt   your own files, folders or JSON Lines
"""

import importlib
import inspect
import json
import os
import pkgutil
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from common import bpe
from common.cli import Parser, command, command_for, escape_controls, unescape
from common.dataset import SPLITS, UNITS, is_prepared, load_dataset
from common.errors import UserError
from common.files import data_dir, locked
from common.inputs import read_inputs
from common.survey import (
    CHANGED,
    LEFT_OUT,
    TRAIN,
    VAL,
    Survey,
    adapt,
    assign,
    limited,
    numbered,
    sha256_of,
    split,
    survey,
    training_sample,
)
from common.tokenizer import (
    END_OF_TEXT,
    KINDS,
    NUL,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    TrainedBPETokenizer,
    UnknownCharacters,
    from_dict,
    trained_size,
)
from data import Corpus

VAL_FRACTION = 0.1  # of the text, for validation
MIN_VOCABULARY = 256  # tokens in a trained vocabulary
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
JOB_CHARACTERS = 1 << 20  # characters that a thread tokenizes at once
MAX_WORKERS = 16  # threads; each needs tens of MB

# -------------------------------------------------------------------------------------------------
# finding the text


def corpora() -> list[str]:
    """The names of the modules in data/."""
    return [module.name for module in pkgutil.iter_modules(data.__path__)]


def parse_name(name: str) -> tuple[str, str]:
    """The corpus and the kind of tokenizer in a dataset's name. Raises UserError."""
    corpus, _, kind = Path(name).name.rpartition("_")
    size = trained_size(kind)
    if not corpus or not (size or kind in KINDS) or Path(name).name != name:
        raise UserError(
            "dataset names are <corpus>_<tokenizer>, with tokenizer char, byte, bpe (GPT-2's) or"
            f" bpe with a vocabulary size, such as bpe4096; got {name!r}",
            status=2,
        )
    if size and not MIN_VOCABULARY <= size <= MAX_VOCABULARY:
        raise UserError(
            f"{kind}: a trained vocabulary has {MIN_VOCABULARY} to {MAX_VOCABULARY:,} tokens"
            f" (bpe{MIN_VOCABULARY} to bpe{MAX_VOCABULARY})",
            status=2,
        )
    return corpus, kind


def find_corpus(
    name: str, kind: str, inputs: list[str] | None, limit: int | None, options: dict
) -> Corpus:
    """The text of `inputs`, or one of the corpora in data/, or both if its load() takes `inputs`.

    Raises UserError if the corpus is unknown or an option does not apply.
    """
    module = importlib.import_module(f"data.{name}") if name in corpora() else None
    load = getattr(module, "load", None)  # none: a script of the user's
    of_corpus = inspect.signature(load).parameters if load else {}
    of_inputs = inspect.signature(read_inputs).parameters
    if not inputs and (unused := sorted(options.keys() & of_inputs.keys())):
        raise UserError(f"--{unused[0]} needs --input", status=2)
    if inputs and "inputs" not in of_corpus:
        if unknown := sorted(options.keys() - of_inputs.keys()):
            raise UserError(f"--{unknown[0]} can't be combined with --input", status=2)
        if load:
            print(f"note: using --input instead of the built-in corpus {name}")
        return read_inputs(inputs, **options)
    if not load:
        raise UserError(
            f"unknown corpus {name}; to prepare your own text, run:"
            f" {command_for('prepare.py')} {name}_{kind} --input FILE",
            2,
        )
    if unknown := sorted(options.keys() - of_corpus.keys()):
        raise UserError(f"the corpus {name} has no option --{unknown[0]}", status=2)
    given = {"inputs": inputs, "limit": limit}
    options = options | {key: value for key, value in given.items() if value and key in of_corpus}
    return load(data_dir() / "downloads", **options)


# -------------------------------------------------------------------------------------------------
# from text to files, in passes that each hold only a few pieces of the text in memory


def jobs(pieces: Iterable[tuple[str, int, str]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Joins the pieces of each split into jobs of about JOB_CHARACTERS: documents, each in pieces.

    The first document of a job continues the last one of the job before; if that one had ended, it
    is empty.
    """
    waiting = {name: [[]] for name in SPLITS}
    sizes = dict.fromkeys(SPLITS, 0)
    latest = {}  # split -> number of its latest document
    for name, number, text in pieces:
        if sizes[name] and sizes[name] + len(text) > JOB_CHARACTERS:
            yield name, waiting[name]
            waiting[name], sizes[name] = [[]], 0
        if latest.get(name, number) != number:
            waiting[name].append([])
        waiting[name][-1].append(text)
        sizes[name] += len(text)
        latest[name] = number
    for name in SPLITS:
        if sizes[name]:
            yield name, waiting[name]


def n_bytes(text: str) -> int:
    """The length of a text in UTF-8."""
    return len(text) if text.isascii() else len(text.encode("utf-8"))


def write_tokens(
    folder: Path, pieces: Iterable[tuple[str, int, str]], tokenizer: Tokenizer
) -> dict[str, dict[str, int]]:
    """Writes train.bin and val.bin; returns their numbers of tokens, characters and bytes.

    Separators between documents count as tokens but not as text, so that bits per byte compare.
    """

    def encode(job: tuple[str, list[list[str]]]) -> tuple[str, np.ndarray, int, int]:
        name, documents = job
        texts = ["".join(parts) for parts in documents]
        ids = tokenizer.encode_documents(texts).astype("<u2")
        return name, ids, sum(map(len, texts)), sum(map(n_bytes, texts))

    counts = {name: dict.fromkeys(UNITS, 0) for name in SPLITS}
    todo = jobs(pieces)
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "val.bin", "wb") as val,
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="tokens", unit="", unit_scale=True, disable=None, leave=False) as bar,
    ):
        bins = {"train": train, "val": val}
        while batch := list(islice(todo, workers)):  # map() would read the whole corpus ahead
            for name, ids, *lengths in pool.map(encode, batch):
                bins[name].write(ids)
                for unit, count in zip(UNITS, (len(ids), *lengths)):
                    counts[name][unit] += count
                bar.update(len(ids))
        for file in bins.values():  # so that a crash after swap() can't leave them empty
            file.flush()
            os.fsync(file.fileno())
    return counts


def make_tokenizer(kind: str, characters: str, separator: str | None = None) -> Tokenizer:
    """A tokenizer for text with these characters, and documents with this between them.

    Raises UserError if its ids don't fit into uint16.
    """
    if kind == "byte":
        return ByteTokenizer(separator)
    if kind == "bpe":
        return BPETokenizer(END_OF_TEXT if separator else None)
    tokenizer = CharTokenizer("".join(sorted({*characters, *(separator or "")})), separator)
    if tokenizer.vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"{tokenizer.vocab_size:,} different characters: ids above {MAX_VOCABULARY - 1:,}"
            " don't fit into uint16; use bytes (..._byte) or BPE (..._bpe4096)"
        )
    return tokenizer


def train_tokenizer(size: int, texts: list[str], separator: str | None) -> TrainedBPETokenizer:
    """A tokenizer of `size` tokens, trained on these texts. Raises UserError if they yield fewer.

    separator: None if there are no documents to separate.
    """
    print(f"training a vocabulary on {sum(map(len, texts)):,} characters of the training part")
    merged = bpe.train(texts, size - len(bpe.BYTES) - 1)
    tokenizer = TrainedBPETokenizer(merged, END_OF_TEXT if separator else None)
    if (most := tokenizer.vocab_size) < size:
        smaller = f"bpe{1 << most.bit_length() - 1}" if most >= MIN_VOCABULARY else "byte"
        raise UserError(
            f"the training text yields only {most:,} tokens, not {size:,}: use a smaller"
            f" vocabulary (..._{smaller}) or more text"
        )
    return tokenizer


def other_tokenizer(dataset: str, kind: str) -> Tokenizer:
    """The tokenizer of another dataset. Raises UserError if it is not of this kind."""
    parse_name(dataset)
    tokenizer = load_dataset(dataset).tokenizer
    if tokenizer.kind != kind:
        raise UserError(
            f"{dataset} uses {tokenizer.kind} tokens, not {kind} tokens: name yours"
            f" ..._{tokenizer.kind}",
            status=2,
        )
    return tokenizer


def reuse_tokenizer(
    other: Tokenizer, dataset: str, separator: str | None, given: bool, blank_line: str
) -> Tokenizer:
    """The tokenizer `other` of a dataset, for text with this separator, or without one if None.

    given: the user asked for this one; otherwise that of `other` takes its place. blank_line: goes
    between documents that have no separator. Raises UserError if the tokenizer lacks the newline.
    """
    if other.kind != "char":
        if isinstance(other, BPETokenizer):
            separator = separator and END_OF_TEXT
        elif not given:
            separator = separator and (other.separator or NUL)
        return from_dict(other.to_dict() | {"separator": separator})
    known = set(other.characters)
    if separator and not (given and set(separator) <= known):
        instead = other.separator or (NUL if NUL in known else None)
        if given:
            mark = repr(instead) if instead else "a blank line"
            print(f"note: {dataset} does not know all of {separator!r}: {mark} takes its place")
        separator = instead
    if not separator and not set(blank_line) <= known:
        raise UserError(
            f"{dataset}'s tokenizer has no newline to put between documents: prepare both datasets"
            " with bytes (..._byte)"
        )
    return CharTokenizer(other.characters, separator)


# -------------------------------------------------------------------------------------------------
# preparing a dataset


def prepare(
    name: str,
    inputs: list[str] | None = None,
    val_fraction: float = VAL_FRACTION,
    limit: int | None = None,
    tokenizer_of: str | None = None,
    replace_unknown: bool = False,
    **options,
) -> None:
    """Makes data/<name>, from `inputs` (see read_inputs), a corpus in data/, or both.

    limit: bytes of text. tokenizer_of: a dataset whose tokenizer is used, so that its models can be
    fine-tuned on this text; replace_unknown: replace characters that it does not know. options:
    those of read_inputs or of the corpus's load(). Replaces the dataset as a whole: if interrupted,
    the old one stays (or, during the swap itself, none); never a mixture. Raises UserError, also if
    another process is preparing the same dataset.
    """
    corpus_name, kind = parse_name(name)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must be between 0 and 1, not {val_fraction}", status=2)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}", status=2)
    if replace_unknown and not (tokenizer_of and kind == "char"):
        raise UserError("--replace_unknown needs a char dataset and --tokenizer_of", status=2)
    separator = options.get("separator")
    corpus = find_corpus(corpus_name, kind, inputs, limit, options)
    if corpus.validation and val_fraction != VAL_FRACTION:
        raise UserError(
            f"{corpus_name} comes with its own validation text: drop --val_fraction", status=2
        )
    make_dataset(name, kind, corpus, val_fraction, limit, tokenizer_of, replace_unknown, separator)


def prepare_missing(name: str) -> None:
    """Prepares one of the corpora in data/, unless it is prepared already. Raises UserError."""
    if not is_prepared(name):
        print(f"preparing the dataset: {command_for('prepare.py')} {name}")
        prepare(name)


def make_dataset(
    name: str,
    kind: str,
    corpus: Corpus,
    val_fraction: float = VAL_FRACTION,
    limit: int | None = None,
    tokenizer_of: str | None = None,
    replace_unknown: bool = False,
    separator: str | None = None,
) -> None:
    """Makes data/<name> of a corpus, with tokens of this kind; the rest is as in `prepare`.

    separator: what divided the text into documents; char and byte tokens also keep it between them.
    """
    other = other_tokenizer(tokenizer_of, kind) if tokenizer_of else None
    if limit:
        corpus = limited(corpus, limit)
    original = corpus

    # first pass: what is in the text
    found = survey(corpus)
    for warning in found.warnings:
        print(f"warning: {warning}")
    if other:
        corpus, found = adapt(original, found, other, tokenizer_of, replace_unknown)
    assignment = assign(found, val_fraction)
    if "\r" in found.vocabulary and (assignment == LEFT_OUT).any():  # perhaps in copies only
        pieces = split(corpus, found, assignment, val_fraction)
        found.vocabulary = survey(Corpus("", lambda: (text for *_, text in pieces))).vocabulary
    documents = int((assignment != LEFT_OUT).sum())

    sizes = np.array(found.sizes)
    if not documents:
        raise UserError("the input is empty or contains only white space")

    # the tokenizer; no separator unless training sees one, because samples start from it
    several = [(assignment == part).sum() > 1 for part in (TRAIN, VAL)]
    between = (separator or NUL) if several[TRAIN] else None
    blank_line = "\n" if any(several) else ""  # goes between documents that have no separator
    if other:
        given = separator is not None
        tokenizer = reuse_tokenizer(other, tokenizer_of, between, given, blank_line)
    elif size := trained_size(kind):
        pieces = split(corpus, found, assignment, val_fraction)
        fraction = 1 - val_fraction if documents == 1 else 1  # a single text is cut
        sample = training_sample(pieces, fraction * sizes[assignment == TRAIN].sum())
        tokenizer = train_tokenizer(size, sample, between)
    else:
        characters = found.vocabulary + ("" if between else blank_line)
        tokenizer = make_tokenizer(kind, characters, between)
    tokenizer.divider = separator if several[TRAIN] else None
    # documents can't contain the --separator that divided them, unless adapt() has since turned a
    # carriage return into a newline; BPE's separator is a token, not text
    end = None if isinstance(tokenizer, BPETokenizer) else tokenizer.separator
    absent = end == separator and corpus is original
    possible = end and not absent and set(end) <= set(found.vocabulary)
    if possible and any(end in piece for _, _, piece in numbered(*corpus.texts())):
        print(f"warning: {end!r} is in the text, and stands for the end of a document here")

    # second pass: its tokens, in a new folder
    folder = data_dir() / name
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is not a folder: move it, or choose another name") from None
    try:
        with new_folder(folder) as new:
            try:
                pieces = split(corpus, found, assignment, val_fraction)
                counts = write_tokens(new, pieces, tokenizer)
            except UnknownCharacters:
                raise UserError(CHANGED) from None
            part = min(SPLITS, key=lambda part: counts[part]["tokens"])
            if counts[part]["tokens"] < 2:
                noun = "documents" if documents > 1 else "document"
                raise UserError(
                    f"too little text for {part}.bin:"
                    f" {sizes[assignment != LEFT_OUT].sum():,} characters in {documents:,} {noun},"
                    f" with a val_fraction of {val_fraction:g}"
                )
            meta = {
                "source": corpus.source,
                "limit": limit,
                "sha256": sha256_of(found, assignment),
                "documents": documents,
                "tokenizer": tokenizer.to_dict(),
                **counts,
            }
            (new / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            swap(new, folder)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    report(folder, meta, found, tokenizer)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder in `folder`. Removes those that killed processes have left there.

    Raises UserError if another process is writing there now.
    """
    with locked(folder, f"another program is preparing {folder}: wait until it has finished"):
        for left in folder.glob(".new-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            yield Path(temporary)


def swap(new: Path, folder: Path) -> None:
    """Replaces the dataset in folder; it counts as present only once meta.json is in place."""
    meta, old = folder / "meta.json", new / "meta.old.json"
    if meta.exists():
        meta.rename(old)
    try:
        for file in ("train.bin", "val.bin", "meta.json"):
            os.replace(new / file, folder / file)
    except PermissionError as error:  # Windows refuses if another program has the file open
        if old.exists() and (new / "train.bin").exists():  # nothing was replaced yet
            old.rename(meta)
        raise UserError(f"{error.filename2} is in use: end the run that reads it first") from None


def report(folder: Path, meta: dict, found: Survey, tokenizer: Tokenizer) -> None:
    """Prints a summary of a new dataset."""
    several = meta["documents"] > 1 + bool(found.own_validation)
    documents = f" ({meta['documents']:,} documents)" if several else ""
    print(f"{folder}: {meta['source']}{documents}")
    for name in SPLITS:
        tokens, characters, size = (meta[name][unit] for unit in UNITS)
        print(
            f"  {name:5}  {characters:>13,} characters  {size:>13,} bytes  {tokens:>13,} tokens"
            f"  ({size / tokens:.2f} bytes each)"
        )
    more = " ..." if len(found.vocabulary) > 100 else ""
    print(
        f"  vocabulary of {tokenizer.vocab_size:,} tokens; {len(found.vocabulary):,} different"
        f" characters: {found.vocabulary[:100]!r}{more}"
    )
    if "\r" in found.vocabulary:
        print("  the text keeps its carriage returns; dos2unix removes those of Windows line ends")
    if isinstance(tokenizer, TrainedBPETokenizer):
        describe_vocabulary(folder, tokenizer)
    print(f"  sha256 of the text: {meta['sha256']}")
    print("  it begins:\n\n    " + escape_controls(found.excerpt).replace("\n", "\n    ") + "\n")


def describe_vocabulary(folder: Path, tokenizer: TrainedBPETokenizer) -> None:
    """Prints the most frequent and the longest tokens, and how much of a model they will be."""
    from model import GPTConfig, count_parameters  # here, because importing torch takes a second

    ids, counts = np.memmap(folder / "train.bin", "<u2", "r"), 0
    for start in range(0, len(ids), 1 << 20):
        counts += np.bincount(ids[start : start + (1 << 20)], minlength=tokenizer.vocab_size)
    most = np.argsort(-counts, kind="stable")[:15]
    frequent = [tokenizer.to_bytes([i]) for i in most if counts[i]]
    # not rows of spaces and dashes, which would be the longest
    words = [t for t in tokenizer.tokens if t.decode("utf-8", "replace").strip(" _").isidentifier()]
    longest = sorted(words, key=len, reverse=True)[:8]
    print(f"  most frequent tokens: {' '.join(map(quoted, frequent))}")
    print(f"  longest tokens (words only): {' '.join(map(quoted, longest))}")
    config = GPTConfig(vocab_size=tokenizer.vocab_size)
    embedding, total = config.vocab_size * config.d_model, count_parameters(config)
    print(
        f"  embedding at the default width of {config.d_model}: {embedding:,} of the model's"
        f" {total:,} parameters ({embedding / total:.0%})"
    )


def quoted(token: bytes) -> str:
    """The token as text in quotation marks, or as bytes if it is a part of a character."""
    try:
        return repr(token.decode("utf-8"))
    except UnicodeDecodeError:
        return repr(token)


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="prepare.py", description=__doc__)
    add = parser.add_argument
    add(
        "dataset", nargs="?", help="<corpus>_<tokenizer>, such as shakespeare_char or notes_bpe4096"
    )
    add(
        "--input",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="your own text: files, folders, or - for standard input; with python_*, more code",
    )
    parser.add_text("--pattern", help="files to read in folders: '**/*.rst' (default: *.txt, *.md)")
    parser.add_text(
        "--separator",
        type=unescape,
        help=r"text between two documents of a file, such as '\n' if each line is one",
    )
    add(
        "--field",
        nargs="+",
        action="extend",
        help="the input is JSON Lines; a document is these fields of a line",
    )
    add("--encoding", help="encoding of the input, by its Python name (default: utf-8)")
    add("--skip_undecodable", action="store_true", help="leave out files that can't be decoded")
    add(
        "--val_fraction",
        type=float,
        default=VAL_FRACTION,
        help=f"fraction of the text for validation (default: {VAL_FRACTION})",
    )
    add("--limit", type=int, metavar="BYTES", help="use only the first BYTES of the text")
    add(
        "--tokenizer_of",
        metavar="DATASET",
        help="use this dataset's tokenizer, to fine-tune its models with --init_from",
    )
    add(
        "--replace_unknown",
        action="store_true",
        help="replace or remove characters that the tokenizer of --tokenizer_of does not know",
    )
    add("--category", help="robotics: arXiv's category (default: cs.RO)")
    add("--max_results", type=int, help="robotics: number of papers (default: 5000)")
    args = vars(parser.parse_args(argv))
    if name := args.pop("dataset"):
        given = {
            key: value for key, value in args.items() if value is not None and value is not False
        }
        prepare(name, given.pop("input", None), **given)
        return
    if argv:
        example = "python prepare.py notes_char --input notes.txt"
        raise UserError(f"name the dataset before its options, as in {example}", status=2)
    print("python prepare.py <corpus>_<tokenizer>, with one of these corpora:")
    for name in corpora():
        if about := getattr(importlib.import_module(f"data.{name}"), "ABOUT", None):
            print(f"  {name:12} {about}")
    print("or any name for your own text, with --input FILE or FOLDER; tokenizers: char, byte,")
    print(f"bpe (GPT-2's), or bpe{MIN_VOCABULARY} to bpe{MAX_VOCABULARY}, trained on the text")


if __name__ == "__main__":
    raise SystemExit(main())
