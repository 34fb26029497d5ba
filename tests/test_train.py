import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, START, Report, command

import train
from labkit import data, glyphs, metrics
from labkit.job import Job

FAST = ("--dataset", "glyphs", "-b", "512", "-s", "model.pth", "-p", "loss.png")


def same_weights(a, b):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    return a.keys() == b.keys() and all(a[name].equal(b[name]) for name in a)


def test_the_readmes_command_where_mnist_cannot_be_had(run, tmp_path):
    closed = "import torchvision; torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:9/']"
    status, out, err = run("train.py", *"-z 3 -e 2 -b 2048 -s model.pth -p loss.png".split(), setup=closed)
    assert status == 0 and len(err.splitlines()) == 2, err
    assert err.startswith("warning: mnist is not in data and could not be downloaded") and "using glyphs instead" in err
    assert out.startswith("glyphs: 2,000 training and 600 test images, on ")
    assert len(re.findall(r"^epoch \d/2  loss 0\.\d{5}$", out, re.M)) == 2
    assert re.search(r"^test MSE 0\.\d+, PSNR .* dB; 3 of 3 bottleneck units live", out, re.M)
    theirs = Report(N_bottleneck=3)
    theirs.load_state_dict(torch.load(tmp_path / "model.pth", weights_only=True), strict=True)
    assert (tmp_path / "loss.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(os.listdir(tmp_path)) == ["loss.png", "model.ckpt", "model.pth"]


def test_help_names_every_option_and_the_two_commands(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = capsys.readouterr().out
    assert "train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png" in out and "python lab1.py -l model.pth" in out
    assert "units of the bottleneck (default: 8)" in out and "--resume" in out


def test_the_same_seed_gives_the_same_file_and_another_another(small, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main([*FAST, "-e", "2", "--seed", str(seed), "-s", f"{name}.pth"])
    a, b, c = ((tmp_path / f"{name}.pth").read_bytes() for name in "abc")
    assert a == b != c


def test_the_loop_is_the_plain_loop(small):
    """The report's recipe in plain PyTorch, on the same batches, from the same weights: the same losses."""
    _, images = data.load("glyphs", None, "train")
    for noise in (0.0, 0.2):
        model, optimizer, scheduler = train.build(8, images, "report")
        plain = Report()
        plain.load_state_dict(model.state_dict())
        adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, "min")
        ours, theirs = data.batches(images, 512, seed=0), data.batches(images, 512, seed=0)
        for epoch in range(3):
            ours.sampler.set_epoch(epoch)
            theirs.sampler.set_epoch(epoch)
            torch.manual_seed(epoch)
            loss = train.train_epoch(model, ours, optimizer, noise, Job("cpu")).item()
            scheduler.step(loss)
            torch.manual_seed(epoch)
            total = 0.0
            for x in theirs:
                adam.zero_grad()
                step = torch.nn.functional.mse_loss(plain(x + noise * torch.randn_like(x) if noise else x), x)
                step.backward()
                adam.step()
                total += step.item() * len(x)
            plateau.step(total / len(images))
            assert loss == pytest.approx(total / len(images), rel=1e-4)


def test_losses_in_the_last_short_batch_weigh_as_much_as_its_images(small):
    pixels = torch.cat([torch.zeros(64, 784), torch.full((1, 784), 255)]).to(torch.uint8)
    images = data.Images(pixels, torch.zeros(65))
    model, optimizer, _ = train.build(8, images, lr=0.0)
    loss = train.train_epoch(model, data.batches(images, 64, 0), optimizer, 0, Job("cpu"))
    assert loss.item() == pytest.approx(metrics.evaluate(model, images.in_order())[0].item(), rel=1e-5)


def test_the_reports_start_is_named_when_units_die(small, capsys):
    train.main([*FAST, "-e", "3", "--init", "report"])
    streams = capsys.readouterr()
    dead = re.search(r"warning: (\d) of 8 bottleneck units never fire .* the code has (\d) dimensions", streams.err)
    assert dead and int(dead[1]) + int(dead[2]) == 8 and f"{dead[2]} of 8 bottleneck units live" in streams.out


def test_no_epochs_save_the_untrained_network_and_say_so(small, tmp_path, capsys):
    train.main([*FAST, "-e", "0", "--seed", "3"])
    assert "untrained" in capsys.readouterr().out
    model, _, _ = train.build(8, data.load("glyphs", None, "train")[1], seed=3)
    assert torch.load(tmp_path / "model.pth", weights_only=True)["fc1.weight"].equal(model.fc1.weight)


def interrupt(process, number, epochs):
    """Send a signal after so many epochs and return the process's status, stdout and stderr."""
    lines = []
    while sum(line.startswith("epoch") for line in lines) < epochs:
        lines.append(process.stdout.readline())
        assert lines[-1], process.stderr.read()
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    return process.returncode, "".join(lines) + out, err


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])  # SIGINT is caught as SIGTERM is: benchmarks/faults.py
def test_a_stopped_run_goes_on_to_the_same_weights(number, small, tmp_path):
    endless = [*FAST, "-e", "100000", "--noise", "0.1"]
    status, out, err = interrupt(command("train.py", *endless, cwd=tmp_path), number, 3)
    if number == signal.SIGKILL:
        assert err == "" and not (tmp_path / "model.pth").exists()
    else:
        assert status == 128 + number
        assert err == "train.py: stopped by SIGTERM; the same command with --resume goes on\n"
        assert re.search(r"wrote model.pth, model.ckpt, loss.png after \d+ of 100000 epochs\n$", out)
        assert (tmp_path / "model.pth").exists() and (tmp_path / "loss.png").exists()
    done = len(torch.load(tmp_path / "model.ckpt", weights_only=True)["history"])
    assert done >= (3 if number != signal.SIGKILL else 1)
    train.main(["--dataset", "glyphs", "--resume", "-e", str(done + 2), "-s", "model.pth", "-p", "loss.png"])
    train.main([*FAST, "-e", str(done + 2), "--noise", "0.1", "-s", "other.pth"])
    assert same_weights(tmp_path / "model.pth", tmp_path / "other.pth")


