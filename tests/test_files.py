import os

import pytest
from conftest import FORKS

from labkit import files


def test_a_write_that_fails_keeps_the_old_file_and_no_other(tmp_path, small_files):
    path = tmp_path / "file"
    files.write(path, b"old")
    with pytest.raises(OSError, match=f"^{path} cannot be written: File too large$"):
        files.write(path, bytes(2_000_000))
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    files.write(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_two_processes_that_write_one_file_leave_one_whole_file(tmp_path):
    path, contents = tmp_path / "file", (b"a" * 1_000_000, b"b" * 1_000_000)
    writers = [FORKS.Process(target=write_often, args=(path, content))
               for content in contents]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        if path.exists():
            seen.add(path.read_bytes())
    assert [writer.exitcode for writer in writers] == [0, 0]
    assert seen | {path.read_bytes()} <= set(contents) and os.listdir(tmp_path) == ["file"]


def write_often(path, content):
    for _ in range(20):
        files.write(path, content)


def test_what_cannot_be_written_is_named_before_and_nothing_is_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    good, bad = tmp_path / "new/deep/model.pth", tmp_path / "file/loss.png"
    with pytest.raises(OSError, match=f"^{bad} cannot be written: Not a directory$"):
        files.require_writable(good, bad)
    with pytest.raises(OSError, match="File name too long"):
        files.require_writable(tmp_path / "new" / ("x" * 300))
    files.announce(good)
    assert os.listdir(tmp_path) == ["file"] and capsys.readouterr().out == ""
    files.write(good, b"new")
    files.announce(good, tmp_path / "file", bad.parent / "../other")
    assert capsys.readouterr().out == f"replacing {good}, {tmp_path}/file\n"


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    files.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    with pytest.raises(OSError, match="not a regular file"):
        files.require_writable("/dev/null")
