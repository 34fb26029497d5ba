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
            folder = temporary_path(path).parent
            made += [folder for folder in (folder, *folder.parents) if not folder.exists()]
            try_to_write(Path(path))
    except OSError:
        for folder in sorted(made, reverse=True):  # the deepest first
            with suppress(OSError):
                folder.rmdir()
        raise


def try_to_write(path):
    """Raise OSError, which names `path`, unless a file can be written there; make its folder."""
    if not path.name or (path.exists() and not path.is_file()):  # /dev/null would be replaced
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