def test_a_finished_run_can_be_prolonged_but_not_changed_or_shortened(small, tmp_path, refused, capsys):
    train.main([*FAST, "-e", "2", "-z", "3"])
    train.main([*FAST, "-e", "3", "-z", "3", "--resume"])
    before = (tmp_path / "model.pth").read_bytes()
    capsys.readouterr()
    for contradiction, words in (
        (["-z", "4"], "was made with --bottleneck 3, not 4"),
        (["--lr", "0.01"], "was made with --lr 0.001, not 0.01"),
        (["--dataset", "mnist", "--data-dir", ROOT / "data"], "was made with --dataset glyphs, not mnist"),
        (["-e", "2"], "has 3 epochs: ask for more than -e 2"),
    ):
        if "mnist" in contradiction and not (ROOT / "data/MNIST").exists():
            continue
        assert words in refused(train.main, *FAST, "--resume", *contradiction, status=2)
    assert (tmp_path / "model.pth").read_bytes() == before
    train.main([*FAST, "-e", "3", "--resume"])  # nothing left to do, and done the same
    assert (tmp_path / "model.pth").read_bytes() == before
    train.main([*FAST, "-e", "3", "-z", "3", "-s", "straight.pth"])
    assert same_weights(tmp_path / "model.pth", tmp_path / "straight.pth")


def test_a_diverging_run_ends_with_the_last_good_epoch(small, tmp_path, refused, monkeypatch):
    from model import autoencoderMLP4Layer

    epochs = []
    healthy = train.train_epoch

    def diverging(model, *rest):
        epochs.append(healthy(model, *rest))
        if len(epochs) == 2:
            model.fc1.weight.data[0, 0] = torch.nan
        return epochs[-1]

    monkeypatch.setattr(train, "train_epoch", diverging)
    line = refused(train.main, *FAST, "-e", "4", "-s", "other.pth")
    monkeypatch.undo()
    monkeypatch.setattr(glyphs, "SIZES", SMALL)
    monkeypatch.chdir(tmp_path)
    assert "in epoch 2" in line and "--lr" in line
    state = torch.load(tmp_path / "other.ckpt", weights_only=True)
    assert len(state["history"]) == 1
    autoencoderMLP4Layer().load_state_dict(torch.load(tmp_path / "other.pth", weights_only=True))
    train.main([*FAST, "-e", "1", "-s", "one.pth"])
    assert same_weights(tmp_path / "other.pth", tmp_path / "one.pth")


def test_a_rate_that_explodes_is_named(small, refused):
    assert "try a lower --lr than 1e+30" in refused(train.main, *FAST, "-e", "3", "--lr", "1e30")


def test_a_full_disk_is_a_warning_in_between_and_an_error_at_the_end(small, tmp_path, capsys):
    (tmp_path / "model.pth").write_bytes(b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))  # what a full disk looks like to a process
    try:
        with pytest.raises(SystemExit) as end:
            train.main([*FAST, "-e", "3"])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    out, err = capsys.readouterr()
    assert out.count("epoch") == 3
    warning, error = err.strip().split("\n")
    assert end.value.code == 1
    assert warning.startswith("warning: model.ckpt: File too large") and "training goes on" in warning
    assert error.startswith("train.py: model.pth: File too large; model.ckpt: File too large: the old files are kept")
    assert (tmp_path / "model.pth").read_bytes() == b"old"
    assert sorted(os.listdir(tmp_path)) == ["loss.png", "model.pth"]


