import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import FAST, ROOT, SMALL, history, same_weights, with_signal

import train
from labkit import LabError, checkpoint, data, job

TWO = ("train.py", *FAST, "-b", "254")


TERMINATED = with_signal(2, signal.SIGTERM)
LOST = with_signal(3, signal.SIGKILL)
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
while not Path("go").exists():
    time.sleep(0.02)
train.main()
"""


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


@pytest.mark.parametrize("environment, words", [
    ({"WORLD_SIZE": "2"}, "WORLD_SIZE is set, but not by torchrun ('RANK'): unset it"),
    ({"WORLD_SIZE": "two"}, "WORLD_SIZE is set, but not by torchrun (invalid literal"),
    ({"WORLD_SIZE": "2", "RANK": "0"}, "WORLD_SIZE is set, but not by torchrun ('LOCAL_RANK')"),
])
def test_an_environment_that_torchrun_did_not_set_is_named(environment, words, folder, monkeypatch, refused):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert words in refused(train.main, *FAST)
    assert os.listdir(folder) == []


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "meta"])
def test_a_device_that_is_unavailable_is_named(name):
    with pytest.raises(job.DeviceError, match=f"^--device {name}"):
        job.choose_device(name)


@pytest.mark.parametrize("gpus, words", [
    (1, "^2 processes, but 1 GPU: lower --nproc_per_node or add --device cpu$"),
    (2, "^--device cuda:1 is unavailable"),  # there is none here, but it is the right one
])
def test_each_process_gets_a_gpu_of_its_own(gpus, words, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(job.DeviceError, match=words):
        job.choose_device()


def test_signal_handlers_are_put_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    this = job.Job("cpu")
    with this.deferring_signals():
        this.check_stop()
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(job.Stopped) as stopped:
            this.check_stop()
    assert stopped.value.exit_status == 143
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_a_signal_before_the_training_ends_the_process_quietly(capsys):
    with pytest.raises(SystemExit) as end, job.exiting_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143 and capsys.readouterr() == ("", "")


def test_one_process_calls_a_function_as_it_is():
    with job.Job("cpu") as alone:
        assert alone.on_rank_0(max, 1, 2) == 2
        with pytest.raises(LabError, match="a mistake"):
            alone.on_rank_0(fail)


def fail():
    raise LabError("a mistake")


@torch.inference_mode()
def assert_same_outputs(a, b):
    """Fail unless two files of weights reconstruct the test images alike, on the average.

    Single weights differ more: where a gradient is almost 0, Adam makes whole steps of its rounding.
    """
    images = data.to_float(data.load("glyphs", None, "test")[1].images)
    a, b = (checkpoint.load_weights(path)(images) for path in (a, b))
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
    ranks = start_job(*TWO, "-e", "9", "--noise", "0.1", setups=("", TERMINATED))
    straight = start_job(*TWO, "-e", "3", "--noise", "0.1", "-s", "straight.pth", "-p", "straight.png",
                         setups=(KEEP_NOISE, KEEP_NOISE))
    status, out, err = ranks[0].end()
    assert status == 143
    assert err == "train.py: stopped by SIGTERM: --resume continues from the last checkpoint\n"
    assert "epoch 2/9" in out and "epoch 3/9" not in out
    assert out.endswith("loss.png, loss.csv after 2 of 9 epochs\n")
    assert ranks[1].end() == (143, "", "")

    resumed = start_job(*TWO, "-e", "3", "--resume")
    assert [rank.end()[0] for rank in (*resumed, *straight)] == [0, 0, 0, 0]
    assert same_weights("model.pth", "straight.pth")
    assert losses("model.ckpt") == losses("straight.ckpt")
    first, second = (torch.load(f"noise-{rank}.pt") for rank in range(2))
    assert first.shape == second.shape and not first.equal(second)


MISTAKES = {
    ("-b", "511"): (2, r"train.py: -b 511: must be a multiple of 2, the number of processes .*\n"),
    ("-s", "file/model.pth"): (1, r"train.py: file/model.pth cannot be written: \S+/file is not a folder\n"),
    ("--device", "abacus"): (2, r"train.py: --device abacus is unavailable: .*\n"),
}


def test_a_mistake_is_printed_once(start_job, folder):
    (folder / "file").write_text("")
    jobs = {mistake: start_job(*TWO, *mistake) for mistake in MISTAKES}
    for mistake, (status, line) in MISTAKES.items():
        first, second = (rank.end() for rank in jobs[mistake])
        assert first[:2] == (status, "") and re.fullmatch(line, first[2])
        assert second == (status, "", "")
    assert os.listdir(folder) == ["file"]


def test_a_job_that_loses_a_worker_resumes_to_the_same_end_with_one_process(start_job, folder, capsys):
    ranks = start_job(*TWO, "-e", "9", setups=("", LOST))
    train.main([*FAST, "-b", "254", "-e", "5", "-s", "one.pth", "-p", "one.png"])
    status, out, err = ranks[0].end()
    assert status == 1 and ranks[1].end()[0] == -signal.SIGKILL
    assert re.fullmatch("train.py: process 0 failed or lost another, what was saved can be .*\n", err)
    assert out.endswith("after 2 of 9 epochs\n") and len(history("model.ckpt")) == 2

    train.main([*FAST, "-b", "254", "--resume", "-e", "5"])
    assert losses("model.ckpt") == pytest.approx(losses("one.ckpt"), rel=1e-3)
    assert_same_outputs("model.pth", "one.pth")


def test_ctrl_c_under_torchrun_ends_after_an_epoch_and_the_run_resumes(torchrun, monkeypatch):
    process, folder = torchrun
    monkeypatch.chdir(folder)
    (folder / "go").touch()
    lines = [process.stdout.readline() for _ in range(3)]
    assert re.match("epoch +2/100000", lines[2])
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    out, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert err.count("train.py: stopped by SIGINT: --resume continues from the last checkpoint") == 1
    done = len(history("model.ckpt"))
    assert done >= 2 and f"after {done} of 100000 epochs" in out
    train.main([*FAST, "--resume", "-e", str(done + 1)])
    assert len(history("model.ckpt")) == done + 1
