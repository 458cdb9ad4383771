import os

import pytest

from common.files import write_atomically


def write(content: bytes):
    def action(file):
        file.write(content)

    return action


def test_write_atomically_creates_the_folder_and_leaves_one_file(tmp_path):
    path = tmp_path / "new" / "folder" / "a.bin"
    write_atomically(path, write(b"new"))
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["a.bin"]


def test_write_atomically_replaces_a_file_as_a_whole(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(b"a longer old content")

    def action(file):
        file.write(b"new")
        file.flush()
        assert path.read_bytes() == b"a longer old content"

    write_atomically(path, action)
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_write_that_fails_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def action(file):
        file.write(b"half")
        raise error

    with pytest.raises(error):
        write_atomically(path, action)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.bin"]
