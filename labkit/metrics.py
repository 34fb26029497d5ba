"""Numbers: MSE, PSNR, PCA, nearest neighbours, live units. Images are float32 (N, pixels) in [0, 1]."""

import math

import torch
import torch.nn.functional as F

PART = 2_000  # images computed at a time: their activations stay in a processor's cache
IMPORTANCE_DECODINGS = 80_000  # images decoded to measure importance: MNIST's 10,000 for each of 8 units


def psnr(mse):
    """Return the peak signal-to-noise ratio in dB for an MSE of images in [0, 1]: -10 log10(MSE)."""
    return -10 * math.log10(max(mse, 1e-12))  # JSON has no infinity


def mse_per_image(outputs, images):
    """Return the MSE of each image, (N,)."""
    return (outputs - images).square_().mean(1)


@torch.no_grad()
def mse(model, inputs, images):
    """Return the MSE between `model`'s outputs for `inputs` and `images`, a scalar tensor."""
    total = 0
    for part, target in zip(inputs.split(PART), images.split(PART)):
        total += F.mse_loss(model(part), target) * len(part)
    return total / len(images)


def activity(codes):
    """Return the fraction of `codes`, (N, units), in which each unit is above 0, (units,)."""
    return (codes > 0).float().mean(0)


def pca(vectors):
    """Return the mean (n,), the principal components (n, n) and their variances (n,) of `vectors`, (N, n).

    Each row of the components is one, its largest entry positive, which solvers leave open; the variances
    descend.
    """
    mean = vectors.mean(0)
    covariance = vectors.T.cov(correction=0).reshape(len(mean), -1).cpu().double()  # of one number a scalar
    variances, components = torch.linalg.eigh(covariance)
    components = components.flip(1).T
    signs = components.gather(1, components.abs().argmax(1, keepdim=True)).sign()
    return mean, (components * signs).to(vectors), variances.flip(0).clamp(min=0).to(vectors)


def pca_mse(variances):
    """Return the MSE of the best linear codes of 0, 1, ... n numbers, a list; `variances` (n,) are pca()'s.

    It is the variance that a PCA of these very images leaves out: no linear autoencoder of that size can do
    better on them (Eckart and Young, "The Approximation of One Matrix by Another of Lower Rank", 1936).
    """
    left_out = variances.cpu().double().flip(0).cumsum(0).flip(0) / len(variances)
    return [*left_out.tolist(), 0.0]


def plane(codes):
    """Return a centre (units,) of `codes`, (N, units), two axes (2, units) and their share of the variance.

    The axes are the first two principal components; one or two units are axes themselves.
    """
    units = codes.shape[1]
    if units <= 2:
        return torch.zeros(units).to(codes), torch.eye(2, units).to(codes), 1.0
    mean, components, variances = pca(codes)
    return mean, components[:2], (variances[:2].sum() / variances.sum().clamp(min=1e-12)).item()


def nearest(queries, vectors, skip_self=False):
    """Return for each of `queries`, (M, n), the index of the nearest of `vectors`, (N, n), int64 (M,).

    With `skip_self` the queries are the vectors, and none is its own neighbour. Where n is large, distances
    come from a matrix product, which is much faster. Where n is small they come from differences: the product
    rounds squares, and with codes of one unit finds the wrong neighbour two times in three.
    """
    mean = vectors.mean(0)
    queries, vectors = queries - mean, vectors - mean
    squares, found = vectors.square().sum(1), []
    for start in range(0, len(queries), 1_000):  # distances of 1,000 queries at a time
        part = queries[start : start + 1_000]
        if vectors.shape[1] <= 8:
            distances = torch.cdist(part, vectors, compute_mode="donot_use_mm_for_euclid_dist")
        else:
            distances = torch.addmm(squares, part, vectors.T, alpha=-2)  # squared, less a constant
        if skip_self:
            distances[range(len(part)), range(start, start + len(part))] = math.inf
        found.append(distances.argmin(1))
    return torch.cat(found)


def neighbour_accuracy(vectors, labels):
    """Return the fraction of `vectors`, (N, n), whose nearest other one has the same label."""
    return (labels[nearest(vectors, vectors, skip_self=True)] == labels).float().mean().item()


def normal_like(images, seed):
    """Return numbers from N(0, 1) in the shape of `images`, the same on every device for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images.shape, generator=generator).to(images.device)


def random_like(codes, count, seed):
    """Return random codes (count, units), normal with the mean and covariance of `codes`, cut at 0.

    Real codes follow no such law, so that many of these decode to no digit: a variational autoencoder is
    trained until they do (Kingma and Welling, "Auto-Encoding Variational Bayes", arXiv 1312.6114).
    """
    mean, components, variances = pca(codes)
    normal = normal_like(codes[:count], seed)
    return (mean + normal * variances.sqrt() @ components).clamp(min=0)


def importance(model, codes, images):
    """Return the importance of each unit, (N_bottleneck,); the sum is 1, or 0 if all units are dead.

    It is how much the MSE rises when the unit is held at its mean over `codes`, (N, N_bottleneck), divided by
    the sum of these rises. More than 8 units are measured on the first images alone.
    """
    means = codes.mean(0)
    count = IMPORTANCE_DECODINGS // codes.shape[1]
    codes, images = codes[:count], images[:count]

    rises = []
    for unit, mean in enumerate(means):
        held = codes.clone()
        held[:, unit] = mean
        rises.append(mse(model.decode, held, images))
    rises = (torch.stack(rises) - mse(model.decode, codes, images)).clamp(min=0)
    return rises / rises.sum().clamp(min=1e-12)
