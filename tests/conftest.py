"""What several test files need: small images, commands in processes of their own, the report's network."""

import functools
import os
import resource
import runpy
import signal
import socket
import sys
from multiprocessing import forkserver, get_context
from pathlib import Path
from threading import Timer

os.environ["MPLBACKEND"] = "agg"  # no test opens a window
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # and none takes a GPU

import damage
import pytest
import torch
from PIL import Image, ImageDraw
from torch import nn

from labkit import data, glyphs

ROOT = Path(__file__).parent.parent
torch.set_num_threads(1)  # two threads wait for each other for seconds where somebody else computes, too
MNIST = ROOT / "data" / "MNIST" / "raw"
needs_mnist = pytest.mark.skipif(  # a download that failed leaves an empty folder
    len([*MNIST.glob("*-ubyte*")]) < 4, reason="MNIST is not at hand")
SMALL = {"train": 1000, "test": 300}
FAST = ("--dataset", "glyphs", "-b", "256", "-s", "model.pth", "-p", "loss.png")  # train.py on small images

# Commands run in forks of one process that has imported what takes seconds to import.
FORKS = get_context("forkserver")
FORKS.set_forkserver_preload(["pytest", "torch", "torch._dynamo", "torch.nn.parallel", "tqdm",
                              "matplotlib.backends.backend_agg"])


@pytest.fixture(scope="session", autouse=True)
def drawings(tmp_path_factory):
    """Glyphs in a small number, drawn once; returns the file from which the commands take them."""
    forkserver.ensure_running()  # it imports while the first tests run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(glyphs, "SIZES", SMALL)
        patch.setattr(glyphs, "load", functools.cache(glyphs.load))
        path = tmp_path_factory.mktemp("glyphs") / "glyphs.pt"
        torch.save({split: glyphs.load(split) for split in SMALL}, path)
        yield path


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def small_files():
    """Files of more than 1 MB cannot be written: what a full disk looks like to a process.

    A smaller limit could stop pytest, which may be writing to a file, too.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


class Command:
    """`python SCRIPT ARGS` in a process of its own in `folder`, on small glyphs, without a display.

    `setup` is Python to run before the script, `environment` what to set, `encoding` that of stdout, None
    for a closed one.
    """

    def __init__(self, drawings, folder, script, *args, setup="", environment=None, encoding="utf-8"):
        self.folder = folder
        streams = [FORKS.Pipe(duplex=False) for _ in range(2)]
        task = (drawings, [str(ROOT / script), *map(str, args)], setup, environment or {}, encoding,
                folder)
        self.process = FORKS.Process(target=run_command, args=(*task, *(writer for _, writer in streams)))
        self.process.start()
        self.pid = self.process.pid
        for _, writer in streams:
            writer.close()
        self.stdout, self.stderr = (open(os.dup(reader.fileno())) for reader, _ in streams)

    def end(self):
        """Wait for the end; return the exit status, negative for a signal, stdout and stderr."""
        hanging = Timer(60, self.process.kill)
        hanging.start()
        out, err = self.stdout.read(), self.stderr.read()
        self.process.join()
        assert hanging.is_alive(), "it had not ended after a minute"
        hanging.cancel()
        return self.process.exitcode, out, err

    def stop(self):
        """End the process."""
        self.process.kill()
        self.process.join()


def run_command(drawings, argv, setup, environment, encoding, cwd, stdout, stderr):
    """Run the script in this process, as Command describes it."""
    os.setsid()
    os.chdir(cwd)
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    torch.set_num_threads(1)
    glyphs.load = torch.load(drawings, weights_only=True).__getitem__

    os.dup2(stdout.fileno(), 1)
    os.dup2(stderr.fileno(), 2)
    sys.stdout, sys.stderr = open(1, "w", encoding=encoding, closefd=False), open(2, "w", closefd=False)
    stdout.close()
    stderr.close()
    if encoding is None:
        sys.stdout = sys.__stdout__ = None  # as Python starts without the descriptor
        os.close(1)
    sys.argv = argv
    exec(setup, {})
    runpy.run_path(argv[0], run_name="__main__")


def at_epoch(number, then):
    """Return `setup` that runs a line of Python before the first batch of an epoch."""
    return f"""
import os, signal
from labkit import data
batches = data.batches
def at_epoch(images, batch_size, seed, epoch, *rest):
    if epoch == {number}:
        {then}
    return batches(images, batch_size, seed, epoch, *rest)
data.batches = at_epoch
"""


def with_signal(epoch, number):
    """Return `setup` with which the process gets a signal in an epoch."""
    return at_epoch(epoch, f"os.kill(os.getpid(), {int(number)})")


@pytest.fixture
def start(drawings, folder):
    """Start Commands in tmp_path, which end with the test."""
    commands = []

    def start(*args, **options):
        commands.append(Command(drawings, folder, *args, **options))
        return commands[-1]

    yield start
    for command in commands:
        command.stop()


def free_port():
    """Return a port on which nobody listens, as text."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.fixture
def start_job(start):
    """Start a Command in two processes on this machine, as torchrun does; return them by rank."""

    def start_job(script, *args, setups=("", "")):
        job = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": free_port(), "OMP_NUM_THREADS": "1"}
        return [start(script, "--device", "cpu", *args, setup=setup,
                      environment=job | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
                for rank, setup in enumerate(setups)]

    return start_job


@pytest.fixture
def refused(capsys):
    """Call a main() that has to end with a status and one line on stderr, and return the line."""

    def refused(main, *args, status=1):
        with pytest.raises(SystemExit) as end:
            main([str(a) for a in args])
        err = capsys.readouterr().err
        assert end.value.code == status, err
        assert err.count("\n") == 1 and "Traceback" not in err
        return err

    return refused


def put_archives(raw):
    """Write four small archives in MNIST's format into a folder; return their names and bytes."""
    images = torch.arange(30 * 784).remainder(256).to(torch.uint8).view(30, 28, 28)
    labels = torch.arange(30).remainder(10).to(torch.uint8)
    tensors = images[:20], labels[:20], images[20:], labels[20:]
    names = [f"{name}.gz" for split in ("train", "test") for name in data.FILES[split]]
    contents = {name: damage.gzipped_idx(tensor) for name, tensor in zip(names, tensors)}
    raw.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        (raw / name).write_bytes(content)
    return contents


@pytest.fixture
def unreachable(monkeypatch):
    """MNIST cannot be downloaded."""
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])


def same_weights(a, b):
    """Return whether two files hold the same bits of the same weights."""
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def history(path):
    """Return the epochs in the history of a checkpoint."""
    return torch.load(path, weights_only=True)["history"]


class Report(nn.Module):
    """The report's network, from its text alone."""

    def __init__(self, N_input=784, N_bottleneck=8, N2=392):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(N_input, N2), nn.Linear(N2, N_bottleneck)
        self.fc3, self.fc4 = nn.Linear(N_bottleneck, N2), nn.Linear(N2, N_input)

    def forward(self, X):
        code = torch.relu(self.fc2(torch.relu(self.fc1(X))))
        return torch.sigmoid(self.fc4(torch.relu(self.fc3(code))))


def draw_seven(path):
    """Draw a 7 with a thick pen into a picture file."""
    picture = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(picture).line([(50, 40), (150, 40), (90, 160)], fill=0, width=18)
    picture.save(path)
