import csv
import os
import re
import signal
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import FAST, ROOT, Command, Report, history, put_archives, same_weights, with_signal

import train
from labkit import checkpoint, data, metrics
from labkit.job import Job, Stopped
from model import autoencoderMLP4Layer


@pytest.fixture(scope="module", autouse=True)
def readmes_command(drawings, tmp_path_factory):
    """README's command, started before the other tests: it imports torchvision, which takes seconds."""
    arguments = "-z 3 -e 2 -b 2048 -s model.pth -p loss.png".split()
    unreachable = "import torchvision; torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:9/']"
    command = Command(drawings, tmp_path_factory.mktemp("readme"), "train.py", *arguments, setup=unreachable)
    yield command
    command.stop()


def test_help_names_every_option_and_its_default(capsys):
    with pytest.raises(SystemExit):
        train.main(["--help"])
    out = " ".join(capsys.readouterr().out.split())
    for option, default in train.DEFAULTS.items():
        default = f"{default:g}" if isinstance(default, float) else default
        assert re.search(f"--{option.replace('_', '-')} [^-].*?\\(default: {default}\\)", out), option
    assert all(f"--{option}" in out for option in ("save", "plot", "resume", "device"))


def test_the_same_seed_gives_the_same_file_and_another_another(folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main([*FAST, "-e", "1", "--seed", str(seed), "-s", f"{name}.pth"])
    a, b, c = ((folder / f"{name}.pth").read_bytes() for name in "abc")
    assert a == b != c


@pytest.mark.parametrize("noise", [0.0, 0.2])
def test_the_loop_is_the_plain_loop(noise):
    """The report's recipe in plain PyTorch, on the same batches, from the same weights: the same losses."""
    _, images = data.load("glyphs", None, "train")
    model, optimizer, scheduler = train.build(8, images, "report")
    plain = Report()
    plain.load_state_dict(model.state_dict())
    adam = torch.optim.Adam(plain.parameters(), lr=1e-3)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(adam, "min")
    loader = data.batches(images, 256, seed=0)
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        torch.manual_seed(epoch)
        loss = train.train_epoch(model, loader, optimizer, noise, Job("cpu")).item()
        scheduler.step(loss)

        torch.manual_seed(epoch)
        total = 0.0
        for x in loader:
            adam.zero_grad()
            step = torch.nn.functional.mse_loss(plain(x + noise * torch.randn_like(x) if noise else x), x)
            step.backward()
            adam.step()
            total += step.item() * len(x)
        plateau.step(total / len(images))
        assert loss == pytest.approx(total / len(images), rel=1e-4)


def test_losses_in_the_last_short_batch_weigh_as_much_as_its_images():
    pixels = torch.cat([torch.zeros(64, 784), torch.full((1, 784), 255)]).to(torch.uint8)
    images = data.Images(pixels, torch.zeros(65))
    model, optimizer, _ = train.build(8, images, lr=0.0)
    loss = train.train_epoch(model, data.batches(images, 64, 0), optimizer, 0, Job("cpu"))
    assert loss.item() == pytest.approx(metrics.mse(model, images.in_order()).item(), rel=1e-5)


def test_the_test_loss_of_an_epoch_is_over_the_whole_test_set(folder, capsys):
    train.main([*FAST, "-e", "2"])
    model, images = checkpoint.load_weights("model.pth"), data.load("glyphs", None, "test")[1]
    test_loss = metrics.mse(model, images.in_order()).item()
    first, last = history("model.ckpt")
    assert last["test_loss"] == pytest.approx(test_loss, rel=1e-6) != first["test_loss"]
    out = capsys.readouterr().out
    assert f"epoch 2/2  loss {last['loss']:.4f}  test {test_loss:.4f}\n" in out
    assert f"\ntest MSE {test_loss:.5f}, PSNR {metrics.psnr(test_loss):.1f} dB" in out


def test_three_processes_evaluate_the_whole_test_set_where_it_does_not_divide_evenly():
    model, images = autoencoderMLP4Layer(), data.load("glyphs", None, "test")[1]
    images = data.Images(images.images[:7], images.labels[:7])
    ranks = [SimpleNamespace(rank=rank, world_size=3, mean=lambda loss: loss.item() / 3) for rank in range(3)]
    mse = metrics.mse(model, images.in_order()).item()
    assert sum(train.evaluate(model, images, rank) for rank in ranks) == pytest.approx(mse, rel=1e-6)


def test_noise_is_added_to_the_inputs_of_a_run(folder):
    for name, noise in (("plain", "0"), ("noisy", "0.2")):
        train.main([*FAST, "-e", "1", "--noise", noise, "-s", f"{name}.pth"])
    plain, noisy = (history(f"{name}.ckpt")[0]["loss"] for name in ("plain", "noisy"))
    assert noisy > plain


def test_the_learning_rate_falls_after_eleven_epochs_without_a_better_loss(folder, monkeypatch):
    """ReduceLROnPlateau's patience is 10; a resumed run keeps count."""
    train_epoch = train.train_epoch

    def stagnant(*args):
        train_epoch(*args)
        return torch.tensor(0.1)

    monkeypatch.setattr(train, "train_epoch", stagnant)
    train.main([*FAST, "-b", "1000", "-e", "11"])
    train.main([*FAST, "-b", "1000", "-e", "14", "--resume"])
    rates = [epoch["learning_rate"] for epoch in history("model.ckpt")]
    assert rates == pytest.approx(12 * [1e-3] + 2 * [1e-4])


def test_a_signal_ends_an_epoch_after_the_current_step():
    job, seen = Job("cpu"), []
    model, optimizer, _ = train.build(8, data.load("glyphs", None, "test")[1])

    def batches():
        for number in range(5):
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)
            seen.append(number)
            yield torch.zeros(4, 784)

    with job.deferring_signals(), pytest.raises(Stopped):
        train.train_epoch(model, batches(), optimizer, 0, job)
    assert seen == [0, 1, 2]


