import csv
import os
from types import SimpleNamespace

import pytest
import torch

import train
from labkit import UsageError, checkpoint, data, run_files


@pytest.fixture
def files(tmp_path):
    """The files of a run after its first epoch."""
    files = run_files.RunFiles(tmp_path / "model.pth", tmp_path / "loss.png")
    snapshot(files, epochs=1)
    return files


def snapshot(files, epochs):
    model, optimizer, _ = train.build(8, data.Images(torch.zeros(2, 784, dtype=torch.uint8), torch.zeros(2)))
    row = {"loss": 0.1, "test_loss": 0.1, "learning_rate": 0.001, "seconds": 1.0}
    history = [{"epoch": number} | row for number in range(1, epochs + 1)]
    files.snapshot(model, optimizer, history, train.DEFAULTS | {"dataset": "kmnist"})
    return model


def test_checkpoints_are_written_every_few_seconds(files, monkeypatch):
    written = []
    for epochs, now in ((1, 100.0), (2, 100.1), (3, 100.0 + run_files.CHECKPOINT_SECONDS + 0.1), (4, 105.2)):
        monkeypatch.setattr(run_files, "time", SimpleNamespace(monotonic=lambda now=now: now))
        snapshot(files, epochs)
        files.write_checkpoint()
        written.append(len(checkpoint.load_checkpoint(files.checkpoint, train.DEFAULTS)["history"]))
    assert written == [1, 1, 3, 3]


def test_a_checkpoint_that_cannot_be_written_is_warned_of_once(files, small_files, monkeypatch, capsys):
    monkeypatch.setattr(run_files, "CHECKPOINT_SECONDS", 0)
    for _ in range(3):
        files.write_checkpoint()
    warning = f"warning: {files.checkpoint}: File too large; training goes on without a checkpoint\n"
    assert capsys.readouterr().err == warning and not files.checkpoint.exists()


def test_what_is_kept_does_not_change_with_the_network(files):
    model = snapshot(files, epochs=1)
    before = model.fc1.bias.clone()
    with torch.no_grad():
        model.fc1.bias.add_(1)
    files.write_all()
    assert checkpoint.load_weights(files.weights).fc1.bias.equal(before)


def test_before_the_first_epoch_is_complete_nothing_is_written(tmp_path, capsys):
    files = run_files.RunFiles(tmp_path / "model.pth", tmp_path / "loss.png")
    snapshot(files, epochs=0)
    files.write_all()
    assert capsys.readouterr().out == "no epoch was completed: nothing was written\n"
    assert os.listdir(tmp_path) == []


def test_ranks_above_0_write_nothing(tmp_path):
    weights, plot = tmp_path / "model.pth", tmp_path / "loss.png"
    files = run_files.RunFiles(weights, plot, rank=1)
    snapshot(files, epochs=1)
    files.write_checkpoint()
    files.write_all()
    assert os.listdir(tmp_path) == []


def test_the_numbers_of_the_loss_curve_can_be_read(files):
    files.write_all()
    row, = csv.DictReader(files.csv.read_text().splitlines())
    expected = {"epoch": "1", "loss": "0.1", "test_loss": "0.1", "learning_rate": "0.001", "seconds": "1.0"}
    assert row == expected


@pytest.mark.parametrize("weights, plot, csv", [
    ("a.pth", "b.png", "b.csv"),
    ("a", "b.c.pdf", "b.c.csv"),
    ("a.pth", "loss", "loss.csv"),
    ("a.pth", "x.y/b", "x.y/b.csv"),
])
def test_where_the_files_go(weights, plot, csv):
    files = run_files.RunFiles(weights, plot)
    assert str(files.checkpoint) == "a.ckpt" and str(files.csv) == csv


@pytest.mark.parametrize("weights, plot", [("a.png", "a.png"), ("a.pth", "a.ckpt"), ("a.csv", "a.png"),
                                           ("a.pth", "./a.pth"), ("a.pth", "loss.csv")])
def test_files_need_names_of_their_own(weights, plot, folder):
    with pytest.raises(UsageError, match="need four different names"):
        run_files.RunFiles(weights, plot).require_writable()
    assert os.listdir(folder) == []
