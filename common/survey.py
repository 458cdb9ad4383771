"""What is in a corpus, which documents are used, and which of them are for validation."""

import hashlib
import random
import re
import unicodedata
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np

from common.dataset import SPLITS
from common.errors import UserError, listed
from common.files import BLOCK_BYTES, cut
from common.tokenizer import (
    CODE_POINTS,
    END_OF_TEXT,
    NUL,
    Tokenizer,
    UnknownCharacters,
    code_points,
    known_line_ends,
)
from data import END, Corpus, Text

SPLIT_SEED = 1337  # decides which documents are for validation
MOST_ORDERS = 20  # that are tried to come near the size for validation
TRAIN, VAL, LEFT_OUT = 0, 1, 2  # where a document goes; the first two are indices of SPLITS
SAMPLE_CHARACTERS = 32_000_000  # of the training text, to train a vocabulary on
SAMPLE_WORD_BYTES = 3_000_000  # of distinct words in them: training needs 130 times this memory
WORD = re.compile(r"\s+|[!-/:-@[-`{-~]+|[^\s!-/:-@[-`{-~]+")  # much like common.bpe.PATTERN
MOST_LOST = 0.1  # fraction of a text that --replace_unknown may leave out
SURROGATES = "the text has unpaired surrogates: check --encoding"
CHANGED = "the text has changed while it was being read: try again"
PLAIN = (  # what --replace_unknown writes for typographic characters
    dict.fromkeys('\u2018\u2019\u201a"`', "'")
    | dict.fromkeys("\u201c\u201d\u201e\u00ab\u00bb", '"')
    | dict.fromkeys("\u2010\u2011\u2012\u2013\u2212", "-")
    | dict.fromkeys("\u2014\u2015", "--")
    | dict.fromkeys("\v\f\x85\u2028\u2029", "\n")
    | dict.fromkeys("\t/\\|_=+@<>", " ")  # left out, they would join the words around them
    | {"\u2026": "..."}
)


def numbered(*texts: Text) -> Iterator[tuple[int, int, str]]:
    """Yields (index of the text, number of the document, piece) for each piece.

    Documents are numbered across all texts; those of white space only are skipped.
    """
    number = 0
    for part, text in enumerate(texts):
        held, begun = [], False  # held: white space at the beginning of a document
        for piece in chain(text, [END]):
            if piece is END:
                number += begun
                held, begun = [], False
            elif piece:
                held.append(piece)
                begun = begun or not piece.isspace()
                while begun and held:
                    yield part, number, held.pop(0)


def limited(corpus: Corpus, limit: int) -> Corpus:
    """The corpus with only the first `limit` bytes of its training text."""
    return replace(corpus, text=lambda: beginning(corpus.text(), limit))


def beginning(text: Text, limit: int) -> Text:
    """The first `limit` bytes, without a character that is cut in two."""
    for piece in text:
        if piece is END:
            yield END
            continue
        if limit <= 0:
            return
        try:
            content = piece.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(SURROGATES) from None
        yield content[:limit].decode("utf-8", errors="ignore")
        limit -= len(content)


# -------------------------------------------------------------------------------------------------
# the first pass


class DocumentHashes:
    """sha256 of each document of a text, and of all of them."""

    def __init__(self):
        self.all = hashlib.sha256()  # of the digests of the documents before
        # 8 bytes for each of them; equal if their texts are, apart from carriage returns and white
        # space at the end
        self.prefixes = array("Q")
        self.begin_document()

    def begin_document(self) -> None:
        self.document = hashlib.sha256()  # of what has been read, without white space at the end
        self.space = b""  # that white space
        self.plain = None  # like document, without carriage returns; None until there is one

    def add(self, number: int, content: bytes) -> None:
        """number: of the document; those before it have ended."""
        if number > len(self.prefixes):
            self.end_document()
            self.begin_document()
        content = self.space + content
        text = content.rstrip()
        self.space = content[len(text) :]
        if b"\r" in text:
            self.plain = self.plain or self.document.copy()
        if self.plain:
            self.plain.update(text.replace(b"\r", b""))
        self.document.update(text)

    def end_document(self) -> None:
        plain = self.plain or self.document
        self.prefixes.append(int.from_bytes(plain.digest()[:8], "little"))
        self.document.update(self.space)
        self.all.update(self.document.digest())


