import os
import pickle
import random
import resource
import signal
import zipfile

import pytest
import torch
from conftest import Report

import train
from labkit import checkpoint, data
from model import autoencoderMLP4Layer
from tests.damage import Hostile, zipped


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "model.pth"
    checkpoint.write(path, checkpoint.to_bytes(autoencoderMLP4Layer(N_bottleneck=5).state_dict()))
    return path


def test_weights_travel_both_ways(weights, tmp_path):
    theirs = Report(N_bottleneck=5)
    theirs.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = checkpoint.load_weights(tmp_path / "theirs.pth")
    assert ours.fc2.out_features == 5
    torch.testing.assert_close(ours(torch.ones(784)), theirs(torch.ones(784)))


def test_tied_weights_load(tmp_path):
    tied = Report().state_dict()
    tied["fc4.weight"] = tied["fc1.weight"].t()
    torch.save(tied, tmp_path / "tied.pth")
    assert checkpoint.load_weights(tmp_path / "tied.pth").fc4.weight.equal(tied["fc1.weight"].t())


def test_a_write_that_fails_keeps_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "file"
    checkpoint.write(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))  # what a full disk looks like to a process
    try:
        with pytest.raises(OSError):
            checkpoint.write(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]
    checkpoint.write(path, b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_two_processes_that_write_one_file_leave_one_whole_file(tmp_path):
    path, contents = tmp_path / "file", (b"a" * 3_000_000, b"b" * 3_000_000)
    writers = []
    for content in contents:
        writers.append(os.fork())
        if writers[-1] == 0:
            for _ in range(30):
                checkpoint.write(path, content)
            os._exit(0)
    seen = set()
    for writer in writers:
        while os.waitpid(writer, os.WNOHANG) == (0, 0):
            if path.exists():
                seen.add(path.read_bytes())
    assert seen | {path.read_bytes()} <= set(contents) and os.listdir(tmp_path) == ["file"]


def test_a_link_stays_a_link_and_a_device_a_device(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "target")
    checkpoint.write(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink() and (tmp_path / "target").read_bytes() == b"new"
    with pytest.raises(OSError, match="not a regular file"):
        checkpoint.require_writable("/dev/null")


def state(**changes):
    return Report().state_dict() | changes


STRANGE = {
    "nothing": (b"", "damaged or no file"),
    "a text": (b"fc1.weight = 0\n", "damaged or no file"),
    "another archive": (zipped({"readme": "hello"}), "can't be read"),
    "a pickled module": (Report(), "ask its author for torch.save"),
    "a tensor": (torch.zeros(3), "holds Tensor; expected fc1.weight"),
    "an empty dictionary": ({}, "holds nothing; expected fc1.weight"),
    "another network": (torch.nn.Linear(3, 3).state_dict(), "holds 'weight', 'bias'; expected fc1.weight"),
    "another hidden size": (Report(N2=128).state_dict(), r"fc1.weight is \(128, 784\); expected \(392, 784\)"),
    "colour images": (Report(N_input=3072, N2=1536).state_dict(), r"expected \(392, 784\)"),
    "half floats": (Report().half().state_dict(), "fc1.weight is torch.float16"),
    "a number for a tensor": (state(**{"fc1.weight": 1.0}), "fc1.weight is float"),
    "a scalar": (state(**{"fc2.bias": torch.tensor(0.0)}), r"fc2.weight is \(8, 392\)"),
    "not a number": (state(**{"fc3.bias": torch.full((392,), torch.nan)}), "fc3.bias holds NaN or infinite"),
    "infinity": (state(**{"fc4.bias": torch.full((784,), torch.inf)}), "fc4.bias holds NaN or infinite"),
    "a terabyte in four bytes": (state(**{"fc2.bias": torch.zeros(1).expand(10**12)}), "more than the file holds"),
    "sparse weights": (state(**{"fc1.weight": torch.eye(392, 784).to_sparse()}), "fc1.weight is"),
}


@pytest.mark.parametrize("content, words", STRANGE.values(), ids=STRANGE)
def test_strange_files_are_refused_in_one_line(content, words, tmp_path):
    path = tmp_path / "strange.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(checkpoint.CheckpointError, match=words) as refusal:
        checkpoint.load_weights(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_no_code_in_a_file_is_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    torch.save({"fc1.weight": Hostile(marker)}, path)
    inside = zipfile.ZipFile(path)
    assert any(b"open" in inside.read(name) for name in inside.namelist())  # the bait is in the file
    plain = pickle.dumps(Hostile(marker))
    for content in (path.read_bytes(), plain, zipped({"archive/data.pkl": plain})):
        path.write_bytes(content)
        for load in (checkpoint.load_weights, load_checkpoint):
            with pytest.raises(checkpoint.CheckpointError):
                load(path)
    assert not marker.exists()


def test_mutated_files_load_as_they_were_or_are_refused(weights):
    good, whole = checkpoint.load_weights(weights).state_dict(), weights.read_bytes()
    rng = random.Random(0)
    for i in range(150):
        at = rng.randrange(len(whole)) if i % 3 else rng.choice([rng.randrange(3000), len(whole) - rng.randrange(1, 3000)])
        weights.write_bytes(whole[:at] if i % 5 == 0 else whole[:at] + bytes([whole[at] ^ 1 << i % 8]) + whole[at + 1 :])
        try:
            loaded = checkpoint.load_weights(weights).state_dict()
        except checkpoint.CheckpointError as error:
            assert "\n" not in str(error)
        else:
            assert all(loaded[name].equal(good[name]) for name in good)


def load_checkpoint(path):
    return checkpoint.load_checkpoint(path, train.DEFAULTS)


def test_a_checkpoint_of_something_else_is_refused(weights, tmp_path):
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint of train.py"):
        load_checkpoint(weights)

    path, settings = tmp_path / "strange.ckpt", train.DEFAULTS | {"dataset": "glyphs"}
    strange = {"model": Report().state_dict(), "optimizer": {}, "history": [], "settings": settings}
    checkpoint.write(path, checkpoint.to_bytes(strange))
    run = train.build(8, data.Images(torch.zeros(2, 784, dtype=torch.uint8), torch.zeros(2)))
    with pytest.raises(checkpoint.CheckpointError, match="optimizer has other entries than state, param_groups"):
        checkpoint.restore(load_checkpoint(path), path, *run, steps=0)

    for key, value, words in (("history", ["0.1"], "history, epoch 1 is of type str"), ("history", 3, "history is of type int"),
                              ("settings", settings | {"lr": [1]}, "settings, lr is of type list")):
        checkpoint.write(path, checkpoint.to_bytes(strange | {key: value}))
        with pytest.raises(checkpoint.CheckpointError, match=words):
            load_checkpoint(path)
