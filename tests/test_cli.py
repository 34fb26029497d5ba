import argparse
import io
import os
import signal
import subprocess
import sys

import pytest
import torch
from conftest import FAST, ROOT

import lab1
from labkit import LabError, UsageError, cli
from labkit.processes import Stopped
from model import autoencoderMLP4Layer


def python(code, shell="", **environment):
    """Run Python code, after `shell` in a shell, and return its status, stdout and stderr as bytes."""
    command = ["sh", "-c", f'exec "$0" -c "$1" {shell}', sys.executable, code]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | environment, capture_output=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("error, status, line", [
    (UsageError("-z 0: no"), 2, "train.py: -z 0: no (see --help)"),
    (LabError("two\nlines"), 1, "train.py: two lines"),
    (Stopped(signal.SIGINT), 130,
     "train.py: stopped by SIGINT: --resume continues the run"),
    (Stopped(signal.SIGTERM), 143,
     "train.py: stopped by SIGTERM: --resume continues the run"),
    (OSError(28, "No space left on device", "a.pth"), 1,
     "train.py: [Errno 28] No space left on device: 'a.pth'"),
])
def test_errors_end_in_one_line_and_a_status(error, status, line, capsys):
    with pytest.raises(SystemExit) as end, cli.errors_in_one_line("train.py"):
        raise error
    assert end.value.code == status
    assert capsys.readouterr() == ("", f"{line}\n")


def test_a_fault_in_the_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError), cli.errors_in_one_line("train.py"):
        raise ZeroDivisionError


def test_of_several_processes_on_a_machine_the_first_speaks(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for local_rank, lines in (("1", 0), ("0", 1)):
        monkeypatch.setenv("LOCAL_RANK", local_rank)
        with pytest.raises(SystemExit), cli.errors_in_one_line("train.py"):
            raise LabError("a mistake")
        assert capsys.readouterr().err.count("\n") == lines


@pytest.mark.parametrize("kind, text, value", [(int, "1", 1), (int, "784", 784), (float, "1.5", 1.5)])
def test_numbers_within_their_range_are_read(kind, text, value):
    assert cli.number(kind, 1, 784)(text) == value


@pytest.mark.parametrize("kind, text", [(int, "0"), (int, "785"), (int, "1.5"), (int, "eight"),
                                        (float, "0.9"), (float, "nan"), (float, "inf"), (float, "1,5"),
                                        (int, "9" * 5000)])
def test_other_numbers_are_refused_with_what_is_expected(kind, text):
    expected = "whole number" if kind is int else "number"
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{text}: expected a {expected} from 1 to 784$"):
        cli.number(kind, 1, 784)(text)


def test_lab1s_help_fits_a_screen(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        lab1.main(["--help"])
    out = capsys.readouterr().out
    assert end.value.code == 0 and out.count("\n") <= 48 and "python lab1.py -l model.pth" in out
    assert all(option in out for option in ("--dataset", "--data-dir", "--device", "--explore", "--format"))


STREAMS = "from labkit import cli; cli.prepare_streams(); import sys; print('digits/\\u00fc.pth')"


def test_streams_take_any_character_and_may_be_closed():
    assert python(STREAMS, PYTHONIOENCODING="ascii") == (0, b"digits/\\xfc.pth\n", b"")
    assert python(STREAMS, PYTHONIOENCODING="utf-8") == (0, "digits/ü.pth\n".encode(), b"")
    assert python(STREAMS, ">&-") == (0, b"", b"")
    assert python(f"{STREAMS}; print('here', file=sys.stderr)", "2>&-") == (0, b"digits/\xc3\xbc.pth\n", b"")


def test_a_notebooks_stream_may_lack_what_a_file_has(monkeypatch):
    class Cell(io.TextIOBase):
        def write(self, text):
            written.append(text)

    written = []
    monkeypatch.setattr(sys, "stdout", Cell())
    monkeypatch.setattr(sys, "stderr", Cell())
    cli.prepare_streams()
    print("ü")
    assert "".join(written) == "ü\n"


def test_commands_print_to_any_stdout(start, folder):
    torch.save(autoencoderMLP4Layer().state_dict(), "gerät.pth")
    commands = {}
    for encoding in ("ascii", None):
        training = start("train.py", *FAST, "-e", "0", "-s", f"ü{encoding}.pth", encoding=encoding)
        options = ("-l", "gerät.pth", "--dataset", "glyphs", "--step", "4", "--out", f"{encoding}")
        commands[encoding] = training, start("lab1.py", *options, encoding=encoding)

    for encoding, (training, lab) in commands.items():
        status, out, err = training.end()
        assert status == 0 and err == "" and (folder / f"ü{encoding}.pth").exists()
        assert ("wrote \\xfcascii.pth" in out) == (encoding == "ascii")
        status, out, err = lab.end()
        assert status == 0 and (folder / f"{encoding}/reconstruction.png").exists()
        assert ("through ger\\xe4t.pth" in out) == (encoding == "ascii")
