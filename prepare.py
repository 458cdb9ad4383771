"""A corpus -> data/<dataset>/{train.bin, val.bin, meta.json}.

python prepare.py shakespeare_char               one of the corpora in data/
python prepare.py notes_byte --input notes.txt   your own files or folders
"""

import fnmatch
import hashlib
import importlib
import inspect
import json
import os
import pkgutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
from tqdm import tqdm

import data
import tokenizer as tokenizers
from cli import Parser, UserError, command
from data import Corpus, cut_safely
from dataset import DATA_DIR, SPLITS, load_dataset

SPLIT_SEED = 1337  # decides which documents are held back
MAX_VOCABULARY = 1 << 16  # ids are stored as uint16
PIECE = 1 << 21  # bytes of a file that are read at once, characters that a thread tokenizes at once
WORKERS = min(os.cpu_count() or 1, 16)  # threads, each with a piece in memory

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
            f"a dataset is called <corpus>_<tokenizer> with a tokenizer of {kinds}; {name!r} is not", status=2
        )
    return corpus, kind


def load_corpus(name: str, limit: int | None, options: dict) -> Corpus:
    """One of the project's corpora; options that its load() does not have are refused. Raises UserError."""
    if name not in corpora():
        raise UserError(
            f"there is no corpus {name}; bring your own text: python prepare.py {name}_char --input FILE", 2
        )
    load = importlib.import_module(f"data.{name}").load
    known = inspect.signature(load).parameters
    if unknown := sorted(options.keys() - known.keys()):
        raise UserError(f"the corpus {name} takes no --{unknown[0]}", status=2)
    return load(DATA_DIR / "downloads", **options, **({"limit": limit} if "limit" in known else {}))


def read_pieces(path: Path) -> Iterator[str]:
    """The text of a file, a few MB at a time, cut where no token can reach across. Raises UserError if it is not UTF-8."""
    with open(path, "rb") as file:
        offset = 0
        for piece in cut_safely(iter(lambda: file.read(PIECE), b"")):
            yield decode(piece, path, offset)
            offset += len(piece)


def decode(content: bytes, path: Path, offset: int) -> str:
    """content, which stands at this offset of the file, as text. Raises UserError."""
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        where = f"byte {offset + error.start:,} is {content[error.start]:#04x}"
        raise UserError(f"{path} is not UTF-8 text: {where}; with another encoding, convert it first") from None


def read_inputs(inputs: list[str], pattern: str | None) -> Corpus:
    """One file as one continuous text; several files, or those of folders that match the pattern, as documents."""
    patterns = [pattern] if pattern else ["*.txt", "*.md"]
    files = []
    for path in map(Path, inputs):
        if path.is_dir():
            found = sorted(
                p
                for p in path.rglob("*")
                if p.is_file() and any(fnmatch.fnmatch(p.name, pattern) for pattern in patterns)
            )
            if not found:
                raise UserError(
                    f"the folder {path} holds no {' or '.join(patterns)}; --pattern '*.py' takes other files"
                )
            files += found
        elif path.is_file():
            files.append(path)
        else:
            raise UserError(f"there is no file {path}")
    source = ", ".join(inputs)
    if len(files) == 1:
        return Corpus(source, lambda: read_pieces(files[0]), continuous=True)
    return Corpus(source, lambda: map(read_pieces, files))


def limited(documents: Callable[[], Iterable[str]], limit: int, continuous: bool) -> Iterator[str]:
    """The first documents that fit into `limit` bytes; of a continuous text, up to the last byte."""
    for document in documents():
        text = document if isinstance(document, str) else up_to(document, limit)
        content = text.encode("utf-8")
        if len(content) > limit:
            if continuous:
                yield content[:limit].decode("utf-8", errors="ignore")
            return
        limit -= len(content)
        yield text


def up_to(pieces: Iterable[str], limit: int) -> str:
    """A document as one text; of one with more than `limit` characters, no more than it takes to see that."""
    text = ""
    for piece in pieces:
        text += piece
        if len(text) > limit:
            break
    return text


def pieces_of(documents: Iterable[str | Iterable[str]]) -> Iterator[tuple[bool, str]]:
    """Every piece of the documents, and whether a document begins with it."""
    for document in documents:
        begins = True
        for text in (document,) if isinstance(document, str) else document:
            yield begins, text
            begins = False


# ---------------------------------------------------------------------------------------------------------------------
# from text to files: one pass to survey it, one to tokenize it, neither with more than some pieces in memory


