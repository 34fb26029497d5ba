"""Weights and checkpoints: read without running code, and checked before use.

`model.pth` is a plain state_dict, the eight tensors fc1.weight ... fc4.bias, so that weights travel both
ways between this project and other solutions of the lab. `model.ckpt` is what --resume needs.
"""

import copy
import io
import math
import os
import warnings
import zipfile
from pathlib import Path

import torch

from labkit import LabError
from labkit.data import DATASETS
from model import autoencoderMLP4Layer

LEGACY_FORMAT = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # how PyTorch before 1.6 begins a file: no zip
STATE_KEYS = ("model", "optimizer", "history", "settings")  # of a checkpoint
HISTORY_ROW = {"epoch": 1, "loss": 0.0, "test_loss": 0.0, "learning_rate": 0.0, "seconds": 0.0}  # the types
ADAM_LIMIT = 2**24  # Adam counts its steps in a float32, which stops growing here


class CheckpointError(LabError):
    """A file that is unusable; the text names the file and what is wrong with it or was expected."""


def to_bytes(state):
    """Return `state` (tensors in dicts, lists and numbers) in torch.save's format."""
    buffer = io.BytesIO()  # on a full disk, torch.save to a file raises a RuntimeError without the reason
    torch.save(state, buffer)
    return buffer.getvalue()


def checkpoint_path(weights):
    """Return the path of the checkpoint that belongs to the weights at `weights`."""
    return Path(f"{weights}".removesuffix(".pth") + ".ckpt")


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


def load_weights(path):
    """Return the autoencoder whose weights `path` holds; the bottleneck's size is the file's.

    Raises CheckpointError for anything but eight finite float32 tensors of that network, and OSError.
    """
    return model_from_state(read(path), path)


def dataset_trained_on(path, model):
    """Return the name of the data set that `model`, loaded from `path`, was trained on; None if unknown.

    It is known if a checkpoint beside `path`, or beside what it links to, holds these very weights.
    """
    beside, beside_target = checkpoint_path(path), checkpoint_path(os.path.realpath(path))
    return dataset_in(beside, model) or dataset_in(beside_target, model)


def dataset_in(path, model):
    """Return the data set that the checkpoint at `path` names, or None if its weights are not `model`'s."""
    try:
        state = read(path)
        if not isinstance(state, dict) or not isinstance(state.get("settings"), dict):
            return None
        trained = model_from_state(state.get("model"), path).state_dict()
    except (CheckpointError, OSError):
        return None
    dataset = state["settings"].get("dataset")
    same = all(weight.equal(trained[name]) for name, weight in model.state_dict().items())
    return dataset if same and dataset in DATASETS else None


def model_from_state(state, path):
    """Return an autoencoder with the weights `state`, which came from `path`. Raises CheckpointError."""
    with torch.device("meta"):  # sizes without memory
        names = list(autoencoderMLP4Layer().state_dict())
    if not isinstance(state, dict) or set(state) != set(names):
        found = type(state).__name__
        if isinstance(state, dict):
            found = ", ".join(map(repr, list(state)[:9])) or "nothing"
        raise CheckpointError(f"{path} holds {found}; expected the network's state_dict: {', '.join(names)}")

    for name in names:
        require_stored(state[name], torch.float32, f"{path}: {name}")
    N_bottleneck = max(state["fc2.bias"].numel(), 1)
    with torch.device("meta"):
        expected = autoencoderMLP4Layer(N_bottleneck=N_bottleneck).state_dict()
    for name in names:
        require_tensor(state[name], expected[name], f"{path}: {name}")

    model = autoencoderMLP4Layer(N_bottleneck=N_bottleneck)
    model.load_state_dict(state)
    return model


def require_stored(tensor, dtype, name):
    """Raise CheckpointError unless `tensor`, called `name`, is a tensor whose numbers are all in the file."""
    if not isinstance(tensor, torch.Tensor) or tensor.dtype != dtype or tensor.layout != torch.strided:
        found = tensor.dtype if isinstance(tensor, torch.Tensor) else type(tensor).__name__
        raise CheckpointError(f"{name} is {found}; expected a dense tensor of {dtype}")
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        raise CheckpointError(f"{name} says it has {tensor.numel():,} elements, more than the file holds")


