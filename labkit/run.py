"""A training run on disk: weights and checkpoint after whole epochs, the loss curve and its numbers."""

import math
import os
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from labkit import LabError, UsageError, checkpoint, figures, files

SAVE_SECONDS = 5  # at least, between two saves; one takes 0.05 s
EPOCH = ("loss", "test_loss", "learning_rate", "seconds")  # what the history has of an epoch


class SaveError(LabError):
    """Files that could not be written."""


class Run:
    """A training run and its files: weights, checkpoint, loss curve and its numbers. Only rank 0 writes them.

    Optimizer and scheduler are new. `settings` is a dict of numbers and words, `dataset` a name, `images_crc`
    the checksum of the training images. `history` has a dict of EPOCH for every epoch that is done.
    """

    def __init__(self, model, optimizer, scheduler, settings, dataset, images_crc, weights, plot, rank=0):
        self.model, self.optimizer, self.scheduler = model, optimizer, scheduler
        self.settings, self.dataset = settings, dataset
        self.made_with = settings | {"dataset": dataset, "images": images_crc,
                                     "network": " ".join(f"{model}".split()),
                                     "optimizer": " ".join(f"{optimizer}".split()),
                                     "scheduler": f"{type(scheduler).__name__} {scheduler.state_dict()}"}
        self.history = []
        self.weights, self.plot = Path(weights), Path(plot)  # the paths of its files
        self.checkpoint = Path(f"{weights}".removesuffix(".pth") + ".ckpt")
        self.csv = self.plot.parent / f"{self.plot.stem}.csv"
        self.rank = rank
        self.last_save = -math.inf  # in seconds
        self.written = None  # the checkpoint's file as this run wrote it
        self.warned = False

    def state(self):
        """Return what the checkpoint holds."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(),
                "scheduler": self.scheduler.state_dict(), "made_with": self.made_with,
                "history": self.history}

    def record(self):
        """Return how the weights were trained, which they say themselves."""
        return {"dataset": self.dataset, "epochs": len(self.history), "settings": self.settings}

    def prepare_files(self, fell_back):
        """Say which files will be replaced. Raise LabError or OSError if one cannot or must not be written.

        `fell_back` says that the run uses glyphs because MNIST is unavailable. Such a run does not replace
        weights that were trained on other images.
        """
        paths = self.weights, self.checkpoint, self.plot, self.csv
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            raise UsageError(f"-s {self.weights} -p {self.plot}: weights, .ckpt, loss curve and .csv need "
                             "four different names")
        figures.require_format(self.plot)
        if self.history:  # resumed
            return files.require_writable(*paths)

        record = checkpoint.record_in(self.weights)
        if fell_back and self.weights.exists() and (not record or record["dataset"] != self.dataset):
            raise LabError(f"{self.weights} was not trained on {self.dataset} and is kept: add --dataset "
                           f"{self.dataset} to replace it, or choose another -s")
        if record and self.checkpoint.exists():
            made = f"{record['epochs']} epochs on {record['dataset']}"
            print(f"{self.weights} was trained for {made}, which --resume would continue")
        files.announce(*paths)

    def read_checkpoint(self):
        """Return the state in the checkpoint, which this very command must have made; None if there is none.

        Raises UsageError, CheckpointError, OSError.
        """
        if not self.checkpoint.exists():
            print(f"no {self.checkpoint} yet: starting from the beginning")
            return None
        state = checkpoint.read_sealed(self.checkpoint)
        for name, now in self.made_with.items():
            then = state["made_with"].get(name)
            if then != now and name != "epochs":
                raise UsageError(f"{self.checkpoint} was made with {name} {then}, not {now}: use the same "
                                 "again, or choose another -s")
        done = len(state["history"])
        if done > self.settings["epochs"]:
            raise UsageError(f"{self.checkpoint} has {done} epochs: ask for -e {done} or more")
        return state

    def resume(self, state):
        """Go on from `state`, which read_checkpoint() returned."""
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        self.history = state["history"]
        print(f"resuming {self.checkpoint} after epoch {len(self.history)}")

    def finish_epoch(self, loss, test_loss, learning_rate, seconds):
        """Note an epoch, and save the run if the last save is SAVE_SECONDS old. Raises SaveError."""
        self.history.append(dict(zip(EPOCH, (loss, test_loss, learning_rate, seconds))))
        if self.rank > 0 or time.monotonic() - self.last_save < SAVE_SECONDS:
            return
        try:
            self.save_state()
        except OSError as error:
            if not self.warned:
                tqdm.write(f"warning: {error}; training goes on without a save", file=sys.stderr)
            self.warned = True
        self.last_save = time.monotonic()

    def save(self):
        """Write all files, the curve and the state whatever becomes of the other. Raises SaveError."""
        if self.rank > 0:
            return
        failed = []
        for write in (self.save_curve, self.save_state):  # the state last, since a GPU may fail
            try:
                write()
            except OSError as error:
                failed.append(str(error))
        if failed:
            raise SaveError(f"{'; '.join(failed)}: older files are kept; remove the cause and run again")
        curve = [self.plot, self.csv] if self.history else []
        written = ", ".join(map(str, [*curve, self.weights, self.checkpoint]))
        print(f"wrote {written} after {len(self.history)} of {self.settings['epochs']} epochs")

    @contextmanager
    def keeping_curve(self):
        """If the block fails, write the loss curve and its numbers, which need no weights."""
        try:
            yield
        except Exception:
            with suppress(OSError, SaveError):  # the first error is the one to tell
                if self.rank == 0:
                    self.save_curve()
            raise

    def save_curve(self):
        """Write the loss curve and its numbers, if there are any. Raises OSError, SaveError."""
        self.require_own_files()
        if self.history:
            rows = [{"epoch": number, **epoch} for number, epoch in enumerate(self.history, 1)]
            files.write_csv(self.csv, ["epoch", *EPOCH], rows)
            figure = Figure()
            figures.loss_curve(figure, self.history, self.record())
            files.write(self.plot, figures.to_bytes(figure, self.plot.suffix))

    def save_state(self):
        """Write weights and checkpoint. Raises OSError, SaveError."""
        self.require_own_files()
        weights = checkpoint.with_record(self.model.state_dict(), self.record())
        files.write(self.weights, checkpoint.to_bytes(weights))
        files.write(self.checkpoint, checkpoint.sealed(checkpoint.to_bytes(self.state())))
        self.written = identity(self.checkpoint)

    def require_own_files(self):
        """Raise SaveError if another program has replaced the checkpoint since this run wrote it."""
        if self.written and identity(self.checkpoint) not in (self.written, None):
            raise SaveError(f"{self.checkpoint} was replaced by another program, whose files are kept: does "
                            "another run write to them? Choose another -s")


def identity(path):
    """Return what changes when a file is replaced; None without a file."""
    return (path.stat().st_ino, path.stat().st_mtime_ns) if path.exists() else None
