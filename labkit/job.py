"""One process of a run: its device, its rank among the others, its signals.

A run is one process, or several that torchrun starts and tells their ranks in the environment.
"""

import os
import signal
import sys
import time
from contextlib import contextmanager

import torch
import torch.distributed as dist
from tqdm import tqdm

from labkit import LabError, UsageError


class DeviceError(UsageError):
    """A device that is unavailable."""


class ProcessError(LabError):
    """Processes that were not started by torchrun, or that lost one another."""


class Stopped(LabError):
    """SIGINT or SIGTERM ended the training."""

    def __init__(self, signum):
        name = signal.Signals(signum).name
        super().__init__(f"stopped by {name}: --resume continues from the last checkpoint")
        self.exit_status = 128 + signum


def ranks():
    """Return rank, local rank and world size as torchrun set them; 0, 0, 1 without it.

    Raises ProcessError.
    """
    try:
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if world_size == 1:
            return 0, 0, 1
        return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), world_size
    except (KeyError, ValueError) as error:
        raise ProcessError(f"WORLD_SIZE is set, but not by torchrun ({error}): unset it") from error


def choose_device(name=None):
    """Return torch.device(name), known to work. Raises DeviceError.

    Without a name it is a GPU if there is one, else the CPU. Each of several processes gets its own GPU.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: no CUDA GPU was found; leave --device out to use the CPU")

    _, local_rank, world_size = ranks()
    if name.startswith("cuda") and world_size > 1:
        needed, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if needed > found:
            gpus = f"{found} GPU" + ("s" if found != 1 else "")
            raise DeviceError(f"{needed} processes, but {gpus}: lower --nproc_per_node or add --device cpu")
        name = f"cuda:{local_rank}"

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"--device {name} is unavailable: {reason}") from error
    return device


@contextmanager
def handling_signals(handler):
    """Within the block, SIGINT and SIGTERM call `handler(signum, frame)`."""
    before = {signum: signal.signal(signum, handler) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, old in before.items():
            signal.signal(signum, old)


def exiting_on_signals():
    """Within the block, SIGINT and SIGTERM end the process quietly; unfinished files are removed."""
    return handling_signals(lambda signum, _: sys.exit(128 + signum))


class Job:
    """This process: its `rank` among the `world_size` processes of the run, and its `device`.

    Within `with` the processes are connected, and only rank 0 prints to stdout. Raises DeviceError and
    ProcessError.
    """

    def __init__(self, device=None):
        self.rank, _, self.world_size = ranks()
        self.device = choose_device(device)
        self.received_signal = None  # by this process
        self.agreed_signal = None  # known to all processes

    def __enter__(self):
        torch.set_flush_denormal(True)  # Adam's moments of pixels that are always 0 would slow a CPU down
        if self.world_size > 1:
            self.connect()
        self.stdout = sys.stdout
        if self.rank > 0:
            sys.stdout = open(os.devnull, "w")
        return self

    def __exit__(self, kind, error, traceback):
        sys.stdout = self.stdout
        if self.world_size == 1:
            return
        if isinstance(error, RuntimeError):  # what gloo and nccl raise
            reason = str(error).partition("\n")[0]
            raise ProcessError(f"process {self.rank} failed or lost another, "
                               f"what was saved can be resumed: {reason}") from error

        # PyTorch 2.6 holds the GIL while it waits for gloo's threads, which need the GIL to end.
        time.sleep(0.1)
        dist.destroy_process_group()

    def connect(self):
        """Open the process group. Raises ProcessError."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            with handling_signals(signal.SIG_DFL):  # Python's handlers wait until the others are there
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:  # no address, a port in use, no answer
            reason = str(error).partition("\n")[0]
            raise ProcessError(f"the {self.world_size} processes did not connect: {reason}") from error

    def __str__(self):
        return f"{self.device}" + (f" x {self.world_size}" if self.world_size > 1 else "")

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

    def progress(self, first, last):
        """Return an iterator from `first` to `last`, with a progress bar if rank 0 has a terminal."""
        disable = None if self.rank == 0 else True  # None: unless stderr is a terminal
        return tqdm(range(first, last + 1), unit="epoch", leave=False, disable=disable)

    @contextmanager
    def deferring_signals(self):
        """Within the block, SIGINT and SIGTERM are only noted, for check_stop()."""

        def note(signum, _):
            self.received_signal = signum

        with handling_signals(note):
            yield

    def check_stop(self):
        """Raise Stopped after a signal.

        One of several processes must not stop for a signal that it alone received: the others would wait for
        it for ever. They stop after an epoch, when all of them know of it.
        """
        signum = self.received_signal if self.world_size == 1 else self.agreed_signal
        if signum:
            raise Stopped(signum)

    def mean(self, loss):
        """Return the mean of a scalar tensor over the processes, a float."""
        if self.world_size > 1:
            dist.all_reduce(loss)
        return loss.item() / self.world_size

    def agree_on_signal(self):
        """Let check_stop() stop all processes for a signal that any of them received."""
        if self.world_size > 1:
            signum = torch.tensor(self.received_signal or 0, device=self.device)
            dist.all_reduce(signum, dist.ReduceOp.MAX)
            self.agreed_signal = signum.item()
