import copy
import hashlib
import json
import pickle
import random
import zipfile

import pytest
import torch
from conftest import FAST, ROOT, Report
from damage import Hostile, damaged, zipped

import train
from labkit import checkpoint, data
from model import autoencoderMLP4Layer


@pytest.fixture
def weights(tmp_path):
    """A file with the weights of five units."""
    path = tmp_path / "model.pth"
    torch.save(autoencoderMLP4Layer(N_bottleneck=5).state_dict(), path)
    return path


def load_checkpoint(path):
    return checkpoint.load_checkpoint(path, train.DEFAULTS)


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


@pytest.mark.parametrize("bottleneck", [1, 2, 32, 784])
def test_the_bottleneck_is_read_from_the_file(bottleneck, tmp_path):
    torch.save(Report(N_bottleneck=bottleneck).state_dict(), tmp_path / "model.pth")
    assert checkpoint.load_weights(tmp_path / "model.pth").fc2.out_features == bottleneck


def weights_with(**changes):
    return Report().state_dict() | {name.replace("_", "."): tensor for name, tensor in changes.items()}


STRANGE = {
    "nothing": (b"", "damaged, or not written by"),
    "a text": (b"fc1.weight = 0\n", "damaged, or not written by"),
    "another archive": (zipped({"readme": "hello"}), "cannot be read"),
    "a pickled module": (Report(), "ask its author for torch.save"),
    "a tensor": (torch.zeros(3), "holds Tensor; expected the network's"),
    "an empty dictionary": ({}, "holds nothing; expected the network's state_dict: fc1.weight"),
    "another network": (torch.nn.Linear(3, 3).state_dict(), "holds 'weight', 'bias'; expected"),
    "another hidden size": (Report(N2=128).state_dict(),
                            r"fc1.weight is \(128, 784\); expected \(392, 784\)"),
    "colour images": (Report(N_input=3072, N2=1536).state_dict(), r"expected \(392, 784\)"),
    "half floats": (Report().half().state_dict(), "fc1.weight is torch.float16"),
    "a number for a tensor": (weights_with(fc1_weight=1.0), "fc1.weight is float"),
    "a scalar": (weights_with(fc2_bias=torch.tensor(0.0)), r"fc2.weight is \(8, 392\)"),
    "not a number": (weights_with(fc3_bias=torch.full((392,), torch.nan)), "fc3.bias holds NaN or infinite"),
    "infinity": (weights_with(fc4_bias=torch.full((784,), torch.inf)), "fc4.bias holds NaN or infinite"),
    "a terabyte in four bytes": (weights_with(fc2_bias=torch.zeros(1).expand(10**12)),
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
        checkpoint.load_weights(path)
    assert "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(10**6))
    with pytest.raises(checkpoint.CheckpointError, match=r"bomb.pth is damaged.*\(compressed members\)"):
        checkpoint.load_weights(tmp_path / "bomb.pth")


@pytest.mark.parametrize("folder", ["outputs/reference", "outputs/reference/denoiser"])
def test_the_reference_weights_are_those_of_the_reference_numbers(folder):
    weights = ROOT / folder / "model.pth"
    assert checkpoint.load_weights(weights).fc2.out_features == 8
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
        for load in (checkpoint.load_weights, load_checkpoint):
            with pytest.raises(checkpoint.CheckpointError):
                load(path)
    assert not marker.exists()


def test_mutated_files_load_as_they_were_or_are_refused(weights):
    good, whole = checkpoint.load_weights(weights).state_dict(), weights.read_bytes()
    rng, refused = random.Random(0), 0
    for _ in range(100):
        weights.write_bytes(damaged(whole, rng))
        try:
            loaded = checkpoint.load_weights(weights).state_dict()
        except checkpoint.CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
        else:
            assert all(loaded[name].equal(good[name]) for name in good)
    assert refused > 50


def test_weights_in_the_format_before_pytorch_1_6_load_and_damaged_ones_are_refused_or_load(tmp_path):
    path, model = tmp_path / "old.pth", Report()
    torch.save(model.state_dict(), path, _use_new_zipfile_serialization=False)
    loaded = checkpoint.load_weights(path).state_dict()
    assert all(loaded[name].equal(tensor) for name, tensor in model.state_dict().items())

    whole, rng, refused = path.read_bytes(), random.Random(0), 0
    for _ in range(30):
        path.write_bytes(damaged(whole, rng))  # without checksums, a weight may have changed
        try:
            loaded = checkpoint.load_weights(path).state_dict()
            assert all(tensor.isfinite().all() for tensor in loaded.values())
        except checkpoint.CheckpointError as error:
            refused += 1
            assert "\n" not in str(error)
    assert refused >= 5


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """The state of a run of two epochs, four steps each."""
    folder = tmp_path_factory.mktemp("run")
    options = [*FAST, "-s", folder / "model.pth", "-p", folder / "loss.png", "-e", "2"]
    train.main([str(option) for option in options])
    return load_checkpoint(folder / "model.ckpt")


def resume(path):
    """Read and restore a checkpoint as train.py does."""
    state = load_checkpoint(path)
    run = train.build(8, data.Images(torch.zeros(2, 784, dtype=torch.uint8), torch.zeros(2)))
    checkpoint.restore(state, path, *run, steps_per_epoch=4)
    return run


def test_a_run_is_restored_bit_by_bit(good, tmp_path):
    torch.save(good, tmp_path / "good.ckpt")
    model, optimizer, _ = resume(tmp_path / "good.ckpt")
    assert all(tensor.equal(good["model"][name]) for name, tensor in model.state_dict().items())
    for number, moments in optimizer.state_dict()["state"].items():
        assert all(moments[name].equal(tensor) for name, tensor in good["optimizer"][number].items())


def test_adam_counts_to_2_to_the_24_and_a_longer_run_goes_on(good, tmp_path):
    steps = 2**24  # the largest that its float32 reaches by adding 1
    moments = {number: entry | {"step": torch.tensor(float(steps))} for number, entry in
               good["optimizer"].items()}
    run = train.build(8, data.Images(torch.zeros(2, 784, dtype=torch.uint8), torch.zeros(2)))
    checkpoint.restore(good | {"optimizer": moments}, "long.ckpt", *run, steps_per_epoch=(steps + 100) // 2)


ABSENT = object()
NAN = float("nan")
WRONG = {  # the path of an entry, what it becomes, what is said about it
    "no history": (("history",), ABSENT, "is not a checkpoint of train.py: expected model, optimizer"),
    "history of text": (("history",), ["0.1"], "history, epoch 1 is of type str; expected dict"),
    "history a number": (("history",), 3, "history is of type int; expected list"),
    "loss NaN": (("history", 1, "loss"), NAN, "history, epoch 2, loss is nan; expected a finite number"),
    "test loss text": (("history", 0, "test_loss"), "0.1", "history, epoch 1, test_loss is of type str"),
    "loss above 1": (("history", 0, "loss"), 1.5, "history, epoch 1 is .*; expected losses from 0 to 1"),
    "loss below 0": (("history", 0, "loss"), -0.1, "history, epoch 1 is .*; expected losses from 0 to 1"),
    "no seconds": (("history", 1, "seconds"), ABSENT, "history, epoch 2 must have the entries"),
    "another epoch": (("history", 1, "epoch"), 7, "history, epoch 2 is"),
    "another rate": (("history", 1, "learning_rate"), 0.5, "history, epoch 2 has a learning rate"),
    "an epoch less": (("history", 1), ABSENT, "optimizer, 0 does not fit 4 steps of Adam"),
    "lr a list": (("settings", "lr"), [1], "settings, lr is of type list; expected float"),
    "seed NaN": (("settings", "seed"), NAN, "settings, seed is of type float; expected int"),
    "no settings": (("settings",), None, "settings is of type NoneType; expected dict"),
    "no noise": (("settings", "noise"), ABSENT, "settings must have the entries bottleneck"),
    "another bottleneck": (("settings", "bottleneck"), 7, "model and settings have bottlenecks of different"),
    "weights NaN": (("model", "fc1.bias"), torch.full((392,), NAN), "fc1.bias holds NaN or infinite"),
    "another data set": (("settings", "dataset"), "imagenet", "settings, dataset is 'imagenet'"),
    "another start": (("settings", "init"), "zero", "settings, init is 'zero'"),
    "a bool for an int": (("settings", "seed"), True, "settings, seed is of type bool; expected int"),
    "no moments": (("optimizer",), {}, "optimizer must have the entries 0, 1, 2"),
    "moments a list": (("optimizer",), [], "optimizer is of type list; expected dict"),
    "moment of another shape": (("optimizer", 0, "exp_avg"), torch.zeros(3),
                                r"optimizer, 0, exp_avg is \(3,\); expected \(392, 784\)"),
    "moment NaN": (("optimizer", 1, "exp_avg"), torch.full((392,), NAN), "optimizer, 1, exp_avg holds NaN"),
    "moment a number": (("optimizer", 1, "exp_avg"), 0.0, "optimizer, 1, exp_avg is float"),
    "moment missing": (("optimizer", 1, "exp_avg"), ABSENT, "optimizer, 1 must have the entries step"),
    "square below 0": (("optimizer", 1, "exp_avg_sq"), -torch.ones(392), "optimizer, 1 does not fit 8 steps"),
    "another step": (("optimizer", 2, "step"), torch.tensor(9.0), "optimizer, 2 does not fit 8 steps"),
}


@pytest.mark.parametrize("path, value, words", WRONG.values(), ids=WRONG)
def test_a_wrong_entry_of_a_checkpoint_is_refused_by_its_name(path, value, words, good, tmp_path):
    state = copy.deepcopy(good)
    *outer, last = path
    entry = state
    for key in outer:
        entry = entry[key]
    if value is ABSENT:
        del entry[last]
    else:
        entry[last] = value
    torch.save(state, tmp_path / "wrong.ckpt")
    with pytest.raises(checkpoint.CheckpointError, match=words) as refusal:
        resume(tmp_path / "wrong.ckpt")
    assert "\n" not in str(refusal.value) and str(tmp_path / "wrong.ckpt") in str(refusal.value)


def test_weights_are_no_checkpoint(weights):
    with pytest.raises(checkpoint.CheckpointError, match="not a checkpoint of train.py"):
        load_checkpoint(weights)


@pytest.fixture
def run_weights(good, tmp_path):
    """The weights of a run, its checkpoint beside them."""
    torch.save(good["model"], tmp_path / "model.pth")
    torch.save(good | {"settings": good["settings"] | {"dataset": "kmnist"}}, tmp_path / "model.ckpt")
    return tmp_path / "model.pth"


def test_the_training_set_is_known_where_the_checkpoint_holds_these_very_weights(run_weights, tmp_path):
    model = checkpoint.load_weights(run_weights)
    assert checkpoint.dataset_trained_on(run_weights, model) == "kmnist"
    assert checkpoint.dataset_trained_on(tmp_path / "other.pth", model) is None  # no checkpoint there
    (tmp_path / "link.pth").symlink_to(run_weights)
    assert checkpoint.dataset_trained_on(tmp_path / "link.pth", model) == "kmnist"
    with torch.no_grad():
        model.fc1.bias[0] += 1e-3
    assert checkpoint.dataset_trained_on(run_weights, model) is None
    assert checkpoint.dataset_trained_on(run_weights, autoencoderMLP4Layer(N_bottleneck=5)) is None


NO_CHECKPOINTS = [3, [], {}, {"model": {}}, {"settings": {"dataset": "mnist"}}, {"settings": None}]


@pytest.mark.parametrize("content", NO_CHECKPOINTS, ids=repr)
def test_a_strange_checkpoint_says_nothing_about_the_training_set(content, run_weights):
    torch.save(content, run_weights.with_suffix(".ckpt"))
    assert checkpoint.dataset_trained_on(run_weights, checkpoint.load_weights(run_weights)) is None


@pytest.mark.parametrize("dataset", ["imagenet", 3])
def test_a_training_set_of_another_name_is_unknown(dataset, good, run_weights):
    torch.save(good | {"settings": {"dataset": dataset}}, run_weights.with_suffix(".ckpt"))
    assert checkpoint.dataset_trained_on(run_weights, checkpoint.load_weights(run_weights)) is None
