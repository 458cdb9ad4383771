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
from dataclasses import replace
from itertools import accumulate, chain, islice, takewhile
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
from common import files
from common import tokenizer as tokenizers
from common.cli import Parser, command
from common.dataset import DATA_DIR, SPLITS, load_dataset
from common.errors import UserError
from data import Corpus

SPLIT_SEED = 1337  # decides which documents are held back
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
PIECE = 1 << 20  # characters that a thread tokenizes at once
MAX_WORKERS = 16  # threads: each holds a piece in several forms, tens of MB

# ---------------------------------------------------------------------------------------------------------------------
# where the text comes from


def corpora() -> dict[str, str]:
    """The corpora that come with the project: name -> what it is."""
    names = [module.name for module in pkgutil.iter_modules(data.__path__)]
    modules = {name: importlib.import_module(f"data.{name}") for name in names}
    return {name: module.ABOUT for name, module in modules.items() if hasattr(module, "load")}


def split_name(name: str) -> tuple[str, str]:
    """A dataset's name -> its corpus and the kind of its tokenizer. Raises UserError."""
    corpus, _, kind = Path(name).name.rpartition("_")
    if not corpus or kind not in tokenizers.KINDS or Path(name).name != name:
        kinds = ", ".join(tokenizers.KINDS)
        raise UserError(
            f"a dataset is called <corpus>_<tokenizer> with a tokenizer of {kinds}; {name!r} is not",
            status=2,
        )
    return corpus, kind


def find_corpus(
    name: str, inputs: list[str] | None, pattern: str | None, limit: int | None, options: dict
) -> Corpus:
    """The text of `inputs`, or one of the project's corpora, or both where its load() takes `inputs`.

    Options that its load() does not take are refused. Raises UserError.
    """
    load = importlib.import_module(f"data.{name}").load if name in corpora() else None
    known = inspect.signature(load).parameters if load else {}
    if inputs and "inputs" not in known:
        if options:
            raise UserError(f"--{min(options)} does not go with --input", status=2)
        return read_inputs(inputs, pattern)
    if not load:
        raise UserError(
            f"there is no corpus {name}; bring your own text: python prepare.py {name}_char --input FILE",
            2,
        )
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(f"the corpus {name} takes no --{unknown[0]}", status=2)
    given = {"inputs": inputs, "pattern": pattern, "limit": limit}
    options = options | {key: value for key, value in given.items() if value and key in known}
    return load(DATA_DIR / "downloads", **options)


def read_inputs(inputs: list[str], pattern: str | None) -> Corpus:
    """One file as one continuous text; several files, or those of folders that match the pattern, as documents."""
    paths = files.find(inputs, [pattern] if pattern else ["*.txt", "*.md"])
    source = ", ".join(inputs)
    if len(paths) == 1:
        return Corpus(source, lambda: files.read_pieces(paths[0]), continuous=True)
    return Corpus(source, lambda: map(files.read_pieces, paths))


def limited(corpus: Corpus, limit: int) -> Corpus:
    """The first documents that fit into `limit` bytes together; of a continuous text, up to the last byte."""
    if corpus.continuous:
        return replace(
            corpus, documents=lambda: beginning(corpus.documents(), limit), validation=None
        )
    sizes = (
        sum(len(text.encode("utf-8")) for text in texts(document))
        for document in corpus.documents()
    )
    count = sum(1 for _ in takewhile(lambda size: size <= limit, accumulate(sizes)))
    return replace(corpus, documents=lambda: islice(corpus.documents(), count), validation=None)


def beginning(pieces: Iterable[str], limit: int) -> Iterator[str]:
    """The first `limit` bytes of a text in pieces, without a character that is cut in two."""
    for text in pieces:
        content = text.encode("utf-8")
        yield content[:limit].decode("utf-8", errors="ignore")
        if (limit := limit - len(content)) <= 0:
            return


