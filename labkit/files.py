"""Files written atomically: each is absent, unchanged or complete at any moment."""

import csv
import io
import os
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def naming(path):
    """Let an OSError within the block say that `path` cannot be written, and why."""
    try:
        yield
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def write(path, content):
    """Write bytes to `path`, or to what it links to; whatever fails, the old file stays. Raises OSError."""
    target = Path(os.path.realpath(path))
    part = part_of(target)
    with naming(path):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file
            os.replace(part, target)
        finally:
            part.unlink(missing_ok=True)


def write_csv(path, columns, rows):
    """Write `rows`, dicts of some or all `columns`, to a CSV file. Raises OSError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write(path, text.getvalue().encode())


def part_of(target):
    """Return the path at which the content of `target` is written, before it is renamed."""
    return target.with_name(f".{target.name}.{os.getpid()}.part")


def require_writable(*paths):
    """Raise OSError unless a file can be written to each of `paths`: before the work, which would be lost."""
    for path in paths:
        target = Path(os.path.realpath(path))
        if target.is_dir():
            raise OSError(f"{path} is a folder: give the name of a file")
        if target.exists() and not target.is_file():  # /dev/null would be replaced
            raise OSError(f"{path} is not a regular file: choose the name of another one")
        folder = next(parent for parent in target.parents if parent.exists())
        trial = folder / part_of(target).name
        with naming(path):
            trial.touch()
            trial.unlink()


def announce(*paths):
    """Say which of `paths` will be replaced. Raises OSError if a file cannot be written to each."""
    require_writable(*paths)
    existing = [str(path) for path in paths if path.exists()]
    if existing:
        print(f"replacing {', '.join(existing)}")
