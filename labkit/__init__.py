"""The parts of the two commands, one duty per file."""


class LabError(Exception):
    """An error that the user is told in one line: what is wrong, and what to do."""

    exit_status = 1


class UsageError(LabError):
    """A wrong command line."""

    exit_status = 2
