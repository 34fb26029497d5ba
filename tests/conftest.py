"""What several test files need: the commands as a user runs them, and a network written from the report alone."""

import os
import subprocess
import sys
from pathlib import Path

os.environ["MPLBACKEND"] = "agg"  # no test opens a window

import pytest
import torch
from torch import nn

from labkit import glyphs

ROOT = Path(__file__).parent.parent
SMALL = {"train": 2000, "test": 600}
START = f"""
import runpy, sys
sys.path.insert(0, {str(ROOT)!r})
from labkit import data, glyphs
glyphs.SIZES = {SMALL}
del sys.argv[0]
"""


def command(script, *args, cwd, setup="", **options):
    """Start `python SCRIPT ARGS` on small glyphs, without a display; `setup` is Python to run before it."""
    code = f"{START}{setup}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    env = {k: v for k, v in os.environ.items() if k not in ("DISPLAY", "WAYLAND_DISPLAY")}
    return subprocess.Popen([sys.executable, "-c", code, ROOT / script, *map(str, args)], cwd=cwd, env=env, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options)


@pytest.fixture
def run(tmp_path):
    """Run a command in tmp_path to its end and return its exit status, stdout and stderr."""

    def run(script, *args, **options):
        process = command(script, *args, cwd=tmp_path, **options)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    return run


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Glyphs in a small number, and tmp_path as the current folder."""
    monkeypatch.setattr(glyphs, "SIZES", SMALL)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def refused(capsys):
    """Call a main() that has to end with a status and one line on stderr, and return the line."""

    def refused(main, *args, status=1):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        if isinstance(end.value.code, str):  # as the interpreter does
            print(end.value.code, file=sys.stderr)
        err = capsys.readouterr().err
        assert (1 if isinstance(end.value.code, str) else end.value.code) == status, err
        assert err.count("\n") == 1 and "Traceback" not in err
        return err

    return refused


class Report(nn.Module):
    """The report's network, from its text alone."""

    def __init__(self, N_input=784, N_bottleneck=8, N2=392):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(N_input, N2), nn.Linear(N2, N_bottleneck)
        self.fc3, self.fc4 = nn.Linear(N_bottleneck, N2), nn.Linear(N2, N_input)

    def forward(self, X):
        code = torch.relu(self.fc2(torch.relu(self.fc1(X))))
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(code))))