class Survey:
    """One pass over the documents of a corpus: how many there are, how long, their hash and their characters."""

    def __init__(self, corpus: Corpus):
        self.documents = self.characters = 0
        self.excerpt = ""
        digest = hashlib.sha256()
        seen = np.zeros(tokenizers.CODE_POINTS, dtype=bool)
        for begins, text in pieces_of(chain(corpus.documents(), corpus.validation() if corpus.validation else ())):
            self.documents += begins
            self.characters += len(text)
            self.excerpt = self.excerpt or text[:200].strip()
            content = text.encode("utf-8")
            digest.update(content)
            # Leaving out the ASCII that is known already, mostly all of it, is far faster than looking at each character.
            rest = content.translate(None, delete=np.flatnonzero(seen[:128]).astype(np.uint8).tobytes())
            seen[tokenizers.code_points(rest.decode("utf-8"))] = True
        self.documents = 1 if corpus.continuous else self.documents
        self.sha256 = digest.hexdigest()
        self.vocabulary = "".join(map(chr, np.flatnonzero(seen)))


def split(corpus: Corpus, survey: Survey, val_fraction: float) -> Iterator[tuple[str, bool, str]]:
    """Yields each piece of text with its split, "train" or "val", and whether a document begins with it."""
    if corpus.validation:
        yield from (("train", *piece) for piece in pieces_of(corpus.documents()))
        yield from (("val", *piece) for piece in pieces_of(corpus.validation()))
    elif corpus.continuous:
        left = int(survey.characters * (1 - val_fraction))  # characters that still belong to train
        for text in corpus.documents():
            yield from ((name, False, part) for name, part in (("train", text[:left]), ("val", text[left:])) if part)
            left = max(0, left - len(text))
    else:
        order = np.random.default_rng(SPLIT_SEED).permutation(survey.documents)
        count = min(max(1, round(survey.documents * val_fraction)), survey.documents - 1)
        held_back = set(order[:count].tolist())
        document = -1
        for begins, text in pieces_of(corpus.documents()):
            document += begins
            yield ("val" if document in held_back else "train"), begins, text


def jobs(pieces: Iterable[tuple[str, bool, str]]) -> Iterator[tuple[str, list[tuple[bool, str]]]]:
    """Joins neighbours of one split into lists of about PIECE characters: enough work for a thread at a time."""
    name, texts, size = "", [], 0
    for new, begins, text in pieces:
        if texts and (new != name or size + len(text) > PIECE):
            yield name, texts
            texts, size = [], 0
        name, size = new, size + len(text)
        texts.append((begins, text))
    if texts:
        yield name, texts


def write_tokens(
    folder: Path, pieces: Iterable[tuple[str, bool, str]], tokenizer, separated: bool
) -> dict[str, dict[str, int]]:
    """Writes <split>.bin of each split; counts its tokens, and the characters and bytes of its text.

    Separators go between documents; they count as tokens, not as text, so that bits per byte compare.
    """

    def encode(job: tuple[str, list[tuple[bool, str]]]) -> tuple[str, np.ndarray, int, int]:
        name, texts = job
        ids = []
        for begins, text in texts:
            if begins and separated:
                ids.append(tokenizer.separator)
            ids.append(tokenizer.encode(text))
        characters, n_bytes = sum(len(text) for _, text in texts), sum(len(text.encode("utf-8")) for _, text in texts)
        return name, np.concatenate(ids).astype("<u2"), characters, n_bytes

    counts = {name: {"tokens": 0, "characters": 0, "bytes": 0} for name in SPLITS}
    work = jobs(pieces)
    with (
        open(folder / "train.bin", "wb") as train,
        open(folder / "val.bin", "wb") as val,
        ThreadPoolExecutor(WORKERS) as pool,
        tqdm(desc="tokens", unit="B", unit_scale=True, disable=None, leave=False) as bar,
    ):
        while batch := list(islice(work, WORKERS)):  # map() alone would take in the whole corpus
            for name, ids, characters, n_bytes in pool.map(encode, batch):
                count = counts[name]
                ids = ids if count["tokens"] or not separated else ids[len(tokenizer.separator) :]
                (train if name == "train" else val).write(ids)
                for unit, number in (("tokens", len(ids)), ("characters", characters), ("bytes", n_bytes)):
                    count[unit] += number
                bar.update(n_bytes)
    return counts


