"""Seeds, options, the learning rate's schedule, and networks that are dead, broken or large."""

import csv
import json
import math

import by_numpy
import pytest
import torch

import lab1
import train
from labkit import checkpoint, data, metrics, processes
from model import autoencoderMLP4Layer, load, start_from_mean

SAVED = "-s", "model.pth", "-p", "loss.png"


@pytest.fixture
def run(tmp_path):
    """by_numpy.run() in an empty folder but for the images."""
    by_numpy.write_sets(tmp_path / "MNIST" / "raw")
    return lambda main, *args: by_numpy.run(tmp_path, main, *args)


@pytest.fixture
def run_lab1(run, monkeypatch):
    """Run lab1.py on an untrained network of some units which a function has changed."""
    def run_lab1(change, units=4):
        monkeypatch.setattr(train, "start_from_mean", torch.no_grad()(lambda model, mean: change(model)))
        summary = run(train.main, "-z", units, "-e", 0, *SAVED)[0][-1]
        return summary, *run(lab1.main, "-l", "model.pth", "--out", "out")

    return run_lab1


def learning_rates(path):
    return [float(row["learning_rate"]) for row in csv.DictReader((path / "loss.csv").open())]


def distinct(tensors):
    return len({tensor.numpy().tobytes() for tensor in tensors}) == len(tensors)


def test_each_seed_has_weights_of_its_own():
    def weights(seed):
        model, _, _ = train.build(train.Settings(seed=seed), torch.zeros(9, 784, dtype=torch.uint8))
        return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])

    assert weights(3).equal(weights(3)) and distinct([weights(seed) for seed in range(4)])


def test_each_epoch_of_each_seed_has_an_order_of_its_own():
    numbers = torch.arange(40, dtype=torch.uint8)[:, None]  # as images of one pixel

    def order(seed, epoch, rank=0, world_size=1):
        batches = data.batches(numbers, 12, seed, epoch, rank, world_size)
        return torch.cat([*batches]).mul(255).round().flatten()

    assert order(5, 2).equal(order(5, 2)) and order(5, 2).sort()[0].tolist() == [*range(40)]
    assert distinct([order(seed, epoch) for seed in (0, 1, 2, 2**63 - 1) for epoch in (1, 2, 3)])
    assert torch.stack([order(5, 2, rank, 2) for rank in (0, 1)], 1).flatten().equal(order(5, 2))


def test_each_epoch_of_each_process_of_each_seed_has_noise_of_its_own(run, monkeypatch):
    seeds, train_epoch, alone = [], train.train_epoch, processes.Processes("cpu")
    alone.on_rank_0 = lambda function, *args: function(*args)
    monkeypatch.setattr(train, "Processes", lambda device: alone)
    monkeypatch.setattr(train, "train_epoch",
                        lambda *args: seeds.append(torch.initial_seed()) or train_epoch(*args))

    def noise_seeds(seed, epochs, rank=0, *options):
        seeds.clear()
        alone.rank = rank
        run(train.main, "-z", 1, "--noise", 1, "--seed", seed, "-e", epochs, *SAVED, *options)
        return list(seeds)

    first = noise_seeds(4, 3)
    assert noise_seeds(4, 2) == first[:2] and noise_seeds(4, 3, 0, "--resume") == first[2:]
    weights = 4, 5
    assert len({*first, *noise_seeds(4, 3, rank=1), *noise_seeds(5, 3), *weights}) == 3 + 3 + 3 + 2


def test_random_codes_have_the_mean_and_covariance_of_the_codes():
    normal = metrics.normal_like(torch.empty(5000, 3), 0)
    codes = 50 + normal @ torch.tensor([[3, 0, 0], [2, 1, 0], [0, 0, 0.1]])
    random = metrics.random_like(codes, 5000, 1)
    torch.testing.assert_close(random.mean(0), codes.mean(0), atol=0.2, rtol=0)
    torch.testing.assert_close(random.T.cov(), codes.T.cov(), atol=0.1, rtol=0.1)
    assert random.equal(metrics.random_like(codes, 5000, 1))
    assert distinct([metrics.random_like(codes, 10, seed) for seed in range(4)])
    assert metrics.random_like(codes - 50, 10, 0).min() == 0  # as after a ReLU


