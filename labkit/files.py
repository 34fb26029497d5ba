"""Files written atomically: each is absent, unchanged or complete at any moment."""

import os
from contextlib import suppress
from pathlib import Path


def temporary_path(path):
    """Return the path of the file that becomes `path`, or what `path` links to, once it is complete."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def require_writable(*paths):
    """Make the folders of `paths`; raise OSError, and leave nothing, unless a file can be written at each.

    For use before the work, which would be lost otherwise.
    """
    made = []
    try:
        for path in paths:
            made = missing_folders(temporary_path(path)) + made
            try_to_write(Path(path))
    except OSError:
        remove_empty(made)
        raise


def try_to_write(path):
    """Raise OSError, which names `path`, unless a file can be written there; make its folder."""
    # os.path, since Path.exists() raises an error of its own for a name that is too long.
    if not path.name or (os.path.exists(path) and not os.path.isfile(path)):  # /dev/null would be replaced
        raise OSError(f"{path} is not a regular file")
    temporary = temporary_path(path)
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.touch()
        finally:
            temporary.unlink(missing_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise OSError(f"{path} cannot be written: {temporary.parent} is not a folder") from error
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error


def missing_folders(path):
    """Return the folders above `path` that do not exist, the deepest first."""
    return [folder for folder in Path(path).parents if not os.path.exists(folder)]


def remove_empty(folders):
    """Remove the empty ones of `folders`, of which a deeper one comes first."""
    for folder in folders:
        with suppress(OSError):  # not empty, or never made
            folder.rmdir()


def write(path, content):
    """Write bytes to `path`; whatever fails, the old file stays. Raises OSError."""
    temporary = temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file
        os.replace(temporary, os.path.realpath(path))
    finally:
        temporary.unlink(missing_ok=True)
