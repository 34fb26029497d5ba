"""Weights and training state to disk and back: whole or not at all, and without running anybody's code.

`model.pth` is a plain state_dict, the eight tensors fc1.weight ... fc4.bias, so that weights travel both
ways between this project and other solutions of the lab. `model.ckpt` beside it is what --resume needs.
"""

import io
import os
import warnings
import zipfile
from pathlib import Path

import torch

from model import autoencoderMLP4Layer

STATE = {"model", "optimizer", "scheduler", "losses", "settings"}


class CheckpointError(Exception):
    """A file that is not what it should be; the text names the file, what was found and what was expected."""


def require_writable(path):
    """Make the folder of `path` and raise OSError unless a file can be written there: before the work, not after."""
    if not Path(path).name or Path(path).exists() and not Path(path).is_file():  # a rename would replace /dev/null
        raise OSError(f"{path} is not a regular file")
    part = beside(path)
    part.parent.mkdir(parents=True, exist_ok=True)
    part.touch()
    part.unlink()


def beside(path):
    """Return the path of the file that becomes `path`, or what `path` links to, once it is complete."""
    path = Path(os.path.realpath(path))
    return path.with_name(f".{path.name}.{os.getpid()}.part")


def write(path, data):
    """Write bytes so that `path` is at any moment absent, its old self or complete. Raises OSError."""
    part = beside(path)
    try:
        with open(part, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())  # or a power cut after the rename could leave an empty file
        os.replace(part, os.path.realpath(path))
    finally:
        part.unlink(missing_ok=True)


def to_bytes(state):
    """Return `state` (tensors in dicts, lists and numbers) in torch.save's format."""
    buffer = io.BytesIO()  # torch.save straight to a full disk ends in a RuntimeError without the reason
    torch.save(state, buffer)
    return buffer.getbuffer()


def to_image(figure, format="png"):
    """Return a matplotlib Figure as the bytes of an image in one of matplotlib's formats."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format=format, dpi=150)
    return buffer.getbuffer()


def read(path):
    """Return what torch.save wrote to `path`, on the CPU. Raises CheckpointError, OSError.

    A zip archive stores a CRC-32 of every member, which torch.load does not compare: one flipped bit
    would load as another weight. `weights_only` keeps pickles from calling anything but tensor builders.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path} is {'not a file' if Path(path).exists() else 'not there'}")
    data = Path(path).read_bytes()
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(member.compress_type for member in archive.infolist()):  # torch.save compresses nothing: a bomb
                raise zipfile.BadZipFile("compressed members")
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about what is refused below anyway
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except zipfile.BadZipFile as error:
        raise CheckpointError(f"{path} is damaged or no file of torch.save's ({error})") from error
    except Exception as error:  # a hostile pickle can raise anything
        if "Unsupported global" in str(error) or "weights_only" in str(error):
            raise CheckpointError(f"{path} holds code besides tensors, which is not run: ask its author for "
                                  "torch.save(model.state_dict(), ...)") from error
        raise CheckpointError(f"{path} can't be read: {' '.join(str(error).split())[:200]}") from error


def load_weights(path, N_input=784):
    """Return the autoencoder whose weights `path` holds; the bottleneck's size is the file's.

    Raises CheckpointError for anything but eight finite float32 tensors of that network, and OSError.
    """
    return build(read(path), path, N_input)


def build(state, path, N_input=784):
    """Return an autoencoder with the weights `state`, which came from `path`. Raises CheckpointError."""
    with torch.device("meta"):  # sizes without memory
        names = list(autoencoderMLP4Layer().state_dict())
    if not isinstance(state, dict) or set(state) != set(names):
        found = ", ".join(map(repr, list(state)[:9])) or "nothing" if isinstance(state, dict) else type(state).__name__
        raise CheckpointError(f"{path} holds {found}; expected {', '.join(names)}")
    for name, tensor in state.items():
        if not isinstance(tensor, torch.Tensor) or tensor.dtype != torch.float32 or tensor.layout != torch.strided:
            found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
            raise CheckpointError(f"{path}: {name} is {found}; expected a dense tensor of torch.float32")
        if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
            raise CheckpointError(f"{path}: {name} says it has {tensor.numel():,} elements, more than the file holds")
    with torch.device("meta"):
        N_bottleneck = max(state["fc2.bias"].numel(), 1)
        expected = autoencoderMLP4Layer(N_input, N_bottleneck, N_input).state_dict()
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(f"{path}: {name} is {tuple(tensor.shape)}; expected {tuple(expected[name].shape)} in a "
                                  f"{N_input}-{N_input // 2}-{N_bottleneck}-{N_input // 2}-{N_input} network")
        if not tensor.isfinite().all():
            raise CheckpointError(f"{path}: {name} holds NaN or infinite weights; train it anew with a lower --lr")
    model = autoencoderMLP4Layer(N_input, N_bottleneck, N_input)
    model.load_state_dict(state)
    return model


def load_state(path):
    """Return the training state in `path`, its weights checked. Raises CheckpointError, OSError."""
    state = read(path)
    if not (isinstance(state, dict) and set(state) == STATE
            and isinstance(state["losses"], list) and all(isinstance(loss, float) for loss in state["losses"])
            and isinstance(state["settings"], dict)
            and all(isinstance(value, (int, float, str)) for value in state["settings"].values())):
        raise CheckpointError(f"{path} is no checkpoint of train.py: expected {', '.join(sorted(STATE))}")
    build(state["model"], path)
    return state


def restore(state, path, parts):
    """Load `state`, read from `path`, into `parts`: its model, optimizer and scheduler. Raises CheckpointError."""
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
    except Exception as error:  # whatever a foreign file may hold
        raise CheckpointError(f"{path}: its {name} does not fit ({' '.join(str(error).split())[:200]})") from error
