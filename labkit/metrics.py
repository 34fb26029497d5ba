"""Numbers: MSE, PSNR, PCA, live units, their importance. Images are float32 (N, pixels) in [0, 1]."""

import math

import torch
import torch.nn.functional as F

NOISE_LEVELS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6)  # compared by denoising()
IMPORTANCE_DECODINGS = 80_000  # images decoded to measure importance: MNIST's 10,000 for each of 8 units


def psnr(mse):
    """Return the peak signal-to-noise ratio in dB for an MSE of images in [0, 1]: -10 log10(MSE)."""
    return -10 * math.log10(max(mse, 1e-12))  # JSON has no infinity


def mse_per_image(outputs, images):
    """Return the MSE of each image, (N,)."""
    return (outputs - images).square_().mean(1)


@torch.no_grad()
def mse(model, batches):
    """Return the MSE of the reconstructions of all images of `batches`, a scalar tensor."""
    total = count = 0
    for images in batches:
        total += F.mse_loss(model(images), images) * len(images)
        count += len(images)
    return total / count


@torch.no_grad()
def activity(model, batches):
    """Return the fraction of all images of `batches` on which each unit is above 0, (N_bottleneck,)."""
    active = count = 0
    for images in batches:
        active += (model.encode(images) > 0).sum(0)
        count += len(images)
    return active / count


def constant_mse(image, batches):
    """Return the MSE over all images of `batches` of a network whose output is always `image`, (pixels,)."""
    errors = torch.cat([mse_per_image(image, images) for images in batches])
    return errors.mean().item()


def pca_mse(images, components):
    """Return the MSE of the best linear code of `components` numbers on `images`.

    It is the variance that a PCA of these very images leaves out: no linear autoencoder of that size can do
    better on them (Eckart and Young, "The Approximation of One Matrix by Another of Lower Rank", 1936).
    """
    covariance = images.T.cov(correction=0)
    variances = torch.linalg.eigvalsh(covariance.cpu().double()).flip(0)  # descending
    return variances[components:].sum().item() / images.shape[1]


def reconstruction(model, images, labels):
    """Return the MSE and PSNR of `model` and of PCA on `images`, and the MSE of each digit, as a dict."""
    errors = mse_per_image(model(images), images)
    error, pca = errors.mean().item(), pca_mse(images, model.fc2.out_features)
    digits = {digit: errors[labels == digit].mean().item() for digit in labels.unique().tolist()}
    return {"mse": error, "psnr_db": psnr(error), "pca_mse": pca, "pca_psnr_db": psnr(pca),
            "mse_of_each_digit": digits}


def denoising(model, images, noise, seed):
    """Return the MSE and PSNR of `images` with `noise` * N(0, 1) added, before and after `model`, as a dict.

    It has the MSE at other levels of noise, too, and that of the noisy images clipped to [0, 1], the simplest
    way to remove noise. `model` gets the noisy images unclipped.
    """
    normal = normal_like(images, seed)
    noisy = images + noise * normal
    before, after = F.mse_loss(noisy, images).item(), F.mse_loss(model(noisy), images).item()
    clipped = F.mse_loss(noisy.clamp(0, 1), images).item()
    levels = {level: F.mse_loss(model(images + level * normal), images).item() for level in NOISE_LEVELS}
    return {"noise": noise, "noisy_mse": before, "noisy_psnr_db": psnr(before), "clipped_mse": clipped,
            "mse": after, "psnr_db": psnr(after), "mse_at_noise": levels}


def normal_like(images, seed):
    """Return numbers from N(0, 1) in the shape of `images`, the same on every device for a seed."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(images.shape, generator=generator).to(images.device)


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
        rises.append(F.mse_loss(model.decode(held), images))
    rises = (torch.stack(rises) - F.mse_loss(model.decode(codes), images)).clamp(min=0)
    return rises / rises.sum().clamp(min=1e-12)
