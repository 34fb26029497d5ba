"""What the two commands stand on, one file per duty."""


class LabError(Exception):
    """A mistake or a misfortune that the user is told in one line: what it is, and what to do."""

    exit_status = 1


class UsageError(LabError):
    """A wrong command line."""

    exit_status = 2