def test_every_option_of_train_is_a_setting_of_the_run(run, tmp_path):
    expected = {"bottleneck": 3, "epochs": 1, "batch_size": 64, "lr": 0.01, "noise": 0.5, "init": "report",
                "seed": 9, "precision": "bfloat16"}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in expected.items()]
    run(train.main, *options, *SAVED)
    state = torch.load(tmp_path / "model.ckpt", weights_only=True)
    assert expected.items() <= state["made_with"].items()
    assert state["optimizer"]["param_groups"][0]["lr"] == 0.01
    assert load(tmp_path / "model.pth")[1] == {"dataset": "not-mnist", "epochs": 1, "settings": expected}


@pytest.mark.parametrize("main, args", [(train.main, SAVED), (lab1.main, ["-l", "model.pth"])])
def test_a_device_that_is_not_there_is_refused(main, args, capsys):
    with pytest.raises(SystemExit) as end:
        main([*args, "--device", "cuda:77"])
    assert end.value.code == 2 and "--device cuda:77 is unavailable" in capsys.readouterr().err


@pytest.mark.parametrize("world_size, device, expected, backend", [
    (1, None, "cuda", None), (1, "cuda:1", "cuda:1", None), (8, None, "cuda:3", "nccl"),
    (8, "cuda", "cuda:3", "nccl"), (8, "cpu", "cpu", "gloo")])
def test_each_process_takes_the_gpu_of_its_local_rank(world_size, device, expected, backend, monkeypatch):
    calls = []
    for name, value in {"WORLD_SIZE": world_size, "RANK": 7, "LOCAL_RANK": 3}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr(torch, "zeros", lambda size, device: torch.ones(size))  # so that it needs no GPU
    monkeypatch.setattr(processes.dist, "init_process_group", calls.append)
    monkeypatch.setattr(processes.dist, "destroy_process_group", lambda: None)
    with processes.Processes(device) as job:
        assert str(job.device) == expected and job.rank == (7 if world_size > 1 else 0)
    assert calls == [call for call in (expected, backend) if backend and call != "cpu"]


@pytest.mark.parametrize("fall, expected", [
    (0.99, [0.5] * 30), (1.0, [0.5] * 12 + [0.05] * 11 + [0.005] * 7)])  # patience: 10 epochs without a fall
def test_the_rate_is_cut_when_the_training_loss_stays(fall, expected, run, tmp_path, monkeypatch):
    def train_epoch(model, batches, optimizer, noise, precision):
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        return torch.tensor(losses.pop(0)), 330

    monkeypatch.setattr(train, "train_epoch", train_epoch)
    for stops in ([30], [7, 20, 30]):
        losses = [fall**epoch for epoch in range(30)]
        for number, epochs in enumerate(stops):
            run(train.main, "-z", 1, "-e", epochs, "--lr", 0.5, *SAVED, *["--resume"][:number])
        assert learning_rates(tmp_path) == pytest.approx(expected)


def break_weights(model, *_):
    model.fc3.bias.data[5] = math.nan
    return torch.tensor(0.1), 330


@pytest.mark.parametrize("train_epoch, words", [
    (lambda *_: (torch.tensor(math.nan), 330), "the loss became nan in epoch 3"),
    (lambda *_: (torch.tensor(math.inf), 330), "the loss became inf in epoch 3"),
    (break_weights, "fc3.bias became NaN or infinite in epoch 3")])
def test_a_training_ends_whose_numbers_are_not_finite(train_epoch, words, run, tmp_path, monkeypatch, capsys):
    run(train.main, "-e", 2, *SAVED)
    before = (tmp_path / "model.pth").read_bytes()
    monkeypatch.setattr(train, "train_epoch", train_epoch)
    run(train.main, "-e", 4, *SAVED, "--resume")
    assert f"train.py: {words}: try a lower --lr than 0.001" in capsys.readouterr().err
    assert (tmp_path / "model.pth").read_bytes() == before and len(learning_rates(tmp_path)) == 2


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(value, tmp_path):
    for name, tensor in autoencoderMLP4Layer().state_dict().items():
        tensor.view(-1)[-1] = value
        torch.save(autoencoderMLP4Layer().state_dict() | {name: tensor}, tmp_path / "model.pth")
        with pytest.raises(checkpoint.CheckpointError, match=f"model.pth: {name} holds NaN or infinite"):
            load(tmp_path / "model.pth")


