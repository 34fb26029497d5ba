import os
import re
import signal
import subprocess
import sys
import threading

import pytest
import torch
from conftest import FAST, ROOT, SMALL, at_epoch, history, same_weights, with_signal

import train
from labkit import LabError, UsageError, data, processes
from model import autoencoderMLP4Layer, load

TWO = ("train.py", *FAST, "-b", "254")
KEEP_NOISE = """
import os
import torch
randn_like = torch.randn_like
def keep_noise(images):
    noise = randn_like(images)
    torch.save(noise, f"noise-{os.environ['RANK']}.pt")
    return noise
torch.randn_like = keep_noise
"""
START = f"""
import sys, time
from pathlib import Path
sys.path.insert(0, {str(ROOT)!r})
from labkit import glyphs
glyphs.SIZES = {SMALL}
import torch._dynamo, train  # Adam imports the former, which takes seconds
from labkit import cli
cli.prepare_streams()
while not Path("go").exists():
    time.sleep(0.02)
train.main()
"""
NOTED = "\nstopping after this epoch; a second signal stops at once, with the files of the last save\n"


@pytest.fixture(scope="module", autouse=True)
def torchrun(tmp_path_factory):
    """README's torchrun and its folder, started before the other tests: it imports for seconds.

    It trains as soon as there is a file "go" in the folder.
    """
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "start.py").write_text(START)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    options = ["start.py", *FAST, "--device", "cpu", "-e", "100000"]
    process = subprocess.Popen([*command, *options], text=True, cwd=folder,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
                               env=os.environ | {"OMP_NUM_THREADS": "1"})
    yield process, folder
    if process.poll() is None:
        process.terminate()  # it ends its workers
        process.communicate(timeout=60)


def losses(path):
    return [epoch[name] for epoch in history(path) for name in ("loss", "test_loss")]


def test_rank_without_world_size_is_an_ordinary_single_process(folder, monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    train.main([*FAST, "-e", "1"])
    assert "on cpu\n" in capsys.readouterr().out and len(history("model.ckpt")) == 1


def test_processes_that_torchrun_did_not_start_are_told_so(folder, monkeypatch, refused):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "did not connect, or were not started by torchrun" in refused(train.main, *FAST)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["abacus", "gpu", "cuda:99", "meta"])
def test_a_device_that_is_unavailable_is_named_with_those_that_may_be(name):
    with pytest.raises(UsageError, match=f"^--device {name} is unavailable .*: use cpu, cuda, cuda:1 or "):
        processes.choose_device(name)


