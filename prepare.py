"""A corpus -> data/<dataset>/{train.bin, val.bin, meta.json}.

python prepare.py shakespeare_char               one of the corpora in data/
python prepare.py notes_byte --input notes.txt   your own files or folders
"""

import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from common import files
from common.cli import Parser, command
from common.dataset import DATA_DIR, SPLITS, UNITS, is_prepared, load_dataset
from common.errors import UserError
from common.tokenizer import (
    CODE_POINTS,
    KINDS,
    BPETokenizer,
    ByteTokenizer,
    CharTokenizer,
    Tokenizer,
    UnknownCharacters,
    code_points,
)
from data import END, Corpus, Text

SPLIT_SEED = 1337  # decides which documents are held back
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
JOB_CHARACTERS = 1 << 20  # that a thread tokenizes at once
MAX_WORKERS = 16  # threads; each needs tens of MB

# ------------------------------------------------------------------------------------------------
# Finding the text


def corpora() -> dict[str, str]:
    """The corpora in data/: name -> description."""
    names = [module.name for module in pkgutil.iter_modules(data.__path__)]
    return {name: importlib.import_module(f"data.{name}").ABOUT for name in names}


def parse_name(name: str) -> tuple[str, str]:
    """The corpus and the kind of tokenizer in a dataset's name. Raises UserError."""
    corpus, _, kind = Path(name).name.rpartition("_")
    if not corpus or kind not in KINDS or Path(name).name != name:
        raise UserError(
            "dataset names are <corpus>_<tokenizer>, with tokenizer char, byte or bpe;"
            f" got {name!r}",
            status=2,
        )
    return corpus, kind


def find_corpus(
    name: str, inputs: list[str] | None, pattern: str | None, limit: int | None, options: dict
) -> Corpus:
    """The text of `inputs`, or one of the corpora in data/, or both if its load() takes `inputs`.

    Raises UserError, also for options that its load() does not take.
    """
    load = importlib.import_module(f"data.{name}").load if name in corpora() else None
    known = inspect.signature(load).parameters if load else {}
    if inputs and "inputs" not in known:
        if options:
            raise UserError(f"--{min(options)} can't be combined with --input", status=2)
        return read_inputs(inputs, pattern)
    if not load:
        raise UserError(
            f"there is no corpus {name}; for your own text: python prepare.py {name}_char"
            " --input FILE",
            2,
        )
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(f"the corpus {name} has no option --{unknown[0]}", status=2)
    given = {"inputs": inputs, "pattern": pattern, "limit": limit}
    options = options | {key: value for key, value in given.items() if value and key in known}
    return load(DATA_DIR / "downloads", **options)


def read_inputs(inputs: list[str], pattern: str | None) -> Corpus:
    """Each file is a document; of folders, the files that match the pattern. Raises UserError."""
    paths = files.find(inputs, [pattern] if pattern else ["*.txt", "*.md"])

    def text() -> Text:
        for path in paths:
            yield from files.read_pieces(path)
            yield END

    return Corpus(", ".join(inputs), text)


def numbered(text: Text) -> Iterator[tuple[int, str]]:
    """Yields each piece with the number of its document; documents without text don't count."""
    number, empty = 0, True
    for piece in text:
        if piece:
            yield number, piece
            empty = False
        elif piece is END and not empty:
            number, empty = number + 1, True


def limited(corpus: Corpus, limit: int) -> Corpus:
    """The first documents that fit into `limit` bytes together; a single document is cut there."""
    sizes = []  # of the documents, in bytes
    for number, piece in numbered(corpus.text()):
        if number == len(sizes):
            sizes.append(0)
        sizes[number] += len(piece.encode("utf-8"))
    if len(sizes) == 1:
        return Corpus(corpus.source, lambda: beginning(corpus.text(), limit))
    count = sum(1 for total in accumulate(sizes) if total <= limit)
    return Corpus(corpus.source, lambda: first_documents(corpus.text(), count))


def beginning(text: Text, limit: int) -> Text:
    """The first `limit` bytes of a text, without a character that is cut in two."""
    for piece in filter(None, text):
        content = piece.encode("utf-8")
        yield content[:limit].decode("utf-8", errors="ignore")
        limit -= len(content)
        if limit <= 0:
            return


def first_documents(text: Text, count: int) -> Text:
    last = 0
    for number, piece in numbered(text):
        if number == count:
            return
        if number > last:
            yield END
        yield piece
        last = number


# ------------------------------------------------------------------------------------------------
# From text to files, in two passes that each hold only a few pieces of the text in memory


@dataclass
class Survey:
    """What the first pass finds out."""

    documents: list[int]  # their number in the text and, if the corpus has it, the validation text
    characters: int
    sha256: str
    vocabulary: str  # the different characters, sorted
    excerpt: str  # the beginning of the text


def parts(corpus: Corpus) -> list[Text]:
    return [corpus.text(), corpus.validation()] if corpus.validation else [corpus.text()]


