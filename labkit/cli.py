"""The command line: options that both commands share, ranges, one-line errors, exit statuses."""

import argparse
import dataclasses
import math
import os
import sys
from contextlib import contextmanager
from pathlib import Path

from labkit import LabError, UsageError

DATA_DIR = Path(__file__).parent.parent / "data"  # wherever a command is run from


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageError for a mistake, and says what was probably meant."""

    def __init__(self, program, description, examples):
        self.example = f"python {program} {examples[0]}"
        super().__init__(
            prog=program, usage=f"python {program} [options]", description=description,
            epilog="examples:\n" + "\n".join(f"  python {program} {example}" for example in examples),
            formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26))

    def parse_args(self, argv=None):
        for word in sys.argv[1:] if argv is None else argv:
            if word[0:1] in tuple("‒–—−"):
                self.error(f"{word} begins with a long dash, which looks like a minus sign: type - or --")
            if word.startswith("-") and f"-{word}" in self._option_string_actions:
                self.error(f"{word}: type -{word}, with two dashes")
        return super().parse_args(argv)

    def refuse(self, mode, args, *names):
        """Raise UsageError unless the options `names`, of no use in this `mode`, have their defaults."""
        for name in names:
            if getattr(args, name) != self.get_default(name):
                self.error(f"{mode} takes no {option_name(name)}: leave it out")

    def error(self, message):
        word = message.removeprefix("unrecognized arguments: ")
        meant = f": type --{word}" if f"--{word}" in self._option_string_actions else ""
        if "arguments are required" in message:
            meant = f", as in {self.example}"
        raise UsageError(message + meant)


def add_data_options(parser, datasets, default_dataset):
    """Add --dataset, --data-dir and --device; `default_dataset` says in words which data set is used."""
    add = parser.add_argument_group("data and device").add_argument
    add("--dataset", choices=datasets, metavar="NAME",
        help=f"{', '.join(datasets)} (default: {default_dataset})")
    add("--data-dir", type=Path, default=DATA_DIR, metavar="DIR",
        help="where they are, downloaded on first use (default: data, here)")
    add("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: cuda if it is there)")


def option(default, help, low=None, high=None, choices=None, short=None, group="training"):
    """Return a dataclass's field that add_settings() makes an option, with its range or its choices."""
    about = dict(help=help, low=low, high=high, choices=choices, short=short, group=group)
    return dataclasses.field(default=default, metadata=about)


def add_settings(parser, settings):
    """Add the fields of the dataclass `settings`, each an option(), to the options of a parser."""
    groups = {}
    for field in dataclasses.fields(settings):
        about = field.metadata
        if about["group"] not in groups:
            groups[about["group"]] = parser.add_argument_group(about["group"])
        names = [name for name in (about["short"], option_name(field.name)) if name]
        kind = str if about["choices"] else number(field.type, about["low"], about["high"])
        metavar = {int: "N", float: "X", str: None}[field.type]
        groups[about["group"]].add_argument(
            *names, type=kind, default=field.default, choices=about["choices"], metavar=metavar,
            help=f"{about['help']} (default: %(default)s)")


def option_name(field):
    """Return the name on the command line of a field, batch_size: --batch-size."""
    return "--" + field.replace("_", "-")


def number(kind, low, high):
    """Return a function that reads a number, an int or a float by `kind`, for add_argument()'s `type`.

    It raises ArgumentTypeError unless the number lies between `low` and `high`; NaN never does.
    """
    def read(text):
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        expected = "whole number" if kind is int else "number"
        raise argparse.ArgumentTypeError(f"{text}: expected a {expected} from {low:,} to {high:,}")

    return read


@contextmanager
def errors_in_one_line(program):
    """Turn a mistake within the block, or too little memory, into one line on stderr and an exit status.

    Of several processes on a machine only the first prints a mistake, since all of them find it.
    """
    try:
        yield
    except (LabError, OSError, MemoryError, RuntimeError) as error:
        line = " ".join(str(error).split())
        if out_of_memory(error):
            line = "not enough memory: lower -b, or close other programs"
        elif not isinstance(error, (LabError, OSError)):
            raise  # a fault of the program keeps its traceback
        if isinstance(error, UsageError):
            line += " (see --help)"
        if is_first("LOCAL_RANK") or out_of_memory(error):
            print(f"{program}: {line}", file=sys.stderr)
        sys.exit(getattr(error, "exit_status", 1))


def is_first(rank):
    """Return whether this process is number 0 by the `rank`, "RANK" or "LOCAL_RANK", that torchrun sets."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get(rank, "0") == "0"


def out_of_memory(error):
    """Return whether an exception is Python's, PyTorch's or CUDA's for too little memory."""
    texts = "out of memory", "can't allocate memory", "bad_alloc"
    return isinstance(error, MemoryError) or any(text in str(error) for text in texts)


class Log:
    """A stream for text that may be lost: where it cannot be written, the work goes on."""

    def __init__(self, stream):
        self.stream = stream

    def write(self, text):
        try:
            self.stream.write(text)
            self.stream.flush()
        except OSError as error:
            self.stream = open(os.devnull, "w")  # nothing more can be said there
            if not isinstance(error, BrokenPipeError):  # nobody reads on, as behind `| head`
                print(f"warning: the output cannot be written: {error.strerror}", file=sys.stderr)

    def __getattr__(self, name):
        return getattr(self.stream, name)


def prepare_streams():
    """Let stdout and stderr take any character, and nothing depend on them; stdout is rank 0's alone."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or (name == "stdout" and not is_first("RANK")):
            stream = open(os.devnull, "w")
        if hasattr(stream, "reconfigure"):  # a notebook's has none, and takes any character
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Log(stream))
