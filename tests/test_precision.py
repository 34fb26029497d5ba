import pytest
import torch

import train
from labkit import checkpoint, data, metrics
from model import load

FAST = ("--dataset", "glyphs", "-b", "256", "--precision", "bfloat16", "-s", "model.pth", "-p", "loss.png")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder, which is the current one."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_layers_compute_in_the_precision_and_all_else_stays_float32(precision):
    images = torch.randint(256, (64, 784), dtype=torch.uint8)
    model, optimizer, _ = train.build(train.Settings(), images)
    used = []
    for layer in model.children():
        layer.register_forward_hook(lambda layer, inputs, output: used.append(output.dtype))
    loss, _ = train.train_epoch(model, [data.to_float(images)], optimizer, 0, precision)

    assert used == 4 * [getattr(torch, precision)]
    moments = [value for state in optimizer.state.values() for value in state.values()]
    assert {tensor.dtype for tensor in [loss, *model.parameters(), *moments]} == {torch.float32}


def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(folder):
    train.main([*FAST, "-e", "3", "--noise", "0.2"])
    uninterrupted = (folder / "model.pth").read_bytes()
    train.main([*FAST, "-e", "1", "--noise", "0.2"])
    train.main([*FAST, "-e", "3", "--noise", "0.2", "--resume"])
    assert (folder / "model.pth").read_bytes() == uninterrupted


def test_the_weights_say_their_precision_and_the_test_loss_is_float32s(folder):
    train.main([*FAST, "-e", "1"])
    model, record = load("model.pth")
    assert record["settings"]["precision"] == "bfloat16"
    _, test_set = data.load("glyphs", None, "test")
    images = data.to_float(test_set.images)
    test_loss = checkpoint.read("model.ckpt")["history"][-1]["test_loss"]
    assert test_loss == pytest.approx(metrics.mse(model, images, images).item(), rel=1e-6)


def test_a_run_is_not_resumed_in_another_precision(folder, capsys):
    train.main([*FAST, "-e", "1"])
    capsys.readouterr()
    with pytest.raises(SystemExit):
        train.main([*FAST, "-e", "2", "--precision", "float32", "--resume"])
    assert "made with precision bfloat16, not float32" in capsys.readouterr().err


@pytest.mark.parametrize("precision, native, warned",
                         [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)])
def test_emulated_bfloat16_is_warned_about(precision, native, warned, monkeypatch, capsys):
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: native)  # of x86_64
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)  # of aarch64
    train.main([*FAST, "-e", "0", "--precision", precision, "--device", "cpu"])
    assert ("warning: cpu has no bfloat16 arithmetic" in capsys.readouterr().err) == warned
