import csv
import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import FAST, ROOT, Command, Report, at_epoch, history, same_weights, with_signal

import train
from labkit import data, run


@pytest.fixture(scope="module", autouse=True)
def readmes_command(drawings, tmp_path_factory):
    """README's command, started before the other tests: it imports torchvision, which takes seconds."""
    arguments = "-z 3 -e 2 -b 1000 -s model.pth -p loss.png --data-dir nowhere".split()
    unreachable = "import torchvision; torchvision.datasets.MNIST.mirrors = ['http://127.0.0.1:9/']"
    command = Command(drawings, tmp_path_factory.mktemp("readme"), "train.py", *arguments, setup=unreachable)
    yield command
    command.stop()


def test_help_fits_a_screen_and_names_every_option_and_its_default(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        train.main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 48 and max(map(len, lines)) <= 80
    out = " ".join(" ".join(lines).split())
    for option, default in vars(train.Settings()).items():
        assert re.search(f"--{option.replace('_', '-')} [^-].*?\\(default: {default}\\)", out), option
    assert "python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png" in out


def test_the_same_seed_gives_the_same_file_and_another_another(folder):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        train.main([*FAST, "-e", "1", "--seed", str(seed), "-s", f"{name}.pth"])
    a, b, c = ((folder / f"{name}.pth").read_bytes() for name in "abc")
    assert a == b != c


def test_the_learning_rate_falls_after_eleven_epochs_without_a_better_loss(folder, monkeypatch):
    """ReduceLROnPlateau's patience is 10; a resumed run keeps count."""
    train_epoch = train.train_epoch

    def stagnant(*args):
        return torch.tensor(0.1), train_epoch(*args)[1]

    monkeypatch.setattr(train, "train_epoch", stagnant)
    train.main([*FAST, "-b", "1000", "-e", "11"])
    train.main([*FAST, "-b", "1000", "-e", "14", "--resume"])
    rates = [epoch["learning_rate"] for epoch in history("model.ckpt")]
    assert rates == pytest.approx(12 * [1e-3] + 2 * [1e-4])


def test_a_falling_loss_keeps_the_learning_rate(folder, monkeypatch):
    losses = iter(range(40, 0, -1))
    monkeypatch.setattr(train, "train_epoch", lambda *_: (torch.tensor(next(losses) / 100), 1000))
    train.main([*FAST, "-e", "30"])
    assert {epoch["learning_rate"] for epoch in history("model.ckpt")} == {1e-3}


@pytest.mark.parametrize("script", ["train.py", "lab1.py"])
def test_ctrl_c_during_the_imports_ends_without_a_traceback(script, tmp_path):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    code = f"import runpy; runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, b"", b"")


def test_the_reports_start_is_named_when_units_die(folder, capsys):
    train.main([*FAST, "-e", "3", "--init", "report"])
    out, err = capsys.readouterr()
    dead = re.search(r"warning: (\d) of 8 bottleneck units are dead, .* the code has (\d) dimensions", err)
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
    model, _, _ = train.build(train.Settings(seed=3), data.load("glyphs", None, "train")[1].images)
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
TWICE = at_epoch(4, "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)")
NOTED = "\nstopping after this epoch; a second signal stops at once, with the files of the last save\n"


@pytest.fixture(scope="module")
def stopped_runs(drawings, tmp_path_factory):
    """Runs that get a signal in their fourth epoch, by signal, and the folder of an undisturbed run."""
    options = (*FAST, "-e", "5", "--noise", "0.1")
    setups = {signum: with_signal(4, signum) for signum in SIGNALS} | {"twice": TWICE}
    runs = {name: Command(drawings, tmp_path_factory.mktemp("stopped"), "train.py", *options, setup=setup)
            for name, setup in setups.items()}
    undisturbed = tmp_path_factory.mktemp("undisturbed")
    train.main([*options, "-s", f"{undisturbed}/model.pth", "-p", f"{undisturbed}/loss.png"])
    yield runs, undisturbed
    for command in runs.values():
        command.stop()


@pytest.mark.parametrize("name", [*SIGNALS, "twice"])
def test_a_stopped_run_goes_on_to_the_same_weights(name, stopped_runs, monkeypatch):
    runs, undisturbed = stopped_runs
    monkeypatch.chdir(runs[name].folder)
    status, out, err = runs[name].end()
    done = len(history("model.ckpt"))
    if name in (signal.SIGINT, signal.SIGTERM):
        assert status == 128 + name and done == 4 == len(epochs_of("loss.csv"))
        assert err == f"{NOTED}train.py: stopped by {name.name}: --resume continues the run\n"
        assert out.endswith("wrote loss.png, loss.csv, model.pth, model.ckpt after 4 of 5 epochs\n")
    else:
        assert status == -(signal.SIGINT if name == "twice" else name) and 1 <= done <= 3
        assert err == (NOTED if name == "twice" else "") and os.path.exists("model.pth")

    train.main([*FAST, "-e", "5", "--noise", "0.1", "--resume"])
    assert same_weights("model.pth", undisturbed / "model.pth")
    assert epochs_of("loss.csv") == epochs_of(undisturbed / "loss.csv")
    assert [row["epoch"] for row in epochs_of("loss.csv")] == [1, 2, 3, 4, 5]


def test_a_signal_in_the_last_epoch_stops_nothing(start, folder):
    status, out, err = start("train.py", *FAST, "-e", "2", setup=with_signal(2, signal.SIGINT)).end()
    assert status == 0 and "test MSE" in out and err == NOTED


@pytest.mark.parametrize("shell, warned", [("| head -n 1", False), ("> /dev/full", True)])
def test_a_training_does_not_end_because_its_log_cannot_be_written(shell, warned, folder):
    code = ("import sys, runpy; from labkit import glyphs; glyphs.SIZES = {'train': 300, 'test': 100}; "
            f"sys.argv = ['train.py', *{[*FAST, '-e', '2']}]; "
            f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')")
    command = ["bash", "-c", f'set -o pipefail; "$0" -c "$1" {shell}', sys.executable, code]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0 and len(history("model.ckpt")) == 2 and (folder / "loss.png").exists()
    assert ("warning: the output cannot be written: No space left on device" in done.stderr) == warned


def test_a_finished_run_can_be_prolonged(folder):
    train.main([*FAST, "-e", "2", "-z", "3"])
    train.main([*FAST, "-e", "3", "-z", "3", "--resume"])
    before = (folder / "model.pth").read_bytes()
    train.main([*FAST, "-e", "3", "-z", "3", "--resume"])  # nothing left to do, and done the same
    assert (folder / "model.pth").read_bytes() == before
    train.main([*FAST, "-e", "3", "-z", "3", "-s", "straight.pth"])
    assert (folder / "straight.pth").read_bytes() == before


def test_a_run_that_fell_back_to_glyphs_does_not_replace_other_weights(folder, unreachable, refused, capsys):
    torch.save(Report().state_dict(), "model.pth")
    before = (folder / "model.pth").read_bytes()
    with pytest.raises(SystemExit):
        train.main(["-e", "1", "-b", "256", "-s", "model.pth", "-p", "loss.png", "--data-dir", "nowhere"])
    assert "model.pth was not trained on glyphs and is kept" in capsys.readouterr().err
    assert (folder / "model.pth").read_bytes() == before and not (folder / "loss.csv").exists()


def test_a_diverging_run_leaves_its_last_good_epoch(folder, refused, monkeypatch):
    losses, healthy = [], train.train_epoch

    def diverging(model, *rest):
        losses.append(healthy(model, *rest))
        if len(losses) == 2:
            model.fc1.weight.data[0, 0] = torch.nan
        return losses[-1]

    with monkeypatch.context() as patch:
        patch.setattr(train, "train_epoch", diverging)
        line = refused(train.main, *FAST, "-e", "4", "-s", "other.pth")
    assert losses[1][0].isfinite()  # the weights show it first
    assert line == "train.py: fc1.weight became NaN or infinite in epoch 2: try a lower --lr than 0.001\n"
    assert len(history("other.ckpt")) == 1 == len(epochs_of("loss.csv"))
    train.main([*FAST, "-e", "1", "-s", "one.pth"])
    assert same_weights("other.pth", "one.pth")


def test_a_rate_that_explodes_is_named_and_older_weights_stay(folder, capsys):
    (folder / "model.pth").write_text("of an older run")
    with pytest.raises(SystemExit):
        train.main([*FAST, "-e", "3", "--lr", "1e30"])
    assert "try a lower --lr than 1e+30" in capsys.readouterr().err
    assert (folder / "model.pth").read_text() == "of an older run"


def test_a_full_disk_is_a_warning_first_and_an_error_at_the_end(folder, small_files, capsys, monkeypatch):
    monkeypatch.setattr(run, "SAVE_SECONDS", 0)
    (folder / "model.pth").write_bytes(b"old")
    with pytest.raises(SystemExit) as end:
        train.main([*FAST, "-e", "3"])
    out, err = capsys.readouterr()
    warning, error = err.strip().split("\n")
    assert end.value.code == 1 and out.count("epoch") == 3
    assert warning == "warning: model.pth cannot be written: File too large; training goes on without a save"
    assert error.startswith("train.py: model.pth cannot be written: File too large: older files are kept")
    assert (folder / "model.pth").read_bytes() == b"old"
    assert sorted(os.listdir(folder)) == ["loss.csv", "loss.png", "model.pth"]


def test_one_batch_for_all_images_is_warned_of_before_the_work(folder, capsys):
    train.main([*FAST, "-e", "1", "-b", "1000000"])
    assert capsys.readouterr().err.startswith("warning: -b 1000000 holds all images: an epoch is one step\n")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried ..."),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ...")])
