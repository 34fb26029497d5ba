"""The files of a training run, which show it as it was after its last whole epoch."""

import csv
import io
import math
import os
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure
from tqdm import tqdm

from labkit import LabError, UsageError, checkpoint, figures, files

CHECKPOINT_SECONDS = 5  # at least, between two checkpoints; writing one takes 0.02 s


class SaveError(LabError):
    """Files that could not be written."""


class RunFiles:
    """The files of a training run: `weights`, `checkpoint`, `plot` and `csv`; rank 0 alone writes them.

    They show the run as it was at the last snapshot(), after a whole epoch.
    """

    def __init__(self, weights, plot, rank=0):
        self.weights, self.checkpoint = Path(weights), checkpoint.checkpoint_path(weights)
        self.plot = Path(plot)
        self.csv = self.plot.parent / f"{self.plot.stem}.csv"
        self.format = self.plot.suffix[1:].lower() or "png"
        self.rank = rank
        self.state = None
        self.last_attempt = -math.inf  # to write the checkpoint, in seconds
        self.warned = False

    def require_writable(self):
        """Raise UsageError or OSError unless each of the files can be written."""
        paths = self.weights, self.checkpoint, self.plot, self.csv
        if len({os.path.realpath(path) for path in paths}) < len(paths):
            raise UsageError(f"-s {self.weights} -p {self.plot}: weights, .ckpt, loss curve and .csv need "
                             "four different names")
        if not figures.can_write(self.format):
            raise UsageError(f"-p {self.plot}: matplotlib cannot write this format here: "
                             "try .png, .pdf or .svg")
        files.require_writable(*paths)

    def snapshot(self, model, optimizer, history, settings):
        """Keep a copy of the run as it is after a whole epoch."""
        if self.rank == 0:
            self.state = checkpoint.snapshot(model, optimizer, history, settings)

    def write_checkpoint(self):
        """Write the checkpoint if the last one is CHECKPOINT_SECONDS old; warn once if that fails."""
        if self.rank > 0 or time.monotonic() - self.last_attempt < CHECKPOINT_SECONDS:
            return
        try:
            files.write(self.checkpoint, checkpoint.to_bytes(self.state))
        except OSError as error:
            if not self.warned:
                warning = f"{self.checkpoint}: {error.strerror}; training goes on without a checkpoint"
                tqdm.write(f"warning: {warning}", file=sys.stderr)  # above the progress bar
            self.warned = True
        self.last_attempt = time.monotonic()

    def write_all(self):
        """Write every file, or nothing if the run ended before its first epoch was complete.

        With -e 0 there is no loss curve. Raises SaveError.
        """
        if self.rank > 0:
            return
        history, settings = self.state["history"], self.state["settings"]
        if settings["epochs"] > 0 and not history:  # older files are worth more than an untrained network
            print("no epoch was completed: nothing was written")
            return

        weights = {name: tensor.cpu() for name, tensor in self.state["model"].items()}
        contents = {self.weights: checkpoint.to_bytes(weights),
                    self.checkpoint: checkpoint.to_bytes(self.state)}
        if history:
            figure = Figure()
            figures.loss_curve(figure, history, settings["dataset"], settings["noise"])
            contents[self.plot] = figures.to_bytes(figure, self.format)
            contents[self.csv] = csv_bytes(history)

        failed = []
        for path, content in contents.items():
            try:
                files.write(path, content)
            except OSError as error:
                failed.append(f"{path}: {error.strerror}")
        if failed:
            raise SaveError(f"{'; '.join(failed)}: older files are kept; remove the cause and run again")
        print(f"wrote {', '.join(map(str, contents))} after {len(history)} of {settings['epochs']} epochs")


def csv_bytes(rows):
    """Return dicts with the same keys as the bytes of a CSV file."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
