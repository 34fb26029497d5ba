"""The parts of the two commands, one duty per file."""

import os

try:
    import matplotlib  # noqa: F401
except ValueError:  # MPLBACKEND, which Jupyter sets, names a backend that is missing here; files need none
    del os.environ["MPLBACKEND"]


class LabError(Exception):
    """An error that the user is told in one line: what is wrong, and what to do."""

    exit_status = 1


class UsageError(LabError):
    """A wrong command line."""

    exit_status = 2
