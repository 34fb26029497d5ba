import os

import pytest

from labkit import files


def test_a_write_that_fails_keeps_the_old_file_and_no_other(tmp_path, small_files):
    path = tmp_path / "file"
    files.write(path, b"old")
    with pytest.raises(OSError):
        files.write(path, bytes(2_000_000))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    files.write(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_two_processes_that_write_one_file_leave_one_whole_file(tmp_path):
    path, contents = tmp_path / "file", (b"a" * 3_000_000, b"b" * 3_000_000)
    writers = []
    for content in contents:
        writers.append(os.fork())
        if writers[-1] == 0:
            for _ in range(30):
                files.write(path, content)
            os._exit(0)
    seen = set()
    for writer in writers:
        while os.waitpid(writer, os.WNOHANG) == (0, 0):
            if path.exists():
                seen.add(path.read_bytes())
    assert seen | {path.read_bytes()} <= set(contents) and os.listdir(tmp_path) == ["file"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    with pytest.raises(OSError, match="not a regular file"):
        files.require_writable("/dev/null")
