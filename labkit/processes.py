"""This process among those of a run: its device, its rank, what they compute together, the request to stop.

A run is one process, or several that torchrun starts and tells their ranks in the environment.
"""

import os
import platform
import signal
import threading
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist

from labkit import LabError, UsageError


class ProcessError(LabError):
    """Processes that were not started by torchrun, or that lost one another."""


class Stopped(LabError):
    """SIGINT or SIGTERM ended the training."""

    def __init__(self, signum):
        super().__init__(f"stopped by {signal.Signals(signum).name}: --resume continues the run")
        self.exit_status = 128 + signum


def choose_device(name=None, number=None):
    """Return torch.device(name), known to work, or the GPU `number` of this machine. Raises UsageError.

    Without a name it is a GPU if there is one, else the CPU.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and number is not None:
        name = f"cuda:{number}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
        return device
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        found = f"{torch.cuda.device_count()} CUDA GPUs were found"
        raise UsageError(f"--device {name} is unavailable ({found}): use cpu, cuda, cuda:1 or mps") from error


def multiplies_bfloat16(device):
    """Return whether `device` has arithmetic in bfloat16, which PyTorch emulates elsewhere."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type != "cpu":
        return True
    try:
        if platform.machine() in ("arm64", "aarch64"):
            return torch.ops.mkldnn._is_mkldnn_bf16_supported()  # on x86_64 it counts the emulation, too
        return torch.cpu._is_avx512_bf16_supported()  # as do all processors with AMX
    except AttributeError:  # private functions, which PyTorch may rename
        return True


class Processes:
    """The processes of a run, of which this one is number `rank` of `world_size`, on `device`.

    Within `with` they are connected. Raises UsageError and ProcessError.
    """

    def __init__(self, device=None):
        self.world_size = int(os.environ.get("WORLD_SIZE", 1))
        self.rank = int(os.environ.get("RANK", 0)) if self.world_size > 1 else 0
        local_rank = os.environ.get("LOCAL_RANK") if self.world_size > 1 else None
        self.device = choose_device(device, local_rank)

    def __str__(self):
        return f"{self.device}" + (f" x {self.world_size}" if self.world_size > 1 else "")

    def __enter__(self):
        torch.set_flush_denormal(True)  # Adam's moments of pixels that are always 0 would slow a CPU down
        if self.world_size == 1:
            return self
        try:
            if self.device.type == "cuda":
                torch.cuda.set_device(self.device)
            dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:  # no address, a port in use, no answer
            reason = str(error).partition("\n")[0]
            raise ProcessError(f"the {self.world_size} processes did not connect, or were not started by "
                               f"torchrun: {reason}") from error
        return self

    def __exit__(self, kind, error, traceback):
        if self.world_size == 1:
            return
        # Gloo tells of a lost connection by a plain RuntimeError.
        if isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error)):
            reason = str(error).partition("\n")[0]
            raise ProcessError(f"process {self.rank} lost another, what was saved can be resumed: "
                               f"{reason}") from error
        time.sleep(0.1)  # PyTorch 2.6 holds the GIL while it waits for gloo's threads, which need it to end
        dist.destroy_process_group()

    def on_rank_0(self, function, *args):
        """Call `function(*args)` on rank 0 alone; every process returns its result or raises its error."""
        result = error = None
        if self.rank == 0:
            try:
                result = function(*args)
            except (LabError, OSError) as caught:
                error = caught
        if self.world_size > 1:
            message = [result, error]
            dist.broadcast_object_list(message)
            result, error = message
        if error:
            raise error
        return result

    def parallel(self, model):
        """Return `model` as a module whose gradients are the means over the processes."""
        return torch.nn.parallel.DistributedDataParallel(model) if self.world_size > 1 else model

    def mean(self, value, count):
        """Return a mean over the images of all processes, a float.

        `value` is the mean over those of this process, a scalar tensor, and `count` their number.
        """
        if self.world_size == 1:
            return value.item()
        sums = torch.stack([value * count, torch.full_like(value, count)])
        dist.all_reduce(sums)
        return (sums[0] / sums[1]).item()

    @contextmanager
    def noting_signals(self):
        """Within the block the first SIGINT or SIGTERM is only noted, and a second one ends the process.

        Yields a function that returns the signal that this or another process has received, or 0. All
        processes call it after each epoch, and so end together: they would wait for one that ended alone. In
        a thread, where Python allows no handlers, signals keep their effect.
        """
        received = 0

        def note(signum, _):
            nonlocal received
            received = signum
            for number in before:
                signal.signal(number, signal.SIG_DFL)
            if self.rank == 0:  # os.write: print() must not interrupt itself
                os.write(2, b"\nstopping after this epoch; a second signal stops at once, with the files of "
                            b"the last save\n")

        def requested():
            signum = torch.tensor(received, device=self.device)
            if self.world_size > 1:
                dist.all_reduce(signum, dist.ReduceOp.MAX)
            return signum.item()

        in_main_thread = threading.current_thread() is threading.main_thread()
        numbers = (signal.SIGINT, signal.SIGTERM) if in_main_thread else ()
        before = {number: signal.signal(number, note) for number in numbers}
        try:
            yield requested
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
