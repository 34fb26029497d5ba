import csv
import functools
import os
import random
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, Report
from damage import damaged

import train
from labkit import LabError, UsageError, checkpoint, run

NAN = float("nan")


def new_run(folder, epochs=2, **changes):
    """Return the Run of `train.py -z 2 -b 256` on 500 images, after no epoch."""
    settings = train.Settings(bottleneck=2, epochs=epochs, batch_size=256)
    images = torch.arange(500 * 784).remainder(251).to(torch.uint8).view(500, 784)
    about = {"settings": vars(settings), "dataset": "glyphs", "images": 1} | changes
    return run.Run(*train.build(settings, images), *about.values(), folder / "model.pth", folder / "loss.png")


def step(this):
    """Train one step and note it as an epoch."""
    loss = this.model(torch.rand(8, 784)).square().mean()
    this.optimizer.zero_grad()
    loss.backward()
    this.optimizer.step()
    this.scheduler.step(loss.item())
    this.finish_epoch(0.1, 0.2, 0.001, 1.5)


def test_a_run_is_saved_every_few_seconds_weights_and_checkpoint_together(tmp_path, monkeypatch):
    this, saved = new_run(tmp_path), []
    for now in (100.0, 100.1, 100.0 + run.SAVE_SECONDS + 0.1, 105.2):
        monkeypatch.setattr(run, "time", SimpleNamespace(monotonic=lambda now=now: now))
        step(this)
        state, weights = checkpoint.read(this.checkpoint), checkpoint.read(this.weights)
        assert checkpoint.record_of(weights)["epochs"] == len(state["history"])
        assert all(weights[name].equal(tensor) for name, tensor in state["model"].items())
        saved.append(len(state["history"]))
    assert saved == [1, 1, 3, 3]


def test_curve_and_csv_are_written_though_the_weights_cannot_be(tmp_path):
    this = new_run(tmp_path)
    step(this)
    this.weights.unlink()

    def lost():
        raise RuntimeError("CUDA error")

    this.model.state_dict = lost
    with pytest.raises(RuntimeError):
        this.save()
    assert sorted(os.listdir(tmp_path)) == ["loss.csv", "loss.png", "model.ckpt"]
    row, = csv.DictReader(this.csv.read_text().splitlines())
    assert list(row) == ["epoch", "loss", "test_loss", "learning_rate", "seconds"]
    assert list(row.values()) == ["1", "0.1", "0.2", "0.001", "1.5"]


def test_the_weights_are_written_though_the_curve_cannot_be(tmp_path):
    this = new_run(tmp_path)
    step(this)
    step(this)
    this.plot.mkdir()
    with pytest.raises(run.SaveError, match="loss.png cannot be written: Is a directory: older files"):
        this.save()
    assert checkpoint.record_in(this.weights)["epochs"] == 2


@pytest.mark.parametrize("writable", [True, False])
def test_a_training_that_fails_leaves_its_curve_where_it_can_and_its_own_error(writable, tmp_path):
    this = new_run(tmp_path)
    if not writable:
        this.plot.mkdir()
    with pytest.raises(ZeroDivisionError), this.keeping_curve():
        step(this)
        raise ZeroDivisionError
    assert this.csv.read_text().count("\n") == 2 and this.plot.is_file() == writable


def test_a_run_whose_files_another_has_replaced_ends_and_leaves_them(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "SAVE_SECONDS", 0)
    first, second = new_run(tmp_path), new_run(tmp_path)
    step(first)
    step(second)
    second.save()
    files = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for save in (lambda: step(first), first.save):
        with pytest.raises(run.SaveError, match="replaced by another program, whose files are kept"):
            save()
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == files


def test_ranks_above_0_write_nothing(tmp_path):
    this = new_run(tmp_path)
    this.rank = 1
    step(this)
    this.save()
    assert os.listdir(tmp_path) == []


def test_what_will_be_replaced_is_said_before_the_work(tmp_path, capsys):
    this = new_run(tmp_path)
    this.prepare_files(fell_back=False)
    assert capsys.readouterr().out == ""
    step(this)
    this.save()
    capsys.readouterr()
    new_run(tmp_path, dataset="mnist").prepare_files(fell_back=False)
    first, second = capsys.readouterr().out.splitlines()
    assert first == f"{this.weights} was trained for 1 epochs on glyphs, which --resume would continue"
    assert second == "replacing " + ", ".join(f"{tmp_path}/{name}" for name in
                                              ("model.pth", "model.ckpt", "loss.png", "loss.csv"))


def test_a_run_that_fell_back_to_glyphs_keeps_the_weights_of_another_data_set(tmp_path):
    mnist = new_run(tmp_path, dataset="mnist")
    step(mnist)
    with pytest.raises(LabError, match="was not trained on glyphs and is kept: add --dataset glyphs"):
        new_run(tmp_path).prepare_files(fell_back=True)
    new_run(tmp_path).prepare_files(fell_back=False)
    torch.save(mnist.model.state_dict(), tmp_path / "model.pth")  # which does not say how it was trained
    with pytest.raises(LabError, match="is kept"):
        new_run(tmp_path).prepare_files(fell_back=True)


@pytest.mark.parametrize("weights, plot", [("a.png", "a.png"), ("a.pth", "a.ckpt"), ("a.csv", "a.png"),
                                           ("a.pth", "./a.pth"), ("a.pth", "loss.csv"), ("a.pth", "a.xyz")])