# ---------------------------------------------------------------------------------------------------------------------
# from text to files: one pass to survey it, one to tokenize it, neither with more than some pieces in memory


def texts(document: str | Iterable[str]) -> Iterable[str]:
    """The pieces of a document; a str is one."""
    return [document] if isinstance(document, str) else document


def in_pieces(
    documents: Iterable[str | Iterable[str]], continuous: bool
) -> Iterator[tuple[bool, str]]:
    """Yields the text piece by piece, each with whether a document begins there; one without text is no document."""
    for document in [documents] if continuous else documents:
        begins = True
        for text in filter(None, texts(document)):
            yield begins, text
            begins = False


class Survey:
    """One pass over the documents of a corpus: how many there are, how long, their hash and their characters."""

    def __init__(self, corpus: Corpus):
        self.documents = self.characters = 0
        self.excerpt = ""
        digest = hashlib.sha256()
        seen = np.zeros(tokenizers.CODE_POINTS, dtype=bool)
        documents = chain(corpus.documents(), corpus.validation() if corpus.validation else ())
        for begins, text in in_pieces(documents, corpus.continuous):
            self.documents += begins
            self.characters += len(text)
            self.excerpt = self.excerpt or text[:200].strip()
            content = text.encode("utf-8")
            digest.update(content)
            # Leaving out the ASCII that is known already, mostly all of it, is far faster than looking at each character.
            rest = content.translate(
                None, delete=np.flatnonzero(seen[:128]).astype(np.uint8).tobytes()
            )
            seen[tokenizers.code_points(rest.decode("utf-8"))] = True
        self.sha256 = digest.hexdigest()
        self.vocabulary = "".join(map(chr, np.flatnonzero(seen)))


def split(corpus: Corpus, survey: Survey, val_fraction: float) -> Iterator[tuple[str, bool, str]]:
    """Yields each piece of text with its split, "train" or "val", and whether a document begins there."""
    if corpus.validation:
        for name, documents in (("train", corpus.documents()), ("val", corpus.validation())):
            for begins, text in in_pieces(documents, corpus.continuous):
                yield name, begins, text
    elif corpus.continuous:
        left = int(survey.characters * (1 - val_fraction))  # characters that still belong to train
        for begins, text in in_pieces(corpus.documents(), continuous=True):
            yield from (
                (name, begins, part)
                for name, part in (("train", text[:left]), ("val", text[left:]))
                if part
            )
            left = max(0, left - len(text))
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(survey.documents)
        count = min(max(1, round(survey.documents * val_fraction)), survey.documents - 1)
        held_back = set(order[:count].tolist())
        i = -1
        for begins, text in in_pieces(corpus.documents(), continuous=False):
            i += begins
            yield ("val" if i in held_back else "train"), begins, text


def jobs(pieces: Iterable[tuple[str, bool, str]]) -> Iterator[tuple[str, list[tuple[bool, str]]]]:
    """Joins neighbours of one split into lists of about PIECE characters: enough work for a thread at a time.

    Each piece in them stands with whether a separator goes before it: where a document begins, but not a split.
    """
    name, job, size = "", [], 0
    begun = set()  # splits
    for new, begins, text in pieces:
        if job and (new != name or size + len(text) > PIECE):
            yield name, job
            job, size = [], 0
        name, size = new, size + len(text)
        job.append((begins and new in begun, text))
        begun.add(new)
    if job:
        yield name, job