def make_tokenizer(kind: str, survey: Survey, separated: bool, tokenizer_of: str | None = None) -> tokenizers.Tokenizer:
    """The tokenizer of this kind for a text, or that of another dataset.

    Raises UserError where its ids don't fit into a file, or the text does not fit the other dataset's characters.
    """
    if tokenizer_of:
        tokenizer = load_dataset(tokenizer_of).tokenizer
        if tokenizer.kind != kind:
            raise UserError(f"the tokens of {tokenizer_of} are those of {tokenizer.kind}, not of {kind}", status=2)
        try:
            tokenizer.encode(survey.vocabulary + "\n" * separated)
        except tokenizers.UnknownCharacters as error:
            raise UserError(f"the text can't be written in the tokens of {tokenizer_of}: it has {error}") from None
        return tokenizer
    if kind == "byte":
        return tokenizers.ByteTokenizer()
    if kind == "bpe":
        return tokenizers.BPETokenizer()
    tokenizer = tokenizers.CharTokenizer("".join(sorted({*survey.vocabulary, *("\n" if separated else "")})))
    if tokenizer.vocab_size > MAX_VOCABULARY:
        raise UserError(
            f"{tokenizer.vocab_size:,} different characters: ids above {MAX_VOCABULARY - 1:,} do not fit into uint16;"
            " use bytes (..._byte) or BPE (..._bpe)"
        )
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
    """Makes data/<name>, from `inputs` (files and folders) or from the corpus that the name begins with.

    limit: bytes of text; tokenizer_of: a dataset whose tokens are taken, so that a model trained on it can go on with
    this one; options: those of the corpus's load(). Either the whole dataset is there in the end, or what
    was there before. Raises UserError.
    """
    corpus_name, kind = split_name(name)
    if not 0 < val_fraction < 1:
        raise UserError(f"val_fraction must lie between 0 and 1, not {val_fraction}", status=2)
    if limit is not None and limit < 1:
        raise UserError(f"limit must be at least 1, not {limit}", status=2)
    if pattern and not inputs:
        raise UserError("--pattern goes with --input", status=2)
    if inputs and options:
        raise UserError(f"--{min(options)} does not go with --input", status=2)
    if inputs and corpus_name == "python":  # these are added to what it has
        corpus = load_corpus(corpus_name, limit, {"inputs": inputs, "pattern": pattern or "*.py"})
    else:
        corpus = read_inputs(inputs, pattern) if inputs else load_corpus(corpus_name, limit, options)
    if limit:
        whole = corpus.documents
        corpus = replace(corpus, documents=lambda: limited(whole, limit, corpus.continuous), validation=None)

    survey = Survey(corpus)
    separated = not corpus.continuous
    tokenizer = make_tokenizer(kind, survey, separated, tokenizer_of)
    folder = DATA_DIR / name
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as new:
            counts = write_tokens(Path(new), split(corpus, survey, val_fraction), tokenizer, separated)
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
            (folder / "meta.json").unlink(missing_ok=True)  # until the new one is there, the dataset counts as missing
            for file in ("train.bin", "val.bin", "meta.json"):
                os.replace(Path(new) / file, folder / file)
    finally:
        if not any(folder.iterdir()):
            folder.rmdir()
    report(folder, survey, meta, tokenizer)


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
    print(f"  vocabulary of {tokenizer.vocab_size:,} tokens; {len(survey.vocabulary):,} different characters: {some}")
    print(f"  sha256 of the text: {survey.sha256}")
    print("  it begins:\n\n    " + survey.excerpt.replace("\n", "\n    ") + "\n")


@command
def main(argv: list[str]) -> None:
    parser = Parser(prog="prepare.py", description=__doc__.splitlines()[0])
    parser.add_argument("dataset", nargs="?", help="<corpus>_<tokenizer>, such as shakespeare_char or notes_byte")
    parser.add_argument(
        "--input",
        nargs="+",
        metavar="PATH",
        help="your own text: UTF-8 files, and folders of them; python_... adds them",
    )
    parser.add_argument("--pattern", help="files to take from folders, such as '*.py' (default: *.txt and *.md)")
    parser.add_argument("--val_fraction", type=float, default=0.1, help="part held back for validation (default: 0.1)")
    parser.add_argument("--limit", type=int, metavar="BYTES", help="take this much text at most")
    parser.add_argument(
        "--tokenizer_of", metavar="DATASET", help="take its tokens, for --init_from (default: new ones)"
    )
    parser.add_argument("--category", help="robotics: arXiv's category (default: cs.RO)")
    parser.add_argument("--max_results", type=int, help="robotics: number of papers (default: 5000)")
    args = parser.parse_args(argv)
    if args.dataset:
        options = {name: getattr(args, name) for name in ("category", "max_results") if getattr(args, name) is not None}
        prepare(args.dataset, args.input, args.pattern, args.val_fraction, args.limit, args.tokenizer_of, **options)
        return
    print("python prepare.py <corpus>_<tokenizer>, with one of these corpora:")
    for name, about in corpora().items():
        print(f"  {name:12} {about}")
    print(f"or any name for your own text with --input FILE or FOLDER; tokenizers: {', '.join(tokenizers.KINDS)}")


if __name__ == "__main__":
    raise SystemExit(main())