def test_files_need_names_of_their_own_and_a_format(weights, plot, folder):
    this = new_run(folder)
    this.weights, this.plot = folder / weights, folder / plot
    this.checkpoint = folder / f"{weights}".replace(".pth", ".ckpt")
    this.csv = this.plot.with_suffix(".csv")
    with pytest.raises(LabError, match="need four different names|cannot write this format"):
        this.prepare_files(fell_back=False)
    assert os.listdir(folder) == []


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The folder of a run of two epochs."""
    folder = tmp_path_factory.mktemp("good")
    this = new_run(folder)
    step(this)
    step(this)
    this.save()
    return folder


def resume(folder, **changes):
    this = new_run(folder, **changes)
    this.resume(this.read_checkpoint())
    return this


def test_a_run_is_restored_bit_by_bit(good):
    state, this = checkpoint.read(good / "model.ckpt"), resume(good)
    assert all(tensor.equal(state["model"][name]) for name, tensor in this.model.state_dict().items())
    for number, moments in this.optimizer.state_dict()["state"].items():
        saved = state["optimizer"]["state"][number]
        assert all(moments[name].equal(tensor) for name, tensor in saved.items())
    assert this.scheduler.state_dict() == state["scheduler"] and this.history == state["history"]


@pytest.mark.parametrize("changes, words", [
    ({"dataset": "kmnist"}, "was made with dataset glyphs, not kmnist: use the same again"),
    ({"images": 2}, "was made with images 1, not 2"),
    ({"settings": vars(train.Settings(bottleneck=2, batch_size=256, lr=0.1))}, "made with lr 0.001, not 0.1"),
    ({"settings": vars(train.Settings(bottleneck=2, batch_size=256, init="report"))}, "with init mean, not"),
    ({"epochs": 1}, "has 2 epochs: ask for -e 2 or more"),
])
def test_only_the_same_command_on_the_same_images_resumes(changes, words, good):
    before = {path: path.read_bytes() for path in good.iterdir()}
    with pytest.raises(LabError, match=words):
        resume(good, **changes)
    assert {path: path.read_bytes() for path in good.iterdir()} == before


OTHER = {"bottleneck": 3, "init": "report", "seed": 1, "batch_size": 2, "lr": 0.1, "noise": 0.1,
         "precision": "bfloat16"}


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_but_the_epochs_must_be_the_same(name, good):
    assert {*OTHER, "epochs"} == set(vars(train.Settings()))
    with pytest.raises(UsageError, match=f"was made with {name} .*, not {OTHER[name]}"):
        same = vars(train.Settings(bottleneck=2, batch_size=256))
        new_run(good, settings=same | {name: OTHER[name]}).read_checkpoint()


@pytest.mark.parametrize("entry", ["model", "optimizer", "scheduler", "history", "made_with"])
@pytest.mark.parametrize("value", [None, "text", NAN, torch.zeros(1).expand(10**12)])
def test_a_checkpoint_that_anybody_changed_is_refused(entry, value, good, tmp_path):
    state = checkpoint.read(good / "model.ckpt")
    assert set(state) == {"model", "optimizer", "scheduler", "history", "made_with"}
    torch.save(state | {entry: value}, tmp_path / "model.ckpt")
    with pytest.raises(checkpoint.CheckpointError, match="model.ckpt is damaged, or was not written by this"):
        resume(tmp_path)


def test_a_damaged_checkpoint_is_refused(good, tmp_path):
    whole, rng = (good / "model.ckpt").read_bytes(), random.Random(0)
    for content in [b"", whole[:-32], (good / "model.pth").read_bytes(),
                    *(damaged(whole, rng) for _ in range(30))]:
        (tmp_path / "model.ckpt").write_bytes(content)
        with pytest.raises(checkpoint.CheckpointError, match="model.ckpt is damaged, or was not written by"):
            resume(tmp_path)


def test_without_a_checkpoint_a_run_starts_from_the_beginning_and_says_so(folder, capsys):
    train.main([*FAST, "-e", "1", "--resume"])
    assert capsys.readouterr().out.startswith("no model.ckpt yet: starting from the beginning\n")


ADAM = torch.optim.Adam
OTHERS = {"SGD": lambda parameters, lr, fused: torch.optim.SGD(parameters, lr=lr, momentum=0.9),
          "AdamW": lambda parameters, lr, fused: torch.optim.AdamW(parameters, lr=lr, fused=True),
          "betas": lambda parameters, lr, fused: ADAM(parameters, lr=lr, fused=True, betas=(0.8, 0.9))}


@pytest.mark.parametrize("name", OTHERS)
def test_another_optimizer_resumes_to_the_same_bits_and_adam_does_not_go_on_from_it(
        name, folder, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        patch.setattr(torch.optim, "Adam", OTHERS[name])
        train.main([*FAST, "-e", "3", "-s", "straight.pth", "-p", "straight.png"])
        train.main([*FAST, "-e", "1"])
        train.main([*FAST, "-e", "3", "--resume"])
    assert (folder / "model.pth").read_bytes() == (folder / "straight.pth").read_bytes()
    with pytest.raises(SystemExit):
        train.main([*FAST, "-e", "4", "--resume"])
    made, _, now = capsys.readouterr().err.partition(", not Adam ")
    assert "model.ckpt was made with optimizer" in made and "use the same again, or choose another -s" in now


def test_another_network_does_not_go_on(good, monkeypatch):
    monkeypatch.setattr(train, "autoencoderMLP4Layer", lambda N_bottleneck: Report(784, N_bottleneck, 100))
    with pytest.raises(UsageError, match="was made with network .*=392, .*, not Report.*=100, "):
        resume(good, settings=vars(train.Settings(bottleneck=2, batch_size=256)))


def test_another_scheduler_does_not_go_on(good, monkeypatch):
    impatient = functools.partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=5)
    monkeypatch.setattr(torch.optim.lr_scheduler, "ReduceLROnPlateau", impatient)
    with pytest.raises(UsageError, match="made with scheduler ReduceLROnPlateau .*'patience': 10.*, not "):
        resume(good)