@pytest.mark.parametrize("script", ["train.py", "lab1.py"])
def test_ctrl_c_during_the_imports_ends_without_a_traceback(script, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_the_reports_start_is_named_when_units_die(folder, capsys):
    train.main([*FAST, "-e", "3", "--init", "report"])
    out, err = capsys.readouterr()
    dead = re.search(r"warning: (\d) of 8 bottleneck units never fire .* the code has (\d) dimensions", err)
    assert dead and int(dead[1]) + int(dead[2]) == 8 and f"{dead[2]} of 8 bottleneck units live" in out


@pytest.mark.parametrize("lr, warned", [("0", True), ("0.001", False)])
def test_a_network_no_better_than_the_mean_image_is_named(lr, warned, folder, capsys):
    train.main([*FAST, "-e", "4", "--lr", lr])
    err = capsys.readouterr().err
    assert err.startswith("warning: the network does no better than the mean image: try another") == warned
    assert err.count("\n") == warned


def test_no_epochs_save_the_untrained_network_and_say_so(folder, capsys):
    train.main([*FAST, "-e", "0", "--seed", "3"])
    assert "untrained" in capsys.readouterr().out
    model, _, _ = train.build(8, data.load("glyphs", None, "train")[1], seed=3)
    saved = torch.load("model.pth", weights_only=True)
    assert all(saved[name].equal(tensor) for name, tensor in model.state_dict().items())
    assert not (folder / "loss.csv").exists() and not (folder / "loss.png").exists()


def epochs_of(path):
    """Return the numbers in a loss.csv, without the seconds."""
    columns = ("epoch", "loss", "test_loss", "learning_rate", "seconds")
    with open(path) as file:
        rows = list(csv.DictReader(file))
    assert all(tuple(row) == columns and float(row["seconds"]) > 0 for row in rows)
    return [{name: float(row[name]) for name in columns[:-1]} for row in rows]


SIGNALS = signal.SIGINT, signal.SIGTERM, signal.SIGKILL


@pytest.fixture(scope="module")
def stopped_runs(drawings, tmp_path_factory):
    """Runs that get a signal in their fourth epoch, by signal, and the folder of an undisturbed run."""
    options = (*FAST, "-e", "9", "--noise", "0.1")
    runs = {signum: Command(drawings, tmp_path_factory.mktemp("stopped"), "train.py", *options,
                            setup=with_signal(4, signum)) for signum in SIGNALS}
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    files = ["-s", f"{undisturbed}/model.pth", "-p", f"{undisturbed}/loss.png"]
    train.main([*options, "-e", "5", *files])
    yield runs, undisturbed
    for run in runs.values():
        run.stop()


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_stopped_run_goes_on_to_the_same_weights(signum, stopped_runs, monkeypatch):
    runs, undisturbed = stopped_runs
    folder = runs[signum].folder
    monkeypatch.chdir(folder)
    status, out, err = runs[signum].end()
    done = len(history("model.ckpt"))
    if signum == signal.SIGKILL:
        assert status == -signum and err == "" and done >= 1 and not (folder / "model.pth").exists()
    else:
        assert status == 128 + signum and done == 3 == len(epochs_of("loss.csv"))
        assert err == f"train.py: stopped by {signum.name}: --resume continues from the last checkpoint\n"
        assert out.endswith("wrote model.pth, model.ckpt, loss.png, loss.csv after 3 of 9 epochs\n")
        assert (folder / "model.pth").exists() and (folder / "loss.png").exists()

    train.main(["--dataset", "glyphs", "--resume", "-e", "5", "-s", "model.pth", "-p", "loss.png"])
    assert same_weights("model.pth", undisturbed / "model.pth")
    assert epochs_of("loss.csv") == epochs_of(undisturbed / "loss.csv")
    assert [row["epoch"] for row in epochs_of("loss.csv")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("files", [["-s", "model.pth", "-p", "loss.png"], []])
def test_a_run_that_fell_back_to_glyphs_goes_on_with_glyphs(files, folder, unreachable, capsys):
    train.main(["-b", "256", "-e", "1", *files])
    assert capsys.readouterr().out.startswith("glyphs: 1,000")
    put_archives(folder / "data/MNIST/raw")
    train.main(["--resume", "-e", "2", *files])
    path = "model.ckpt" if files else "outputs/glyphs/model.ckpt"
    assert capsys.readouterr().out.startswith(f"resuming {path} after epoch 1\nglyphs: 1,000")
    assert len(history(path)) == 2
    train.main(["-e", "1", *files])  # a run of its own
    assert capsys.readouterr().out.startswith("mnist: 20 training and 10 test images")


def test_resume_without_a_checkpoint_starts_from_the_beginning_and_says_so(folder, capsys):
    train.main([*FAST, "-e", "1", "--resume"])
    assert capsys.readouterr().out.startswith("no model.ckpt yet: starting from the beginning\n")
    assert len(history("model.ckpt")) == 1


def test_a_finished_run_can_be_prolonged_but_not_changed_or_shortened(folder, refused, capsys):
    train.main([*FAST, "-e", "2", "-z", "3"])
    train.main([*FAST, "-e", "3", "-z", "3", "--resume"])
    before = (folder / "model.pth").read_bytes()
    capsys.readouterr()
    for contradiction, words in (
        (["-z", "4"], "was made with --bottleneck 3, not 4"),
        (["--lr", "0.01"], "was made with --lr 0.001, not 0.01"),
        (["--dataset", "mnist"], "was made with --dataset glyphs, not mnist"),
        (["-e", "2"], "has 3 epochs already: ask for -e 3 or more"),
    ):
        assert words in refused(train.main, *FAST, "--resume", *contradiction, status=2)
    assert (folder / "model.pth").read_bytes() == before
    train.main([*FAST, "-e", "3", "--resume"])  # nothing left to do, and done the same
    assert (folder / "model.pth").read_bytes() == before
    train.main([*FAST, "-e", "3", "-z", "3", "-s", "straight.pth"])
    assert same_weights("model.pth", "straight.pth")


def test_a_diverging_run_ends_with_the_last_good_epoch(folder, refused, monkeypatch):
    losses, healthy = [], train.train_epoch

    def diverging(model, *rest):
        losses.append(healthy(model, *rest))
        if len(losses) == 2:
            model.fc1.weight.data[0, 0] = torch.nan
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", diverging)
        line = refused(train.main, *FAST, "-e", "4", "-s", "other.pth")
    assert losses[1].isfinite()  # the weights show it first
    assert line == "train.py: fc1.weight became NaN or infinite in epoch 2: try a lower --lr than 0.001\n"
    assert len(history("other.ckpt")) == 1
    train.main([*FAST, "-e", "1", "-s", "one.pth"])
    assert same_weights("other.pth", "one.pth")


def test_a_rate_that_explodes_is_named_and_older_files_stay(folder, capsys):
    files = [folder / name for name in ("model.pth", "model.ckpt", "loss.png", "loss.csv")]
    for file in files:
        file.write_text("of an older run")
    with pytest.raises(SystemExit):
        train.main([*FAST, "-e", "3", "--lr", "1e30"])
    out, err = capsys.readouterr()
    assert "try a lower --lr than 1e+30" in err
    assert out.endswith("no epoch was completed: nothing was written\n")
    assert all(file.read_text() == "of an older run" for file in files)


def test_a_full_disk_is_a_warning_in_between_and_an_error_at_the_end(folder, small_files, capsys):
    (folder / "model.pth").write_bytes(b"old")
    with pytest.raises(SystemExit) as end:
        train.main([*FAST, "-e", "3"])
    out, err = capsys.readouterr()
    warning, error = err.strip().split("\n")
    assert end.value.code == 1 and out.count("epoch") == 3
    assert warning.startswith("warning: model.ckpt: File too large") and "training goes on" in warning
    assert error.startswith("train.py: model.pth: File too large; model.ckpt: File too large: older files")
    assert (folder / "model.pth").read_bytes() == b"old"
    assert sorted(os.listdir(folder)) == ["loss.csv", "loss.png", "model.pth"]


MISTAKES = [
    (["-z", "0"], "-z 0: must be between 1 and ", 2),
    (["-z", "eight"], "invalid int value: 'eight'", 2),
    (["-b", "0"], "-b 0: must be between 1 and ", 2),
    (["-e", "-1"], "-e -1: must be between 0 and ", 2),
    (["--noise", "-1"], "--noise -1.0: must be between 0 and ", 2),
    (["--lr", "nan"], "--lr nan: must be between 0 and ", 2),
    (["--seed", "-1"], "--seed -1: must be between 0 and ", 2),
    (["--device", "abacus"], "--device abacus is unavailable: Expected one of cpu, cuda", 2),
    (["--dataset", "imagenet"], "invalid choice: 'imagenet'", 2),
    (["--epoch-count", "3"], "unrecognized arguments: --epoch-count", 2),
    (["-p", "loss.xyz"], "loss.xyz: matplotlib cannot write this format here", 2),
    (["-s", "same.png", "-p", "./same.png"], "need four different names", 2),
    (["-s", "."], "not a regular file", 1),
    (["-s", "x" * 250], "xxx cannot be written: File name too long", 1),
    (["-s", "x" * 300], "xxx cannot be written: File name too long", 1),
    (["-b", "99999999999999999999"], "must be between 1 and 1,000,000,000", 2),
    (["-s", "file/model.pth"], "/file is not a folder", 1),
    (["-s", "folder"], "folder is not a regular file", 1),
    (["-p", "/dev/null"], "/dev/null is not a regular file", 1),
    (["-p", "folder"], "folder is not a regular file", 1),
    (["-p", "notes.png"], "notes.csv is not a regular file", 1),
    (["--resume", "-s", "text.pth"], "text.ckpt is damaged, or not written by torch.save", 1),
    (["--dataset", "mnist", "--data-dir", "nowhere"], "mnist is not in nowhere and could not be", 1),
]


@pytest.mark.parametrize("args, words, status", MISTAKES)
def test_mistakes_are_named_in_one_line_before_any_work(args, words, status, folder, refused, unreachable,
                                                        monkeypatch):
    (folder / "file").write_text("")
    (folder / "text.ckpt").write_text("no checkpoint")
    (folder / "folder").mkdir()
    (folder / "notes.csv").mkdir()
    monkeypatch.setattr(train, "train_epoch", lambda *_: pytest.fail("training has begun"))
    assert words in refused(train.main, *FAST, *args, status=status)
    assert sorted(os.listdir(folder)) == ["file", "folder", "notes.csv", "text.ckpt"]


def test_ctrl_c_before_training_ends_without_a_traceback(start):
    ctrl_c = "import os, signal; from labkit import data; data.load = lambda *_: os.kill(0, signal.SIGINT)"
    assert start("train.py", *FAST, setup=ctrl_c).end() == (130, "", "")


def test_the_readmes_command_where_mnist_is_unavailable(readmes_command):
    status, out, err = readmes_command.end()
    assert status == 0 and len(err.splitlines()) == 2, err
    assert "mnist is not in data and could not be downloaded" in err and "using glyphs instead" in err
    assert out.startswith("glyphs: 1,000 training and 300 test images, on ")
    assert len(re.findall(r"^epoch \d/2  loss 0\.\d{4}  test 0\.\d{4}$", out, re.M)) == 2
    assert re.search(r"^test MSE 0\.\d+, PSNR .* dB; 3 of 3 bottleneck units live", out, re.M)
    theirs = Report(N_bottleneck=3)
    theirs.load_state_dict(torch.load(readmes_command.folder / "model.pth", weights_only=True), strict=True)
    assert (readmes_command.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    files = ["loss.csv", "loss.png", "model.ckpt", "model.pth"]
    assert sorted(os.listdir(readmes_command.folder)) == files