def survey(corpus: Corpus) -> Survey:
    """Reads the corpus once."""
    documents, characters, excerpt = [], 0, ""
    digest = hashlib.sha256()
    seen = np.zeros(CODE_POINTS, dtype=bool)
    for part in parts(corpus):
        count = 0
        for number, text in numbered(part):
            count = number + 1
            characters += len(text)
            excerpt = excerpt or text[:200].strip()
            content = text.encode("utf-8")
            digest.update(content)
            # dropping ASCII already seen, usually all of it, is faster than checking every character
            known = np.flatnonzero(seen[:128]).astype(np.uint8).tobytes()
            seen[code_points(content.translate(None, delete=known).decode("utf-8"))] = True
        documents.append(count)
    vocabulary = "".join(map(chr, np.flatnonzero(seen)))
    return Survey(documents, characters, digest.hexdigest(), vocabulary, excerpt)


def split(corpus: Corpus, found: Survey, val_fraction: float) -> Iterator[tuple[str, int, str]]:
    """Yields each piece of text with its split, "train" or "val", and the number of its document."""
    if corpus.validation:  # the corpus is already split
        for name, part in zip(SPLITS, parts(corpus)):
            for number, text in numbered(part):
                yield name, number, text
    elif found.documents == [1]:  # hold back the end of the text
        left = int(found.characters * (1 - val_fraction))  # characters still to train on
        for number, text in numbered(corpus.text()):
            if left > 0:
                yield "train", number, text[:left]
            if left < len(text):
                yield "val", number, text[left:]
            left = max(0, left - len(text))
    else:  # hold back whole documents
        documents = found.documents[0]
        order = np.random.default_rng(SPLIT_SEED).permutation(documents)
        count = min(max(1, round(documents * val_fraction)), documents - 1)
        held_back = set(order[:count].tolist())
        for number, text in numbered(corpus.text()):
            yield ("val" if number in held_back else "train"), number, text


def jobs(pieces: Iterable[tuple[str, int, str]]) -> Iterator[tuple[str, list[list[str]]]]:
    """Joins pieces of one split into jobs of about JOB_CHARACTERS: documents, each in pieces.

    The first document of a job is the rest of the one before, without any piece if that had ended.
    """
    name, job, size = "", [[]], 0
    latest = {}  # split -> number of its latest document
    for split, number, text in pieces:
        if size and (split != name or size + len(text) > JOB_CHARACTERS):
            yield name, job
            job, size = [[]], 0
        if latest.get(split, number) != number:
            job.append([])
        job[-1].append(text)
        size += len(text)
        name, latest[split] = split, number
    if size:
        yield name, job


def write_tokens(
    folder: Path, pieces: Iterable[tuple[str, int, str]], tokenizer: Tokenizer
) -> dict[str, dict[str, int]]:
    """Writes train.bin and val.bin; returns their numbers of tokens, characters and bytes.

    Separators between documents count as tokens but not as text, so that bits per byte compare.
    """

    def encode(job: tuple[str, list[list[str]]]) -> tuple[str, np.ndarray, int, int]:
        name, documents = job
        ids, characters, n_bytes = [], 0, 0
        for i, document in enumerate(documents):
            text = "".join(document)
            if i > 0:
                ids.append(tokenizer.separator)
            ids.append(tokenizer.encode(text))
            characters += len(text)
            n_bytes += len(text.encode("utf-8"))
        return name, np.concatenate(ids).astype("<u2"), characters, n_bytes

    counts = {name: dict.fromkeys(UNITS, 0) for name in SPLITS}
    todo = jobs(pieces)
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "val.bin", "wb") as val,
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="tokens", unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        bins = {"train": train, "val": val}
        while batch := list(islice(todo, workers)):  # map() would read the whole corpus ahead
            for name, ids, characters, n_bytes in pool.map(encode, batch):
                bins[name].write(ids)
                for unit, count in zip(UNITS, (len(ids), characters, n_bytes)):
                    counts[name][unit] += count
                bar.update(n_bytes)
    return counts


def make_tokenizer(kind: str, characters: str, tokenizer_of: str | None = None) -> Tokenizer:
    """A tokenizer for text with these characters, or that of the dataset `tokenizer_of`.

    Raises UserError if its ids don't fit into uint16, or it can't encode the text.
    """
    if tokenizer_of:
        return reuse_tokenizer(tokenizer_of, kind, characters)
    if kind == "byte":
        return ByteTokenizer()
    if kind == "bpe":
        return BPETokenizer()
    tokenizer = CharTokenizer("".join(sorted(set(characters))))
    if tokenizer.vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"{tokenizer.vocab_size:,} different characters: ids above {MAX_VOCABULARY - 1:,}"
            " don't fit into uint16; use bytes (..._byte) or BPE (..._bpe)"
        )
    return tokenizer


def reuse_tokenizer(dataset: str, kind: str, characters: str) -> Tokenizer:
    """The tokenizer of a dataset. Raises UserError if it has another kind or lacks a character."""
    tokenizer = load_dataset(dataset).tokenizer
    if tokenizer.kind != kind:
        raise UserError(f"{dataset} uses {tokenizer.kind} tokens, not {kind} tokens", status=2)
    try:
        tokenizer.encode(characters)
    except UnknownCharacters as error:
        raise UserError(f"{dataset}'s tokenizer can't encode this text: it has {error}") from None
    return tokenizer