def test_too_little_memory_is_one_line(error, folder, refused, monkeypatch):
    def too_much(*_):
        raise error

    monkeypatch.setattr(train, "train_epoch", too_much)
    line = refused(train.main, *FAST, "-e", "1")
    assert line == "train.py: not enough memory: lower -b, or close other programs\n"


MISTAKES = [
    (["-z", "0"], "argument -z/--bottleneck: 0: expected a whole number from 1 to 784", 2),
    (["-z", "eight"], "argument -z/--bottleneck: eight: expected a whole number from 1 to 784", 2),
    (["-b", "0"], "0: expected a whole number from 1 to ", 2),
    (["-e", "-1"], "-1: expected a whole number from 0 to ", 2),
    (["--noise", "-1"], "-1: expected a number from 0 to ", 2),
    (["--lr", "0,003"], "argument --lr: 0,003: expected a number from 0 to ", 2),
    (["--seed", "-1"], "-1: expected a whole number from 0 to ", 2),
    (["--device", "abacus"], "--device abacus is unavailable (0 CUDA GPUs were found): use cpu", 2),
    (["--dataset", "imagenet"], "invalid choice: 'imagenet'", 2),
    *((f"{dash}z 3".split(), f"{dash}z begins with a long dash, which looks like a minus sign", 2)
      for dash in "‒–—−"),
    (["-epochs", "3"], "-epochs: type --epochs, with two dashes", 2),
    (["-z", "3", "z"], "unrecognized arguments: z (see", 2),
    (["resume"], "unrecognized arguments: resume: type --resume", 2),
    (["--epoch-count", "3"], "unrecognized arguments: --epoch-count", 2),
    (["-p", "loss.xyz"], "loss.xyz: matplotlib cannot write this format", 2),
    (["-s", "same.png", "-p", "./same.png"], "need four different names", 2),
    (["-s", "."], ". is a folder: give the name of a file", 1),
    (["-s", "x" * 250], "File name too long", 1),
    (["-s", "x" * 300], "File name too long", 1),
    (["-b", "99999999999999999999"], "expected a whole number from 1 to 1,000,000,000", 2),
    (["-s", "file/model.pth"], "file/model.pth cannot be written: Not a directory", 1),
    (["-s", "folder"], "folder is a folder: give the name of a file", 1),
    (["-p", "/dev/null"], "/dev/null is not a regular file", 1),
    (["-p", "folder"], "folder is a folder", 1),
    (["-p", "notes.png"], "notes.csv is a folder", 1),
    (["--resume", "-s", "text.pth"], "text.ckpt is damaged, or was not written by this train.py", 1),
    (["--dataset", "mnist", "--data-dir", "nowhere"], "put mnist's four files into nowhere/MNIST/raw", 1),
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
    assert sorted(set(os.listdir(folder)) - {"nowhere"}) == ["file", "folder", "notes.csv", "text.ckpt"]


def test_the_readmes_command_where_mnist_is_unavailable(readmes_command):
    status, out, err = readmes_command.end()
    assert status == 0 and len(err.splitlines()) == 2, err
    assert "put mnist's four files into nowhere/MNIST/raw" in err and "using glyphs instead" in err
    assert out.startswith("glyphs: 1,000 training and 300 test images, on ")
    assert len(re.findall(r"^epoch \d/2  loss 0\.\d{4}  test 0\.\d{4}$", out, re.M)) == 2
    assert re.search(r"^test MSE 0\.\d+, PSNR .* dB; 3 of 3 bottleneck units live", out, re.M)
    theirs = Report(N_bottleneck=3)
    theirs.load_state_dict(torch.load(readmes_command.folder / "model.pth", weights_only=True), strict=True)
    assert (readmes_command.folder / "loss.png").read_bytes().startswith(b"\x89PNG")
    files = ["loss.csv", "loss.png", "model.ckpt", "model.pth"]
    assert sorted(set(os.listdir(readmes_command.folder)) - {"nowhere"}) == files