@pytest.mark.parametrize("args, words, status", [
    (["-z", "0"], "-z 0: must be 1 or more", 2),
    (["-z", "eight"], "invalid int value: 'eight'", 2),
    (["-b", "0"], "-b 0: must be 1 or more", 2),
    (["-e", "-1"], "-e -1: must be 0 or more", 2),
    (["--noise", "-1"], "--noise -1.0: must be 0 or more", 2),
    (["--lr", "nan"], "--lr nan: must be 0 or more", 2),
    (["--seed", "-1"], "--seed -1: must be 0 or more", 2),
    (["--device", "abacus"], "--device abacus is unavailable: Expected one of cpu, cuda", 2),
    (["--dataset", "imagenet"], "invalid choice: 'imagenet'", 2),
    (["--epoch-count", "3"], "unrecognized arguments: --epoch-count", 2),
    (["-p", "loss.xyz"], "no format that matplotlib can write", 2),
    (["-s", "same.png", "-p", "./same.png"], "need names of their own", 2),
    (["-s", "."], "not a regular file", 1),
    (["-s", "x" * 250], "File name too long", 1),
    (["-b", "99999999999999999999"], "at most 1000000000", 2),
    (["-s", "file/model.pth"], "file", 1),
    (["-s", "folder"], "folder is not a regular file", 1),
    (["-p", "/dev/null"], "/dev/null is not a regular file", 1),
    (["-p", "folder"], "folder is not a regular file", 1),
    (["--dataset", "mnist", "--data-dir", "nowhere"], "mnist is not in nowhere and could not be downloaded", 1),
])  # fmt: skip
def test_mistakes_are_named_in_one_line_before_any_work(args, words, status, small, tmp_path, refused, monkeypatch):
    from torchvision.datasets import MNIST

    monkeypatch.setattr(MNIST, "mirrors", ["http://127.0.0.1:9/"])
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(train, "train_epoch", lambda *_: pytest.fail("training has begun"))
    assert words in refused(train.main, *FAST, *args, status=status)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["file"]


def test_ctrl_c_before_training_ends_without_a_traceback(tmp_path):
    process = command("train.py", *FAST, cwd=tmp_path, setup="import os, signal; data.load = lambda *a, **k: os.kill(0, 2)",
                      start_new_session=True)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == err == ""


def torchrun(processes, *args, cwd):
    """Start train.py on small glyphs in so many processes on this machine, as torchrun does."""
    (cwd / "start.py").write_text(f"{START}import train\ntrain.main(sys.argv)")
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}",
                             "start.py", *FAST, "--device", "cpu", *args], cwd=cwd, text=True,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                            env=os.environ | {"OMP_NUM_THREADS": "1"})


def close(a, b, weights, losses):
    a, b = (torch.load(path, weights_only=True) for path in (a, b))
    for name in a["model"]:
        torch.testing.assert_close(a["model"][name], b["model"][name], rtol=0, atol=weights)
    a, b = ([epoch["loss"] for epoch in run["history"]] for run in (a, b))
    assert a == pytest.approx(b, rel=losses)


def test_two_processes_train_the_network_that_one_trains(small, tmp_path):
    out, err = torchrun(2, "-e", "2", "-b", "510", cwd=tmp_path).communicate(timeout=60)
    assert out.count("epoch 1/2") == 1 and out.count("test MSE") == 1, err
    train.main([*FAST, "-e", "2", "-b", "510", "-s", "one.pth"])
    close(tmp_path / "model.ckpt", tmp_path / "one.ckpt", 1e-5, 1e-4)


def test_a_job_that_loses_a_worker_resumes_to_the_same_end_with_one_process(small, tmp_path):
    process = torchrun(2, "-e", "100000", cwd=tmp_path)
    for _ in range(4):
        assert process.stdout.readline()
    workers = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(workers[-1]), signal.SIGKILL)
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert (tmp_path / "model.pth").exists(), err
    done = len(torch.load(tmp_path / "model.ckpt", weights_only=True)["history"])
    assert done >= 3
    train.main([*FAST, "--resume", "-e", str(done + 1)])
    train.main([*FAST, "-e", str(done + 1), "-s", "one.pth"])
    close(tmp_path / "model.ckpt", tmp_path / "one.ckpt", 1, 1e-3)