@dataclass
class Survey:
    """What the first pass finds out."""

    sizes: array  # characters of each document
    hashes: DocumentHashes
    own_validation: int  # number of documents in the corpus's own validation text
    vocabulary: str  # the different characters, sorted
    excerpt: str  # the beginning of the text
    warnings: list[str]


def survey(corpus: Corpus) -> Survey:
    """Reads the corpus once."""
    sizes, hashes, parts = array("Q"), DocumentHashes(), array("B")
    seen = np.zeros(CODE_POINTS, dtype=bool)
    known = b""  # the ASCII among them
    excerpt, nuls, marks, licenses = "", {}, 0, 0
    for part, number, text in numbered(*corpus.texts()):
        if number == len(sizes):
            sizes.append(0)
            parts.append(part)
        sizes[number] += len(text)
        excerpt = excerpt or text[:200].strip()
        try:
            content = text.encode("utf-8")
        except UnicodeEncodeError:
            raise UserError(SURROGATES) from None
        hashes.add(number, content)
        # dropping ASCII already seen, usually all of it, is faster than checking every character
        if new := content.translate(None, delete=known):
            seen[code_points(new.decode("utf-8"))] = True
            known = np.flatnonzero(seen[:128]).astype(np.uint8).tobytes()
        if NUL in text:
            nuls[number] = nuls.get(number, 0) + text.count(NUL)
        marks += text.count(END_OF_TEXT)
        licenses += text.count("PROJECT GUTENBERG EBOOK")
    if len(sizes):
        hashes.end_document()
    warnings = []
    if many := [number for number, count in nuls.items() if count > 0.01 * sizes[number]]:
        warnings.append(
            f"{len(many):,} of {len(sizes):,} documents have many NUL characters: if they are"
            " UTF-16, use --encoding utf-16, utf-16-le or utf-16-be"
        )
    if marks:
        warnings.append(
            f"the text has {END_OF_TEXT!r} {marks:,} times: if it ends documents, add"
            f" --separator '{END_OF_TEXT}'"
        )
    if seen[0x80:0xA0].any():
        warnings.append(
            "the text has control characters between \\x80 and \\x9f: if it is Windows text that"
            " was read as Latin-1, use --encoding cp1252"
        )
    if seen[0xFEFF]:
        warnings.append(
            "the text has byte order marks (U+FEFF), as joined files do: remove them, or give the"
            " files one by one"
        )
    if seen[0xFFFD]:
        warnings.append(
            "the text has replacement characters (U+FFFD): something could not be decoded, here or"
            " when the text was made"
        )
    if licenses:
        warnings.append(
            "the text has notices of Project Gutenberg: remove what is before '*** START OF' and"
            " after '*** END OF', or the model learns (and is evaluated on) its license"
        )
    vocabulary = "".join(map(chr, np.flatnonzero(seen)))
    return Survey(sizes, hashes, sum(parts), vocabulary, excerpt, warnings)


