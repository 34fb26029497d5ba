import hashlib
import json
import pickle
import random
import zipfile

import pytest
import torch
from conftest import FAST, ROOT, Report
from damage import Hostile, damaged, zipped
from torch import nn

import lab1
import train
from labkit import checkpoint
from model import autoencoderMLP4Layer, load


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of five units."""
    path = tmp_path / "model.pth"
    torch.save(autoencoderMLP4Layer(N_bottleneck=5).state_dict(), path)
    return path


def test_weights_travel_both_ways(weights, tmp_path):
    theirs = Report(N_bottleneck=5)
    theirs.load_state_dict(torch.load(weights, weights_only=True), strict=True)
    torch.save(theirs.state_dict(), tmp_path / "theirs.pth")
    ours = load(tmp_path / "theirs.pth")[0]
    assert ours.fc2.out_features == 5
    torch.testing.assert_close(ours(torch.ones(784)), theirs(torch.ones(784)))


def test_tied_weights_load(tmp_path):
    tied = Report().state_dict()
    tied["fc4.weight"] = tied["fc1.weight"].t()
    torch.save(tied, tmp_path / "tied.pth")
    assert load(tmp_path / "tied.pth")[0].fc4.weight.equal(tied["fc1.weight"].t())


@pytest.mark.parametrize("bottleneck", [1, 2, 32, 784])
def test_the_bottleneck_is_read_from_the_file(bottleneck, tmp_path):
    torch.save(Report(N_bottleneck=bottleneck).state_dict(), tmp_path / "model.pth")
    assert load(tmp_path / "model.pth")[0].fc2.out_features == bottleneck


def weights_with(**changes):
    return Report().state_dict() | {name.replace("_", "."): tensor for name, tensor in changes.items()}


STRANGE = {
    "nothing": (b"", "was not written by torch.save, or is damaged"),
    "a text": (b"fc1.weight = 0\n", "was not written by torch.save, or is damaged"),
    "another archive": (zipped({"readme": "hello"}), "cannot be read"),
    "a pickled module": (Report(), "ask its author for torch.save"),
    "a tensor": (torch.zeros(3), "holds no state_dict: ask its author"),
    "an empty dictionary": ({}, "holds no state_dict"),
    "two networks": ({"a": Report().state_dict(), "b": Report().state_dict()}, "holds no state_dict"),
    "another network": (nn.Linear(3, 3).state_dict(), "holds weight, bias; expected fc1.weight, .*Rename"),
    "another hidden size": (Report(N2=128).state_dict(), r"fc1.weight is \(128, 784\); expected \(392,"),
    "colour images": (Report(N_input=3072, N2=1536).state_dict(), r"expected \(392, 784\)"),
    "other outputs": (weights_with(fc4_bias=torch.zeros(10)), r"fc4.bias is \(10,\); expected \(784,\)"),
    "whole numbers": (weights_with(fc2_bias=torch.zeros(8, dtype=torch.int64)), "fc2.bias is torch.int64"),
    "a number for a tensor": (weights_with(fc1_weight=1.0), "holds no state_dict"),
    "a scalar": (weights_with(fc2_bias=torch.tensor(0.0)), r"fc2.weight is \(8, 392\)"),
    "not a number": (weights_with(fc3_bias=torch.full((392,), torch.nan)), "fc3.bias holds NaN or infinite"),
    "infinity": (weights_with(fc4_bias=torch.full((784,), torch.inf)), "fc4.bias holds NaN or infinite"),
    "a terabyte in four bytes": (weights_with(fc2_bias=torch.zeros(1).expand(10**12)),
                                 "more than the file holds"),
    "half a terabyte in two bytes": (weights_with(fc2_bias=torch.zeros(1).half().expand(10**12)),
                                     "more than the file holds"),
    "sparse weights": (weights_with(fc1_weight=torch.eye(392, 784).to_sparse()), "fc1.weight is"),
}


@pytest.mark.parametrize("content, words", STRANGE.values(), ids=STRANGE)
def test_strange_files_are_refused_in_one_line(content, words, tmp_path):
    path = tmp_path / "strange.pth"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(checkpoint.CheckpointError, match=words) as refusal:
        load(path)[0]
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(checkpoint.CheckpointError, match="bomb.pth was not written by torch.save, or"):
        load(tmp_path / "bomb.pth")[0]


@pytest.mark.parametrize("folder", ["outputs/reference", "outputs/reference/denoiser"])
def test_the_reference_weights_are_those_of_the_reference_numbers(folder):
    weights = ROOT / folder / "model.pth"
    assert load(weights)[0].fc2.out_features == 8
    numbers = json.loads((ROOT / folder / "metrics.json").read_text())
    assert numbers["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()


def test_no_code_in_a_file_is_run(tmp_path):
    marker, path = tmp_path / "marker", tmp_path / "hostile.pth"
    torch.save({"fc1.weight": Hostile(marker)}, path)
    inside = zipfile.ZipFile(path)
    assert any(b"open" in inside.read(name) for name in inside.namelist())  # the bait is in the file
    plain = pickle.dumps(Hostile(marker))
    for content in (path.read_bytes(), plain, zipped({"archive/data.pkl": plain})):
        path.write_bytes(content)
        for read in (load, checkpoint.read):
            with pytest.raises(checkpoint.CheckpointError):
                read(path)
    assert not marker.exists()


def test_mutated_files_load_as_they_were_or_are_refused(weights):
    good, whole = load(weights)[0].state_dict(), weights.read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(100):
        weights.write_bytes(damaged(whole, rng))
        try:
            loaded = load(weights)[0].state_dict()
        except checkpoint.CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(loaded[name].equal(good[name]) for name in good)
    assert refused > 50


def test_weights_in_the_format_before_pytorch_1_6_load_and_damaged_ones_are_refused_or_load(tmp_path):
    path, model = tmp_path / "old.pth", Report()
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    loaded = load(path)[0].state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in model.state_dict().items())

    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(30):
        path.write_bytes(damaged(whole, rng))  # without checksums, a weight may have changed
        try:
            loaded = load(path)[0].state_dict()
            assert all(tensor.isfinite().all() for tensor in loaded.values())
        except checkpoint.CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 5


def wrapped(model):
    return {"epoch": 3, "model_state_dict": model.state_dict(), "optimizer": {"lr": 0.1}}


@pytest.mark.parametrize("content", [
    lambda model: nn.DataParallel(model).state_dict(), wrapped, lambda model: model.double().state_dict(),
], ids=["module.", "wrapped", "float64"])
def test_weights_of_parallel_networks_wrapped_ones_and_other_precisions_load(content, tmp_path):
    model = Report(N_bottleneck=3)
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    torch.save(content(model), tmp_path / "theirs.pth")
    loaded = load(tmp_path / "theirs.pth")[0].state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in expected.items())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_taken_as_float32(dtype, tmp_path):
    torch.save(Report().to(dtype).state_dict(), tmp_path / "half.pth")
    assert load(tmp_path / "half.pth")[0].fc1.weight.dtype == torch.float32


def test_a_checkpoint_and_a_picture_are_called_what_they_are(tmp_path):
    for name, words in (("model.ckpt", "is for --resume: load .*model.pth beside it"),
                        ("loss.png", "was not written by torch.save"), ("missing.pth", "run train.py first")):
        if name != "missing.pth":
            (tmp_path / name).write_bytes(b"\x89PNG")
        with pytest.raises(checkpoint.CheckpointError, match=words):
            load(tmp_path / name)


def test_weights_say_how_they_were_trained_and_lab1_tests_them_on_that_data_set(folder, capsys):
    train.main([*FAST, "-e", "2", "-z", "3", "--noise", "0.1"])
    model, record = load("model.pth")
    assert record["dataset"] == "glyphs" and record["epochs"] == 2 and model.fc2.out_features == 3
    assert record["settings"] == vars(train.Settings(bottleneck=3, epochs=2, batch_size=256, noise=0.1))
    assert list(torch.load("model.pth", weights_only=True)) == list(Report().state_dict())
    capsys.readouterr()
    lab1.main(["-l", "model.pth", "--step", "4"])
    assert "glyphs: 300 test images through model.pth, 3 units" in capsys.readouterr().out


def test_a_setting_may_be_yes_or_no():
    weights, record = Report().state_dict(), {"dataset": "mnist", "epochs": 1, "settings": {"tied": True}}
    assert checkpoint.record_of(checkpoint.with_record(weights, record)) == record


@pytest.mark.parametrize("metadata", [None, {}, {"": 3}, {"": {"dataset": 3, "epochs": 1, "settings": {}}},
                                      {"": {"dataset": "mnist", "epochs": 1, "settings": {"lr": [1]}}}])
def test_a_strange_record_says_nothing(metadata, tmp_path):
    weights = Report().state_dict()
    weights._metadata = metadata
    torch.save(weights, tmp_path / "model.pth")
    assert load(tmp_path / "model.pth")[1] is None
