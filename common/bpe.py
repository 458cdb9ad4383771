"""Byte-pair encodings (Sennrich et al., 2016, arXiv:1508.07909) trained on the bytes of a text."""

import re
from collections.abc import Sequence

# GPT-2's: tokens stay within the parts of a text that this matches. llama.cpp knows only the
# patterns of published models; with another one it would tokenize prompts differently.
PATTERN = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
BYTES = [bytes([b]) for b in range(0xF5) if b not in (0xC0, 0xC1)]  # all that occur in UTF-8
LONGEST_TOKEN = 128  # bytes
# splits words of more than 1,000 characters: training time is quadratic in the length of a word
PARTS = re.compile(r".*?(?:\S{1000}|\s{1000})|.+", re.DOTALL)


def byte_symbols() -> list[str]:
    """GPT-2's printable character for each byte: itself, or one from 256 on if it is invisible."""
    printable = [("!", "~"), ("¡", "¬"), ("®", "ÿ")]
    visible = {code for first, last in printable for code in range(ord(first), ord(last) + 1)}
    others = iter(range(256, 512))
    return [chr(byte if byte in visible else next(others)) for byte in range(256)]


def train(texts: Sequence[str], n_tokens: int) -> list[bytes]:
    """The tokens that are made by merging two shorter ones, in the order of the merges.

    There are n_tokens of them, or fewer once no pair of neighboring tokens occurs twice. Equal
    texts give equal tokens.
    """
    import tokenizers  # here, because few commands train a vocabulary

    symbols = byte_symbols()
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    byte_level = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)  # splits as PATTERN
    tokenizer.pre_tokenizer = byte_level
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(BYTES) + n_tokens,
        initial_alphabet=[symbols[byte] for [byte] in BYTES],
        min_frequency=2,
        max_token_length=LONGEST_TOKEN,
        show_progress=False,
    )
    parts = (part for text in texts for part in PARTS.findall(text))
    tokenizer.train_from_iterator(parts, trainer)
    ids = tokenizer.get_vocab()
    to_byte = {symbol: byte for byte, symbol in enumerate(symbols)}
    tokens = [bytes(map(to_byte.get, token)) for token in sorted(ids, key=ids.get)]
    return tokens[len(BYTES) :]


def vocab_and_merges(tokens: Sequence[bytes]) -> tuple[dict[str, int], list[str]]:
    """Ids of the tokens by their symbols, and all pairs "left right" that merge, in order.

    tiktoken merges any two tokens that together are a token; `tokenizers` only the pairs in a list.
    """
    symbols = byte_symbols()
    ids = {"".join(symbols[byte] for byte in token): i for i, token in enumerate(tokens)}
    merges = []
    for token in ids:
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [f"{left} {right}" for left, right in splits if left in ids and right in ids]
    return ids, merges