def require_tensor(tensor, expected, name):
    """Raise CheckpointError unless `tensor` has the dtype and the shape of `expected`, and finite numbers."""
    require_stored(tensor, expected.dtype, name)
    if tensor.shape != expected.shape:
        raise CheckpointError(f"{name} is {tuple(tensor.shape)}; expected {tuple(expected.shape)}")
    if not tensor.isfinite().all():
        raise CheckpointError(f"{name} holds NaN or infinite numbers: train again with a lower --lr")


def require_like(found, expected, name):
    """Raise CheckpointError unless `found` has the keys, types and tensor shapes of `expected`, and no NaN.

    `name` says in the error which entry it is.
    """
    if isinstance(expected, torch.Tensor):
        require_tensor(found, expected, name)
        return

    kind = dict if isinstance(expected, dict) else type(expected)  # OrderedDict or dict
    if not isinstance(found, kind) or isinstance(found, bool):
        raise CheckpointError(f"{name} is of type {type(found).__name__}; expected {kind.__name__}")
    if kind is dict:
        if set(found) != set(expected):
            raise CheckpointError(f"{name} must have the entries {', '.join(map(str, expected))}, no others")
        for key in expected:
            require_like(found[key], expected[key], f"{name}, {key}")
    elif kind is float and not math.isfinite(found):
        raise CheckpointError(f"{name} is {found}; expected a finite number")


def snapshot(model, optimizer, history, settings):
    """Return a copy of the state of a run, as load_checkpoint() returns it and restore() takes it."""
    moments = optimizer.state_dict()["state"]
    state = {"model": model.state_dict(), "optimizer": moments, "history": history, "settings": settings}
    return copy.deepcopy(state)


def load_checkpoint(path, options):
    """Return the state of the run that `path` holds; its settings have the names and types of `options`.

    Raises CheckpointError, OSError.
    """
    state = read(path)
    if not isinstance(state, dict) or set(state) != set(STATE_KEYS):
        raise CheckpointError(f"{path} is not a checkpoint of train.py: expected {', '.join(STATE_KEYS)}")
    require_like(state["settings"], options | {"dataset": ""}, f"{path}: settings")
    if not isinstance(state["history"], list):
        raise CheckpointError(f"{path}: history is of type {type(state['history']).__name__}; expected list")
    for number, epoch in enumerate(state["history"], 1):
        require_like(epoch, HISTORY_ROW, f"{path}: history, epoch {number}")
        if epoch["epoch"] != number or min(epoch.values()) < 0 or max(epoch["loss"], epoch["test_loss"]) > 1:
            raise CheckpointError(f"{path}: history, epoch {number} is {epoch}; expected losses from 0 to 1")
    for option, choices in (("dataset", DATASETS), ("init", ("mean", "report"))):
        if state["settings"][option] not in choices:
            raise CheckpointError(f"{path}: settings, {option} is {state['settings'][option]!r}")
    if model_from_state(state["model"], path).fc2.out_features != state["settings"]["bottleneck"]:
        raise CheckpointError(f"{path}: model and settings have bottlenecks of different sizes")
    return state


def restore(state, path, model, optimizer, scheduler, steps_per_epoch):
    """Bring a new model, Adam and ReduceLROnPlateau to the `state` of a run, which was read from `path`.

    Of Adam a checkpoint holds the moments alone: its settings, the scheduler's state and the learning rate
    follow from the command's options and the losses. Raises CheckpointError.
    """
    steps = len(state["history"]) * steps_per_epoch
    if steps > 0:  # a step with gradients of zero gives Adam a state of the shape that is expected
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
    for row in state["history"]:
        if row["learning_rate"] != optimizer.param_groups[0]["lr"]:
            raise CheckpointError(f"{path}: history, epoch {row['epoch']} has a learning rate that does "
                                  "not follow from the losses before it")
        scheduler.step(row["loss"])

    fresh = optimizer.state_dict()
    require_like(state["optimizer"], fresh["state"], f"{path}: optimizer")
    for parameter, moments in state["optimizer"].items():
        if moments["step"] != min(steps, ADAM_LIMIT) or (moments["exp_avg_sq"] < 0).any():
            raise CheckpointError(f"{path}: optimizer, {parameter} does not fit {steps} steps of Adam")
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(fresh | {"state": state["optimizer"]})
