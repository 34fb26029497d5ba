import os
import re
import signal
import subprocess
import sys

import pytest
import torch
from conftest import FAST, ROOT, SMALL, free_port, history, same_weights, with_signal

import train
from labkit import LabError, checkpoint, data, job, metrics

TWO = ("train.py", *FAST, "-b", "510")


TERMINATED = with_signal(2, signal.SIGTERM)
LOST = with_signal(3, signal.SIGKILL)


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


def test_only_linux_may_have_no_display(monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(job.sys, "platform", "linux")
    assert not job.has_display()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    assert job.has_display()
    monkeypatch.delenv("WAYLAND_DISPLAY")
    monkeypatch.setattr(job.sys, "platform", "darwin")
    assert job.has_display()


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


def test_a_signal_before_the_training_ends_the_process_quietly():
    with pytest.raises(SystemExit) as end, job.exiting_on_signals():
        os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143


def test_one_process_calls_a_function_as_it_is():
    with job.Job("cpu") as alone:
        assert alone.on_rank_0(max, 1, 2) == 2
        with pytest.raises(LabError, match="a mistake"):
            alone.on_rank_0(fail)


def fail():
    raise LabError("a mistake")


def test_two_processes_train_the_network_that_one_trains(start_job, folder):
    ranks = start_job(*TWO, "-e", "3")
    status, out, err = ranks[0].end()
    assert status == 0 and err == "" and ranks[1].end() == (0, "", "")
    assert "on cpu x 2\n" in out and out.count("epoch 1/3") == out.count("test MSE") == 1
    assert sorted(os.listdir(folder)) == ["loss.csv", "loss.png", "model.ckpt", "model.pth"]

    train.main([*FAST, "-b", "510", "-e", "3", "-s", "one.pth", "-p", "one.png"])
    assert losses("model.ckpt") == pytest.approx(losses("one.ckpt"), rel=1e-5)
    two, one = (torch.load(path, weights_only=True) for path in ("model.pth", "one.pth"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-4)


ODD = """
from labkit import glyphs
load = glyphs.load
glyphs.load = lambda split: [tensor[1:] for tensor in load(split)]
"""


def test_the_test_loss_of_two_processes_is_that_of_the_whole_test_set(start_job, folder):
    assert [rank.end()[0] for rank in start_job(*TWO, "-e", "1", setups=(ODD, ODD))] == [0, 0]
    images = data.load("glyphs", None, "test")[1].images[1:]  # 599: the two evaluate 300 and 299
    with torch.inference_mode():
        mse = metrics.mse_per_image(checkpoint.load_weights("model.pth")(images / 255), images / 255).mean()
    assert history("model.ckpt")[0]["test_loss"] == pytest.approx(mse.item(), rel=1e-6)


def test_a_signal_to_one_process_ends_both_after_the_same_epoch_and_they_resume(start_job, folder):
    ranks = start_job(*TWO, "-e", "9", "--noise", "0.1", setups=("", TERMINATED))
    status, out, err = ranks[0].end()
    assert status == 143
    assert re.fullmatch("train.py: stopped by SIGTERM; run the same command with --resume .*\n", err)
    assert "epoch 2/9" in out and "epoch 3/9" not in out
    assert out.endswith("wrote model.pth, model.ckpt, loss.png, loss.csv after 2 of 9 epochs\n")
    assert ranks[1].end() == (143, "", "")

    resumed = start_job(*TWO, "-e", "3", "--resume")
    assert [rank.end()[0] for rank in resumed] == [0, 0]
    straight = start_job(*TWO, "-e", "3", "--noise", "0.1", "-s", "straight.pth", "-p", "straight.png")
    assert [rank.end()[0] for rank in straight] == [0, 0]
    assert same_weights("model.pth", "straight.pth")
    assert losses("model.ckpt") == losses("straight.ckpt")


@pytest.mark.parametrize("args, status, line", [
    (("-b", "511"), 2, r"train.py: -b 511: must be a multiple of the 2 processes \(see --help\)\n"),
    (("-s", "file/model.pth"), 1, r"train.py: .*file.*\n"),
    (("--device", "abacus"), 2, r"train.py: --device abacus is unavailable: .*\n"),
])
def test_a_mistake_is_printed_once(args, status, line, start_job, folder):
    (folder / "file").write_text("")
    ranks = start_job(*TWO, *args)
    first, second = (rank.end() for rank in ranks)
    assert first[:2] == (status, "") and re.fullmatch(line, first[2])
    assert second == (status, "", "")
    assert os.listdir(folder) == ["file"]


def test_a_job_that_loses_a_worker_resumes_to_the_same_end_with_one_process(start_job, folder, capsys):
    ranks = start_job(*TWO, "-e", "9", setups=("", LOST))
    status, out, err = ranks[0].end()
    assert status == 1 and ranks[1].end()[0] == -signal.SIGKILL
    assert re.fullmatch("train.py: process 0 failed or lost another, what was saved can be .*\n", err)
    assert out.endswith("after 2 of 9 epochs\n") and len(history("model.ckpt")) == 2

    train.main([*FAST, "-b", "510", "--resume", "-e", "5"])
    train.main([*FAST, "-b", "510", "-e", "5", "-s", "one.pth", "-p", "one.png"])
    assert losses("model.ckpt") == pytest.approx(losses("one.ckpt"), rel=1e-4)
    resumed, one = (torch.load(path, weights_only=True) for path in ("model.pth", "one.pth"))
    for name in one:
        torch.testing.assert_close(resumed[name], one[name], rtol=0, atol=1e-3)


def test_ctrl_c_under_torchrun_ends_after_an_epoch_and_the_run_resumes(folder):
    (folder / "start.py").write_text(f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from labkit import glyphs
glyphs.SIZES = {SMALL}
import train
train.main()
""")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2",
               f"--master_port={free_port()}", "start.py", *FAST, "--device", "cpu", "-e", "100000"]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                               start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        lines = [process.stdout.readline() for _ in range(3)]
        assert re.match("epoch +2/100000", lines[2])
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode != 0
    assert err.count("train.py: stopped by SIGINT; run the same command with --resume to continue") == 1
    done = len(history("model.ckpt"))
    assert done >= 2 and f"after {done} of 100000 epochs" in out
    train.main([*FAST, "--resume", "-e", str(done + 1)])
    assert len(history("model.ckpt")) == done + 1