# ------------------------------------------------------------------------------------------------
# Preparing a dataset


def prepare(
    name: str,
    inputs: list[str] | None = None,
    pattern: str | None = None,
    val_fraction: float = 0.1,
    limit: int | None = None,
    tokenizer_of: str | None = None,
    **options,
) -> None:
    """Makes data/<name>, from `inputs` (files and folders), a corpus in data/, or both.

    limit: bytes of text; tokenizer_of: a dataset whose tokenizer is used, so that its models can be
    fine-tuned on this text; options: those of the corpus's load(). Replaces the dataset as a whole.
    If interrupted, the old one stays (or, during the swap itself, none); never a mixture. Raises
    UserError.
    """
    corpus_name, kind = parse_name(name)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must be between 0 and 1, not {val_fraction}", status=2)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}", status=2)
    if pattern and not inputs:
        raise UserError("--pattern needs --input", status=2)
    corpus = find_corpus(corpus_name, inputs, pattern, limit, options)
    make_dataset(name, kind, corpus, val_fraction, limit, tokenizer_of)


def make_dataset(
    name: str,
    kind: str,
    corpus: Corpus,
    val_fraction: float = 0.1,
    limit: int | None = None,
    tokenizer_of: str | None = None,
) -> None:
    """Makes data/<name> of a corpus, with tokens of this kind; the rest is as in `prepare`."""
    if limit:
        corpus = limited(corpus, limit)

    # first pass: what is in the text
    found = survey(corpus)
    documents = sum(found.documents)
    separator = "\n" if max(found.documents) > 1 else ""  # the tokenizer must know it
    tokenizer = make_tokenizer(kind, found.vocabulary + separator, tokenizer_of)

    # second pass: its tokens, in a new folder
    folder = DATA_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
            new = Path(temporary)
            counts = write_tokens(new, split(corpus, found, val_fraction), tokenizer)
            if min(counts[part]["tokens"] for part in SPLITS) < 2:
                raise UserError(
                    f"{found.characters:,} characters in {documents:,} documents are too few for a"
                    " training and a validation part"
                )
            meta = {
                "source": corpus.source,
                "limit": limit,
                "sha256": found.sha256,
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


def prepare_missing(name: str) -> None:
    """Prepares one of the corpora in data/, unless it is prepared already. Raises UserError."""
    if not is_prepared(name):
        print(f"preparing the dataset: python prepare.py {name}")
        prepare(name)


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
    documents = f" ({meta['documents']:,} documents)" if meta["documents"] > 1 else ""
    print(f"{folder}: {meta['source']}{documents}")
    for name in SPLITS:
        tokens, characters, n_bytes = (meta[name][unit] for unit in UNITS)
        print(
            f"  {name:5}  {characters:>13,} characters  {n_bytes:>13,} bytes  {tokens:>13,} tokens"
            f"  ({n_bytes / tokens:.2f} bytes each)"
        )
    more = " ..." if len(found.vocabulary) > 100 else ""
    print(
        f"  vocabulary of {tokenizer.vocab_size:,} tokens; {len(found.vocabulary):,} different"
        f" characters: {found.vocabulary[:100]!r}{more}"
    )
    print(f"  sha256 of the text: {found.sha256}")
    print("  it begins:\n\n    " + found.excerpt.replace("\n", "\n    ") + "\n")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="prepare.py", description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("dataset", nargs="?", help="<corpus>_<tokenizer>, such as shakespeare_char or notes_byte")
    add(
        "--input",
        nargs="+",
        metavar="PATH",
        help="your own text: UTF-8 files and folders; for python, code to add to the library",
    )
    add("--pattern", help="files to take from folders (default: *.txt and *.md; for python *.py)")
    add(
        "--val_fraction",
        type=float,
        default=0.1,
        help="fraction of the text for validation (default: 0.1)",
    )
    add("--limit", type=int, metavar="BYTES", help="use at most this much text")
    add(
        "--tokenizer_of",
        metavar="DATASET",
        help="use this dataset's tokenizer, to fine-tune its models with --init_from",
    )
    add("--category", help="robotics: arXiv's category (default: cs.RO)")
    add("--max_results", type=int, help="robotics: number of papers (default: 5000)")
    args = parser.parse_args(argv)
    if not args.dataset:
        print("python prepare.py <corpus>_<tokenizer>, with one of these corpora:")
        for name, about in corpora().items():
            print(f"  {name:12} {about}")
        print(
            "or any name for your own text, with --input FILE or FOLDER;"
            f" tokenizers: {', '.join(KINDS)}"
        )
        return
    given = {"category": args.category, "max_results": args.max_results}
    options = {name: value for name, value in given.items() if value is not None}
    prepare(
        args.dataset,
        args.input,
        args.pattern,
        args.val_fraction,
        args.limit,
        args.tokenizer_of,
        **options,
    )


if __name__ == "__main__":
    raise SystemExit(main())
