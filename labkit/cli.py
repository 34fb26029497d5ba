"""The command line: options that both commands share, ranges, one-line errors, exit statuses."""

import argparse
import os
import sys
from contextlib import contextmanager

from labkit import LabError, UsageError

COMMANDS = """  python train.py -z 8 -e 50 -b 2048 -s model.pth -p loss.png
  python lab1.py -l model.pth"""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError for a mistake, with the options that both commands share."""

    def __init__(self, program, description):
        description += "\n\nThe two commands of the lab:\n\n" + COMMANDS
        formatter = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
        super().__init__(prog=program, description=description, formatter_class=formatter)

    def error(self, message):
        raise UsageError(message)

    def add_shared_options(self, datasets, default_dataset):
        """Add --dataset, --data-dir and --device; `default_dataset` says in words which data set is used."""
        self.add_argument("--dataset", choices=datasets, help=f"data set (default: {default_dataset})")
        self.add_argument("--data-dir", default="data", metavar="DIR",
                          help="folder of the data sets, downloaded on first use (default: %(default)s)")
        self.add_argument("--device", metavar="NAME",
                          help="cpu, cuda or cuda:1 (default: cuda if there is a GPU, else cpu)")


def require_range(option, value, low, high):
    """Raise UsageError unless the `value` of `option` lies between `low` and `high`; NaN never does."""
    if not low <= value <= high:
        raise UsageError(f"{option} {value}: must be between {low:,} and {high:,}")


@contextmanager
def errors_in_one_line(program):
    """Turn a LabError or OSError within the block into one line on stderr and an exit status.

    Of several processes on a machine, only the first prints it.
    """
    try:
        yield
    except BrokenPipeError:  # nobody reads the output any more, as behind `| head`
        sys.stdout = open(os.devnull, "w")
        sys.exit(1)
    except (LabError, OSError) as error:
        line = " ".join(str(error).split())
        if isinstance(error, UsageError):
            line += " (see --help)"
        if "WORLD_SIZE" not in os.environ or os.environ.get("LOCAL_RANK", "0") == "0":
            print(f"{program}: {line}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))


def prepare_streams():
    """Make stdout and stderr flush every line and take any character, even if they are closed."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))
        getattr(sys, name).reconfigure(line_buffering=True, errors="backslashreplace")