def assign(found: Survey, val_fraction: float) -> np.ndarray:
    """TRAIN, VAL or LEFT_OUT for each document; prints what the user should know about it.

    Of equal documents only the first is used; line ends and white space at the end don't count.
    With a fixed seed, whole documents are chosen for validation whose size together is near
    val_fraction of the text.
    """
    sizes = np.array(found.sizes, dtype=np.int64)
    assignment = np.full(len(sizes), TRAIN, dtype=np.uint8)
    if found.own_validation:
        assignment[-found.own_validation :] = VAL
        return assignment
    _, first = np.unique(np.array(found.hashes.prefixes), return_index=True)
    if copies := len(sizes) - len(first):
        print(f"{copies:,} of {len(sizes):,} documents are copies of others: left out")
        assignment[:] = LEFT_OUT
        assignment[first] = TRAIN
    documents = np.flatnonzero(assignment == TRAIN)
    if len(documents) < 2:
        return assignment

    # the first of some random orders whose beginning comes near the target
    rng, target = np.random.default_rng(SPLIT_SEED), val_fraction * sizes[documents].sum()
    tries = []  # (distance from the target, documents for validation)
    while len(tries) < MOST_ORDERS and (not tries or tries[-1][0] > 0.2 * target):
        chosen = first_that_fit(sizes, rng.permutation(documents), target)
        tries.append((abs(sizes[chosen].sum() - target), chosen))
    distance, chosen = min(tries, key=lambda one: one[0])
    assignment[chosen] = VAL

    is_long = sizes > target
    short = documents[~is_long[documents]]
    of_short = sizes[short[assignment[short] == VAL]].sum() / max(1, sizes[short].sum())
    if distance > 0.2 * target:
        fraction = sizes[chosen].sum() / sizes[documents].sum()
        print(
            f"warning: {fraction:.1%} of the text is for validation instead of {val_fraction:.1%},"
            f" because the {len(documents):,} documents are kept whole: divide the largest ones"
        )
    elif len(short) < len(documents) and not is_long[chosen].any() and of_short > 0.5:
        print(
            "warning: the longest documents don't fit into the validation part, so it takes"
            f" {of_short:.0%} of the text of the other {len(short):,}: divide the longest ones"
        )
    return assignment


def first_that_fit(sizes: np.ndarray, order: np.ndarray, target: float) -> list[int]:
    """The first documents of `order` that fit into the target size, and one more if that is nearer.

    They end before one that would have fitted alone: to go on would prefer short ones.
    """
    chosen, total = [], 0
    for number in order[:-1]:
        if total + sizes[number] <= target:
            chosen.append(number)
            total += sizes[number]
        elif sizes[number] <= target:
            break
    others = order[~np.isin(order, chosen)]
    distances = np.abs(total + sizes[others] - target)
    if total == 0 or len(others) > 1 and distances.min() < target - total:
        chosen.append(others[distances.argmin()])
    return chosen


def split(
    corpus: Corpus, found: Survey, assignment: np.ndarray, val_fraction: float
) -> Iterator[tuple[str, int, str]]:
    """Yields each piece of text with its split, "train" or "val", and the number of its document.

    A single text is cut, and its end is for validation. Raises UserError if the text has changed
    since the survey.
    """
    kept = np.flatnonzero(assignment != LEFT_OUT)
    single = len(kept) == 1
    left = int(found.sizes[kept[0]] * (1 - val_fraction))  # characters still for training
    again = DocumentHashes()
    for _, number, text in numbered(*corpus.texts()):
        again.add(number, text.encode("utf-8"))
        if number not in range(len(assignment)) or assignment[number] == LEFT_OUT:
            continue
        if not single:
            yield SPLITS[assignment[number]], number, text
            continue
        if left > 0:
            yield "train", number, text[:left]
        if left < len(text):
            yield "val", number, text[left:]
        left = max(0, left - len(text))
    again.end_document()
    if again.all.digest() != found.hashes.all.digest():
        raise UserError(CHANGED)