def overflow(model):
    for tensor, value in ((model.fc2.weight, 1e38), (model.fc3.weight, 1), (model.fc4.weight, 1)):
        tensor.fill_(value)


@pytest.mark.parametrize("change", [
    overflow,
    lambda model: (model.fc2.bias.fill_(1e3), model.fc3.weight.fill_(3e38))])
def test_a_network_whose_codes_or_outputs_overflow_is_refused(change, run_lab1, tmp_path, capsys):
    run_lab1(change)
    assert "not finite: train again with a lower --lr" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("change, units, live", [
    (lambda model: model.fc2.bias.fill_(-1e6), 1, 0), (lambda model: model.fc2.bias.fill_(-1e6), 4, 0),
    (lambda model: (model.fc2.weight.zero_(), model.fc2.bias.fill_(5)), 2, 2),
    (lambda model: start_from_mean(model, torch.full((784,), 0.3)), 100, 100)])
def test_numbers_of_dead_of_constant_and_of_many_units_are_finite(change, units, live, run_lab1, tmp_path):
    _, _, drawn = run_lab1(change, units)
    numbers = json.loads((tmp_path / "out" / "metrics.json").read_text(), parse_constant=pytest.fail)
    assert numbers["bottleneck"]["live_units"] == live
    captions = [axes.get_title() for axes in drawn[3].axes[1:]]
    assert all(("DEAD" in caption) == (live == 0) for caption in captions) and len(captions) == min(units, 29)
    if units < 100:
        assert numbers["bottleneck"]["importance_of_each_unit"] == [0] * units
    for axes in [axes for figure in drawn for axes in figure.axes]:
        assert all(math.isfinite(x) for x in (*axes.get_xlim(), *axes.get_ylim()))
        assert all(math.isfinite(image.get_array().sum()) for image in axes.images)


@pytest.mark.parametrize("bright_in, training, test", [("train", 2, 1), ("t10k", 1, 2)])
def test_units_live_on_one_set_of_images_alone(bright_in, training, test, run_lab1, tmp_path, capsys):
    def change(model):
        """Let unit 0 be above 0 where the first pixel is bright."""
        for layer in (model.fc1, model.fc2):
            layer.weight[0] = torch.eye(layer.in_features)[0]
        model.fc1.bias[0], model.fc2.bias[0], model.fc2.bias[1] = 0, -0.7, 1e3

    sets = {name: (images.copy(), labels) for name, (images, labels) in by_numpy.SETS.items()}
    for name, (images, _) in sets.items():
        images[:, 0, 0] = 0
        images[-1, 0, 0] = 255 * (name == bright_in)
    by_numpy.write_sets(tmp_path / "MNIST" / "raw", sets)
    summary, lines, _ = run_lab1(change, 2)
    assert f"; {training} of 2 bottleneck units live on the training images;" in summary
    assert ("1 of 2 bottleneck units are dead" in capsys.readouterr().err) == (training == 1)
    assert f"{test} of 2 units live on the test images" in lines


def test_outputs_of_another_size_than_inputs(tmp_path):
    model, mean = autoencoderMLP4Layer(N_input=100, N_bottleneck=3, N_output=50), torch.linspace(0, 1, 50)
    start_from_mean(model, mean)
    assert (model.fc1.out_features, model.fc3.out_features, model.input_shape) == (50, 50, (1, 100))
    torch.testing.assert_close(model(torch.rand(500, 100)).mean(0), mean, atol=0.15, rtol=0)
    torch.save(autoencoderMLP4Layer(784, 8, 700).state_dict(), tmp_path / "model.pth")
    with pytest.raises(checkpoint.CheckpointError, match=r"fc4.weight is \(700, 392\); expected \(784,"):
        load(tmp_path / "model.pth")
