"""Weights and checkpoints: what torch.save writes, read without running code and checked before use.

`model.pth` is a plain state_dict, the eight tensors fc1.weight ... fc4.bias, so that weights travel both
ways between this project and other solutions of the lab. How they were trained is in the state_dict's own
`_metadata`, which other programs ignore. `model.ckpt` holds all that --resume needs.
"""

import io
import math
import warnings
import zipfile
from pathlib import Path

import torch

from labkit import LabError

LEGACY_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch before 1.6 begins a file: no zip


class CheckpointError(LabError):
    """A file that is unusable; the text names the file and what is wrong with it or was expected."""


def to_bytes(state):
    """Return `state` (tensors in dicts, lists and numbers) in torch.save's format."""
    buffer = io.BytesIO()  # on a full disk, torch.save to a file raises a RuntimeError without the reason
    torch.save(state, buffer)
    return buffer.getvalue()


def with_record(state_dict, record):
    """Return `state_dict` on the CPU, with `record` in its metadata: how the weights were trained."""
    weights = type(state_dict)((name, tensor.cpu()) for name, tensor in state_dict.items())
    weights._metadata = state_dict._metadata | {"": {"version": 1, **record}}
    return weights


def record_of(state_dict):
    """Return how weights were trained, {"dataset", "epochs", "settings"}, or None if they do not say."""
    record = getattr(state_dict, "_metadata", {}).get("", {})
    expected = {"dataset": str, "epochs": int, "settings": dict}
    if any(type(record.get(key)) is not kind for key, kind in expected.items()):
        return None
    if any(type(value) not in (int, float, str) for value in record["settings"].values()):
        return None
    return {key: record[key] for key in expected}


def record_in(path):
    """Return how the weights in the file `path` were trained, or None if it does not say."""
    try:
        return record_of(read(path))
    except (CheckpointError, OSError):
        return None


def read(path):
    """Return what torch.save wrote to `path`, on the CPU. Raises CheckpointError, OSError.

    The file is a zip archive with a checksum of every member, which torch.load does not compare: a flipped
    bit would load as another weight. Files from before PyTorch 1.6 have no checksums. `weights_only` keeps
    pickles from running code.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is not a file" if Path(path).exists() else f"{path} does not exist")
    content = Path(path).read_bytes()
    try:
        if not content.startswith(LEGACY_FORMAT):
            require_checksums(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below anyway
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged, or not written by torch.save ({error})") from error
    except Exception as error:  # a hostile pickle can raise anything
        if "Unsupported global" in str(error) or "Unsupported class" in str(error):
            raise CheckpointError(f"{path} holds code besides tensors, which is not run: ask its author for "
                                  "torch.save(model.state_dict(), ...)") from error
        raise CheckpointError(f"{path} cannot be read: {' '.join(str(error).split())[:200]}") from error


def require_checksums(content):
    """Raise BadZipFile unless the bytes are a zip archive as torch.save writes it, without a flipped bit."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if any(member.compress_type for member in archive.infolist()):  # torch.save never compresses: a bomb
            raise zipfile.BadZipFile("compressed members")
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"wrong checksum of {damaged}")


def read_weights(path):
    """Return the state_dict in `path`: names and finite float32 tensors. Raises CheckpointError, OSError."""
    state = read(path)
    if not isinstance(state, dict):
        raise CheckpointError(f"{path} holds {type(state).__name__}; expected a state_dict")
    for name, tensor in state.items():
        require_tensor(tensor, torch.float32, f"{path}: {name}")
    return state


def require_tensor(tensor, dtype, name, shape=None):
    """Raise CheckpointError unless `tensor` is dense, of `dtype` and `shape`, finite and all in the file.

    `name` says in the error which one it is.
    """
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.layout != torch.strided:
        found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise CheckpointError(f"{name} is {found}; expected a dense tensor of {dtype}")
    if shape is not None and tensor.shape != shape:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}; expected {tuple(shape)}")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(f"{name} says it has {tensor.numel():,} elements, more than the file holds")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinite numbers: train again with a lower --lr")


def require_like(found, expected, name):
    """Raise CheckpointError unless `found` has the structure of `expected`, the state of a fresh run.

    That is the same types, keys, lengths, shapes and words, and numbers that are finite unless the fresh
    one is not. `name` says in the error which entry it is.
    """
    if isinstance(expected, torch.Tensor):
        require_tensor(found, expected.dtype, name, expected.shape)
    elif isinstance(expected, dict) and isinstance(found, dict):
        if set(found) != set(expected):
            raise CheckpointError(f"{name} must have the entries {', '.join(map(str, expected))}, no others: "
                                  "was it made with another optimizer, or by another version of PyTorch?")
        for key in expected:
            require_like(found[key], expected[key], f"{name}, {key}")
    elif type(found) is not type(expected):
        raise CheckpointError(f"{name} is of type {type(found).__name__}; expected {type(expected).__name__}")
    elif isinstance(expected, (list, tuple)):
        require_like(dict(enumerate(found)), dict(enumerate(expected)), name)
    elif not plausible(found, expected):
        raise CheckpointError(f"{name} is {found!r}; expected a value like {expected!r}")


def plausible(found, expected):
    """Return whether a number or word that was read can stand where a fresh run has `expected`."""
    if isinstance(expected, str):
        return found == expected
    return not isinstance(expected, float) or math.isfinite(found) or found == expected