def training_sample(pieces: Iterable[tuple[str, int, str]], characters: int) -> list[str]:
    """Parts of the training text to train a vocabulary on, chosen with a fixed seed.

    They have about SAMPLE_CHARACTERS (all of a smaller text), or fewer if their different words
    would be more than SAMPLE_WORD_BYTES. pieces: from `split`; characters: of the training text.
    """
    rng, fraction = random.Random(SPLIT_SEED), SAMPLE_CHARACTERS / characters
    chosen = []
    for name, _, text in pieces:
        if name == "train":
            blocks = (text[i : i + BLOCK_BYTES] for i in range(0, len(text), BLOCK_BYTES))
            chosen += [part for part in cut(blocks) if rng.random() < fraction]
    rng.shuffle(chosen)
    words, left = set(), SAMPLE_WORD_BYTES
    for i, text in enumerate(chosen):
        new = set(WORD.findall(text)) - words
        left -= sum(len(word.encode("utf-8")) for word in new)
        if left < 0:
            return chosen[:i]
        words |= new
    return chosen


def sha256_of(found: Survey, assignment: np.ndarray) -> str:
    """sha256 of a single text; of several documents, of their digests and of the split."""
    if len(found.sizes) == 1:
        return found.hashes.document.hexdigest()
    return hashlib.sha256(found.hashes.all.digest() + assignment.tobytes()).hexdigest()


# -------------------------------------------------------------------------------------------------
# a text in the characters of another one


def substitutes(unknown: str, characters: str) -> dict[str, str]:
    """For each unknown character the known ones that are most like it, or nothing."""
    found, known = {}, set(characters)
    for character in unknown:
        plain = PLAIN.get(character) or unicodedata.normalize("NFKD", character)
        if "\u2044" in plain:  # a fraction, perhaps after a whole number
            plain = " " + plain.replace("\u2044", "/")
        if not set(plain) & known:  # such as double quotation marks: try single ones
            plain = PLAIN.get(plain, plain)
        if character.isspace() and not set(plain) & known:
            plain = " " if " " in known else "\n"
        if "/" in plain and "/" not in known:  # of a fraction; else ½ would become 12
            plain = ""
        found[character] = "".join(c for c in plain if c in known)
    return found


def with_pieces(corpus: Corpus, change: Callable[[str], str]) -> Corpus:
    """The corpus with each piece of its text changed."""

    def text(pieces: Text) -> Text:
        for piece in pieces:
            yield change(piece) if piece else piece

    validation = corpus.validation and (lambda: text(corpus.validation()))
    return Corpus(corpus.source, lambda: text(corpus.text()), validation)


def adapt(
    corpus: Corpus, found: Survey, tokenizer: Tokenizer, dataset: str, replace_unknown: bool
) -> tuple[Corpus, Survey]:
    """The corpus in the characters that the tokenizer of `dataset` knows, and its survey.

    Raises UserError if there are others and replace_unknown is false.
    """
    if tokenizer.kind != "char":
        return corpus, found
    if "\r" in found.vocabulary and "\r" not in tokenizer.characters:
        corpus = with_pieces(corpus, lambda piece: known_line_ends(piece, tokenizer))
        found = survey(corpus)
    unknown = "".join(sorted(set(found.vocabulary) - set(tokenizer.characters)))
    if not unknown:
        return corpus, found
    if not replace_unknown:
        raise UserError(
            f"{dataset}'s tokenizer can't encode this text: it has"
            f" {UnknownCharacters(unknown)}; replace them with --replace_unknown, or prepare both"
            " datasets with bytes (..._byte)"
        )
    written = substitutes(unknown, tokenizer.characters)
    shown = listed([f"{character!r} with {text!r}" for character, text in written.items()], 100)
    print(f"replaced characters that {dataset} does not know: {shown}")
    left_out = {ord(character): None for character, text in written.items() if not text}
    kept = sum(len(piece.translate(left_out)) for _, _, piece in numbered(*corpus.texts()))
    lost = 1 - kept / sum(found.sizes)
    if lost > MOST_LOST:
        raise UserError(
            f"--replace_unknown would leave out {lost:.0%} of the text, which {dataset}'s tokenizer"
            " does not know: prepare both datasets with bytes (..._byte)"
        )
    table = str.maketrans(written)
    corpus = with_pieces(corpus, lambda piece: piece.translate(table))
    return corpus, survey(corpus)