def write_tokens(
    folder: Path, pieces: Iterable[tuple[str, bool, str]], tokenizer
) -> dict[str, dict[str, int]]:
    """Writes <split>.bin of each split; counts its tokens, and the characters and bytes of its text.

    Separators go between documents; they count as tokens, not as text, so that bits per byte compare.
    """

    def encode(job: tuple[str, list[tuple[bool, str]]]) -> tuple[str, np.ndarray, int, int]:
        name, pieces = job
        ids, characters, n_bytes = [], 0, 0
        for separated, text in pieces:
            ids += (
                [tokenizer.separator, tokenizer.encode(text)]
                if separated
                else [tokenizer.encode(text)]
            )
            characters += len(text)
            n_bytes += len(text.encode("utf-8"))
        return name, np.concatenate(ids).astype("<u2"), characters, n_bytes

    counts = {name: {"tokens": 0, "characters": 0, "bytes": 0} for name in SPLITS}
    work = jobs(pieces)
    workers = min(os.cpu_count() or 1, MAX_WORKERS)
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "val.bin", "wb") as val,
        ThreadPoolExecutor(workers) as pool,
        tqdm(desc="tokens", unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while batch := list(islice(work, workers)):  # map() alone would take in the whole corpus
            for name, ids, characters, n_bytes in pool.map(encode, batch):
                count = counts[name]
                (train if name == "train" else val).write(ids)
                for unit, number in (
                    ("tokens", len(ids)),
                    ("characters", characters),
                    ("bytes", n_bytes),
                ):
                    count[unit] += number
                bar.update(n_bytes)
    return counts


def make_tokenizer(
    kind: str, survey: Survey, tokenizer_of: str | None = None
) -> tokenizers.Tokenizer:
    """The tokenizer of this kind for a text, or that of the dataset `tokenizer_of`.

    Raises UserError where its ids don't fit into a file, or it does not know all of the text.
    """
    characters = survey.vocabulary + "\n" * (survey.documents > 1)  # a separator needs it
    if tokenizer_of:
        return borrow_tokenizer(tokenizer_of, kind, characters)
    if kind == "byte":
        return tokenizers.ByteTokenizer()
    if kind == "bpe":
        return tokenizers.BPETokenizer()
    tokenizer = tokenizers.CharTokenizer("".join(sorted(set(characters))))
    if tokenizer.vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"{tokenizer.vocab_size:,} different characters: ids above {MAX_VOCABULARY - 1:,} do not fit into uint16;"
            " use bytes (..._byte) or BPE (..._bpe)"
        )
    return tokenizer


def borrow_tokenizer(dataset: str, kind: str, characters: str) -> tokenizers.Tokenizer:
    """The tokenizer of a dataset. Raises UserError where it is of another kind, or does not know all the characters."""
    tokenizer = load_dataset(dataset).tokenizer
    if tokenizer.kind != kind:
        raise UserError(
            f"the tokens of {dataset} are those of {tokenizer.kind}, not of {kind}", status=2
        )
    try:
        tokenizer.encode(characters)
    except tokenizers.UnknownCharacters as error:
        raise UserError(
            f"the text can't be written in the tokens of {dataset}: it has {error}"
        ) from None
    return tokenizer


def prepare(
    name: str,
    inputs: list[str] | None = None,
    pattern: str | None = None,
    val_fraction: float = 0.1,
    limit: int | None = None,
    tokenizer_of: str | None = None,
    **options,
) -> None:
    """Makes data/<name>, from `inputs` (files and folders) or from the corpus that the name begins with, or both.

    limit: bytes of text; tokenizer_of: a dataset whose tokens are taken, so that its models can go on with this text;
    options: those of the corpus's load(). Either the whole dataset is there in the end, or what
    was there before; stopped in the instant of their exchange, none, and never a mixture. Raises UserError.
    """
    corpus_name, kind = split_name(name)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, not {val_fraction}", status=2)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}", status=2)
    if pattern and not inputs:
        raise UserError("--pattern goes with --input", status=2)
    corpus = find_corpus(corpus_name, inputs, pattern, limit, options)
    if limit:
        corpus = limited(corpus, limit)

    survey = Survey(corpus)
    tokenizer = make_tokenizer(kind, survey, tokenizer_of)
    folder = DATA_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
            counts = write_tokens(Path(new), split(corpus, survey, val_fraction), tokenizer)
            if min(counts[part]["tokens"] for part in SPLITS) < 2:
                raise UserError(
                    f"{survey.characters:,} characters in {survey.documents:,} documents are too few for a training"
                    " and a validation part"
                )
            meta = {
                "source": corpus.source,
                "limit": limit,
                "sha256": survey.sha256,
                "documents": survey.documents,
                "tokenizer": tokenizer.to_dict(),
                **counts,
            }
            (Path(new) / "meta.json").write_text(json.dumps(meta, indent=1), encoding="utf-8")
            exchange(Path(new), folder)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    report(folder, survey, meta, tokenizer)


