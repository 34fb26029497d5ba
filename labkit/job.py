"""One process of a run: its device, its rank among the others, its signals.

A run is one process, or several that torchrun starts; it tells each its rank in the environment.
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
    """Processes that were not started as torchrun does it, or that lost one another."""


class Stopped(LabError):
    """SIGINT or SIGTERM ended the training."""

    def __init__(self, number):
        super().__init__(f"stopped by {signal.Signals(number).name}; the same command with --resume goes on "
                         "from what was written")
        self.exit_status = 128 + number


def ranks():
    """Return rank, local rank and world size as torchrun set them; 0, 0, 1 without. Raises ProcessError."""
    try:
        world_size = int(os.environ.get("WORLD_SIZE", 1))
        if world_size == 1:
            return 0, 0, 1
        return int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]), world_size
    except (KeyError, ValueError) as error:
        raise ProcessError(f"WORLD_SIZE is set, but not as torchrun does it ({error}): unset it") from error


def choose_device(name=None):
    """Return torch.device(name), known to work; None: a GPU where there is one, else the CPU.

    Of several processes each gets a GPU of its own. Raises DeviceError.
    """
    name = name or ("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise DeviceError(f"--device {name}: no CUDA GPU was found; leave --device out to use the CPU")

    _, local_rank, world_size = ranks()
    if name.startswith("cuda") and world_size > 1:
        needed, found = int(os.environ.get("LOCAL_WORLD_SIZE", 1)), torch.cuda.device_count()
        if needed > found:
            raise DeviceError(f"{needed} processes, but {found} GPUs: lower --nproc_per_node or add "
                              "--device cpu")
        name = f"cuda:{local_rank}"

    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise DeviceError(f"--device {name} is unavailable: {reason}") from error
    return device


def has_display():
    """Return whether a window can open; only on Linux may there be none."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


@contextmanager
def handling_signals(handler):
    """Within the block, SIGINT and SIGTERM call `handler(number, frame)`."""
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def exiting_on_signals():
    """Within the block, SIGINT and SIGTERM end the process quietly; what has begun is cleaned up."""
    return handling_signals(lambda number, _: sys.exit(128 + number))


class Job:
    """This process among the `world_size` of the run, and its `device`. Within `with` they are connected.

    Rank 0 speaks: the others print nothing to stdout. Raises DeviceError and ProcessError.
    """

    def __init__(self, device=None):
        self.rank, _, self.world_size = ranks()
        self.device = choose_device(device)
        self.signal = None  # that came to this process
        self.agreed_signal = None  # that all processes know of

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
        time.sleep(0.1)  # in which gloo's threads let go of their last tensors, for which they need the GIL:
        dist.destroy_process_group()  # in PyTorch 2.6 it waits for them and holds the GIL

    def connect(self):
        """Open the process group. Raises ProcessError."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        try:
            with handling_signals(signal.SIG_DFL):  # Python's handlers wait until the others are there
                dist.init_process_group("nccl" if self.device.type == "cuda" else "gloo")
        except (RuntimeError, ValueError) as error:  # no address, a port in use, nobody there
            reason = str(error).partition("\n")[0]
            raise ProcessError(f"the {self.world_size} processes do not find each other: {reason}") from error

    def __str__(self):
        return f"{self.device}" + (f" x {self.world_size}" if self.world_size > 1 else "")

    def on_rank_0(self, function, *args):
        """Call `function(*args)` on rank 0 alone; return or raise in every process what came of it."""
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
        """Within the block, SIGINT and SIGTERM are noted for check_stop() and do nothing else."""

        def note(number, _):
            self.signal = number

        with handling_signals(note):
            yield

    def check_stop(self):
        """Raise Stopped after a signal.

        Of several processes none may stop for a signal that it alone knows of: the others would wait for it
        for ever. They stop, after a whole epoch, for one that they agreed on.
        """
        number = self.signal if self.world_size == 1 else self.agreed_signal
        if number:
            raise Stopped(number)

    def mean(self, loss):
        """Return the mean of a scalar tensor over the processes, a float."""
        if self.world_size > 1:
            dist.all_reduce(loss)
        return loss.item() / self.world_size

    def agree_on_signal(self):
        """Let check_stop() stop all processes for a signal that came to any of them."""
        if self.world_size > 1:
            number = torch.tensor(self.signal or 0, device=self.device)
            dist.all_reduce(number, dist.ReduceOp.MAX)
            self.agreed_signal = number.item()
