"""Weights and checkpoints: what torch.save writes, read without running code and checked before use.

`model.pth` is a plain state_dict, the eight tensors fc1.weight ... fc4.bias, so that weights travel both
ways between this project and other solutions of the lab. How they were trained is in the state_dict's own
`_metadata`, which other programs ignore. `model.ckpt` holds all that --resume needs.
"""

import hashlib
import io
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


def sealed(content):
    """Return the bytes of a checkpoint with their SHA-256 behind them, which torch.load does not mind."""
    return content + hashlib.sha256(content).digest()


def read_sealed(path):
    """Return the state in a checkpoint that sealed() closed, on the CPU. Raises CheckpointError, OSError.

    The seal shows that the file is, to the last bit, what train.py wrote. So nothing in it needs a check of
    its own, whichever optimizer it came from.
    """
    sealed_content = Path(path).read_bytes()
    content = sealed_content[:-32]
    if sealed(content) != sealed_content:
        raise CheckpointError(f"{path} is damaged, or was not written by this train.py: leave --resume out")
    return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)


def with_record(state_dict, record):
    """Return `state_dict` on the CPU, with `record` in its metadata: how the weights were trained."""
    weights = type(state_dict)((name, tensor.cpu()) for name, tensor in state_dict.items())
    weights._metadata = state_dict._metadata | {"": {"version": 1, **record}}
    return weights


def record_of(state_dict):
    """Return how weights were trained, {"dataset", "epochs", "settings"}, or None if they do not say."""
    metadata = getattr(state_dict, "_metadata", None)
    record = metadata.get("") if isinstance(metadata, dict) else None
    expected = {"dataset": str, "epochs": int, "settings": dict}
    if not isinstance(record, dict):
        return None
    if any(type(record.get(key)) is not kind for key, kind in expected.items()):
        return None
    if any(type(value) not in (bool, int, float, str) for value in record["settings"].values()):
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
        raise CheckpointError(f"{path} is not a file" if Path(path).exists() else
                              f"{path} does not exist: run train.py first, or check the name")
    content = Path(path).read_bytes()
    try:
        if not content.startswith(LEGACY_FORMAT):
            require_checksums(content)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below anyway
            return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} was not written by torch.save, or is damaged: expected a file like "
                              "model.pth") from error
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
    """Return the weights in `path`, names and finite float32 tensors, and record_of() them.

    In the file they may also be the only state_dict among the entries of a dict, have names that begin with
    "module.", from DataParallel or DistributedDataParallel, and another precision. Raises CheckpointError,
    OSError.
    """
    if Path(path).suffix == ".ckpt":
        raise CheckpointError(f"{path} is for --resume: load {Path(path).with_suffix('.pth')} beside it")
    state = read(path)
    if isinstance(state, dict) and not is_state_dict(state):
        inner = {name: entry for name, entry in state.items() if is_state_dict(entry)}
        if len(inner) == 1:
            (name, state), = inner.items()
            print(f"{path}: using the entry {name!r}")
    if not is_state_dict(state):
        raise CheckpointError(f"{path} holds no state_dict: ask its author for "
                              "torch.save(model.state_dict(), ...)")
    weights = {}
    for name, tensor in state.items():
        require_sound(tensor, f"{path}: {name}")
        weights[name.removeprefix("module.")] = tensor.float()
    return weights, record_of(state)


def is_state_dict(value):
    """Return whether `value` is a dict of names and tensors."""
    return isinstance(value, dict) and len(value) > 0 and all(
        isinstance(name, str) and isinstance(entry, torch.Tensor) for name, entry in value.items())


def require_sound(tensor, name):
    """Raise CheckpointError unless `tensor` is dense, of finite floats, and all in its file.

    `name` says in the error which one it is.
    """
    if not tensor.is_floating_point() or tensor.layout != torch.strided:
        raise CheckpointError(f"{name} is {tensor.dtype}, {tensor.layout}; expected a dense tensor of floats")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(f"{name} says it has {tensor.numel():,} elements, more than the file holds")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinite numbers: train again with a lower --lr")