def exchange(new: Path, folder: Path) -> None:
    """Puts the dataset of one folder in the place of another one's; until meta.json has followed, there is none."""
    meta, kept = folder / "meta.json", new / "meta.old.json"
    if meta.exists():
        meta.rename(kept)
    try:
        for file in ("train.bin", "val.bin", "meta.json"):
            os.replace(new / file, folder / file)
    except (
        PermissionError
    ) as error:  # Windows: a file that a running program has open; nothing was exchanged yet
        if kept.exists() and (new / "train.bin").exists():
            kept.rename(meta)
        raise UserError(f"{error.filename2} is in use: end the run that reads it first") from None


def report(folder: Path, survey: Survey, meta: dict, tokenizer: tokenizers.Tokenizer) -> None:
    """Prints what a person wants to know of a new dataset."""
    documents = f" ({survey.documents:,} documents)" if survey.documents > 1 else ""
    print(f"{folder}: {meta['source']}{documents}")
    for part in SPLITS:
        count = meta[part]
        print(
            f"  {part:5}  {count['characters']:>13,} characters  {count['bytes']:>13,} bytes"
            f"  {count['tokens']:>13,} tokens  ({count['bytes'] / count['tokens']:.2f} bytes each)"
        )
    some = f"{survey.vocabulary[:100]!r}{' ...' * (len(survey.vocabulary) > 100)}"
    print(
        f"  vocabulary of {tokenizer.vocab_size:,} tokens; {len(survey.vocabulary):,} different characters: {some}"
    )
    print(f"  sha256 of the text: {survey.sha256}")
    print("  it begins:\n\n    " + survey.excerpt.replace("\n", "\n    ") + "\n")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="prepare.py", description=__doc__.splitlines()[0])
    parser.add_argument(
        "dataset", nargs="?", help="<corpus>_<tokenizer>, such as shakespeare_char or notes_byte"
    )
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="your own text: UTF-8 files, and folders of them; for python source trees to add to the library",
    )
    parser.add_argument(
        "--pattern",
        help="files to take from folders, such as '*.rst' (default: *.txt and *.md; for python *.py)",
    )
    parser.add_argument(
        "--val_fraction",
        type=float,
        default=0.1,
        help="part held back for validation (default: 0.1)",
    )
    parser.add_argument("--limit", type=int, metavar="BYTES", help="take this much text at most")
    parser.add_argument(
        "--tokenizer_of",
        metavar="DATASET",
        help="take its tokens, for --init_from (default: new ones)",
    )
    parser.add_argument("--category", help="robotics: arXiv's category (default: cs.RO)")
    parser.add_argument(
        "--max_results", type=int, help="robotics: number of papers (default: 5000)"
    )
    args = parser.parse_args(argv)
    if args.dataset:
        options = {
            name: getattr(args, name)
            for name in ("category", "max_results")
            if getattr(args, name) is not None
        }
        prepare(
            args.dataset,
            args.input,
            args.pattern,
            args.val_fraction,
            args.limit,
            args.tokenizer_of,
            **options,
        )
        return
    print("python prepare.py <corpus>_<tokenizer>, with one of these corpora:")
    for name, about in corpora().items():
        print(f"  {name:12} {about}")
    print(
        f"or any name for your own text with --input FILE or FOLDER; tokenizers: {', '.join(tokenizers.KINDS)}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