def test_each_process_gets_the_gpu_of_its_local_rank(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "zeros", lambda *_, device: torch.ones(1))
    for name, value in {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    this = processes.Processes()
    assert (this.rank, this.world_size, this.device) == (3, 4, torch.device("cuda:1"))
    assert processes.Processes("cpu").device == torch.device("cpu")


def test_the_first_signal_is_noted_and_handlers_are_put_back(capfd):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with processes.Processes("cpu").noting_signals() as requested:
        assert requested() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        assert requested() == signal.SIGTERM
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # the second ends the process at once
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    assert capfd.readouterr().err == NOTED


def test_training_and_testing_work_in_a_thread(folder):
    failed = []

    def work():
        try:
            train.main([*FAST, "-e", "1"])
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not failed and (folder / "model.pth").exists()


def fail():
    raise LabError("a mistake")


def test_one_process_calls_a_function_as_it_is():
    with processes.Processes("cpu") as alone:
        assert alone.on_rank_0(max, 1, 2) == 2 and alone.mean(torch.tensor(3.0), 5) == 3
        with pytest.raises(LabError, match="a mistake"):
            alone.on_rank_0(fail)


def test_processes_evaluate_the_whole_test_set_where_it_does_not_divide_evenly(monkeypatch):
    images = data.to_float(data.load("glyphs", None, "test")[1].images[:7])
    model, sums = autoencoderMLP4Layer(), []
    monkeypatch.setattr(processes.dist, "all_reduce", lambda mine: sums.append(mine.clone()))
    for rank in range(3):
        this = processes.Processes("cpu")
        this.rank, this.world_size = rank, 3
        train.evaluate(model, images, this)
    monkeypatch.setattr(processes.dist, "all_reduce", lambda mine: mine.copy_(sum(sums)))
    expected = (model(images) - images).square().mean().item()
    assert train.evaluate(model, images, this) == pytest.approx(expected, rel=1e-5)
    assert [count.item() for _, count in sums] == [3, 2, 2]


@torch.inference_mode()
def assert_same_outputs(a, b):
    """Fail unless two files of weights reconstruct the test images alike, on the average.

    Single weights differ more: where a gradient is almost 0, Adam makes whole steps of its rounding.
    """
    images = data.to_float(data.load("glyphs", None, "test")[1].images)
    a, b = (load(path)[0](images) for path in (a, b))
    assert (a - b).abs().mean() < 5e-4


def test_two_processes_train_the_network_that_one_trains(start_job, folder):
    ranks = start_job(*TWO, "-e", "3")
    (folder / "one").mkdir()
    train.main([*FAST, "-b", "254", "-e", "3", "-s", "one/model.pth", "-p", "one/loss.png"])
    status, out, err = ranks[0].end()
    assert status == 0 and err == "" and ranks[1].end() == (0, "", "")
    assert "on cpu x 2\n" in out and out.count("epoch 1/3") == out.count("test MSE") == 1
    files = ["loss.csv", "loss.png", "model.ckpt", "model.pth"]
    assert sorted(os.listdir("one")) == files and sorted(os.listdir(folder)) == [*files, "one"]
    assert losses("model.ckpt") == pytest.approx(losses("one/model.ckpt"), rel=1e-3)
    assert_same_outputs("model.pth", "one/model.pth")


def test_a_signal_to_one_process_ends_both_after_the_same_epoch_and_they_resume(start_job, folder):
    ranks = start_job(*TWO, "-e", "3", "--noise", "0.1", setups=("", with_signal(2, signal.SIGTERM)))
    straight = start_job(*TWO, "-e", "3", "--noise", "0.1", "-s", "straight.pth", "-p", "straight.png",
                         setups=(KEEP_NOISE, KEEP_NOISE))
    status, out, err = ranks[0].end()
    assert (status, err) == (143, "train.py: stopped by SIGTERM: --resume continues the run\n")
    assert "epoch 2/3" in out and out.endswith("model.pth, model.ckpt after 2 of 3 epochs\n")
    assert ranks[1].end() == (143, "", "")

    resumed = start_job(*TWO, "-e", "3", "--noise", "0.1", "--resume")
    assert [rank.end()[0] for rank in (*resumed, *straight)] == [0, 0, 0, 0]
    assert same_weights("model.pth", "straight.pth")
    assert losses("model.ckpt") == losses("straight.ckpt")
    first, second = (torch.load(f"noise-{rank}.pt") for rank in range(2))
    assert first.shape == second.shape and not first.equal(second)


MISTAKES = {
    ("-b", "511"): (2, r"train.py: -b 511: must be a multiple of the number of processes, 2 .*\n"),
    ("-s", "file/model.pth"): (1, r"train.py: file/model.pth cannot be written: Not a directory\n"),
    ("--device", "abacus"): (2, r"train.py: --device abacus is unavailable .*\n"),
}


def test_a_mistake_is_printed_once(start_job, folder):
    (folder / "file").write_text("")
    jobs = {mistake: start_job(*TWO, *mistake) for mistake in MISTAKES}
    for mistake, (status, line) in MISTAKES.items():
        first, second = (rank.end() for rank in jobs[mistake])
        assert first[0] == status and re.fullmatch(line, first[2])
        assert second == (status, "", "")
    assert os.listdir(folder) == ["file"]


FAULT = at_epoch(2, "raise RuntimeError('shapes (3, 4) and (5, 6)')")


@pytest.mark.parametrize("setup, status, words", [
    (with_signal(3, signal.SIGKILL), -signal.SIGKILL, ""),
    (FAULT, 1, "RuntimeError: shapes"),
    (at_epoch(2, "raise MemoryError"), 1, "train.py: not enough memory: lower -b"),
], ids=["killed", "a fault", "out of memory"])
def test_who_lost_another_says_so_and_a_fault_keeps_its_traceback(setup, status, words, start_job, folder):
    ranks = start_job(*TWO, "-e", "9", setups=("", setup))
    lost, faulty = ranks[0].end(), ranks[1].end()
    assert lost[0] == 1 and faulty[0] == status and words in faulty[2]
    assert ("Traceback" in faulty[2]) == (setup == FAULT)
    assert re.search("train.py: process 0 lost another, what was saved can be resumed: .*\n$", lost[2])
    assert len(history("model.ckpt")) >= 1 and (folder / "loss.csv").exists()


def test_ctrl_c_under_torchrun_ends_after_an_epoch_and_the_run_resumes(torchrun, monkeypatch):
    process, folder = torchrun
    monkeypatch.chdir(folder)
    (folder / "go").touch()
    lines = [process.stdout.readline() for _ in range(3)]
    assert re.match("epoch +2/100000", lines[2])
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("train.py: stopped by SIGINT: --resume continues the run") == 1 and NOTED in err
    done = len(history("model.ckpt"))
    assert done >= 2 and f"after {done} of 100000 epochs" in out
    train.main([*FAST, "--resume", "-e", str(done + 1)])
    assert len(history("model.ckpt")) == done + 1
