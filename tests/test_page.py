"""What page.py puts into the page, without a browser; test_page_in_browser.py opens it."""

import base64
import hashlib
import json
import re

import pytest
import torch

from labkit import LabError, page
from model import autoencoderMLP4Layer

HOSTILE = "</script><img src=x onerror=alert(1)></script ><!--<script>&amp;"


@pytest.fixture(scope="module")
def images():
    return torch.rand(400, 784, generator=torch.Generator().manual_seed(0)).round(decimals=2)


def build(images, units=8, dataset="mnist"):
    torch.manual_seed(0)
    model, importance = autoencoderMLP4Layer(N_bottleneck=units), torch.full((units,), 1 / units)
    return page.explore_page(model, images, torch.arange(400) % 10, importance, dataset, "model.pth")


def test_names_in_the_data_cannot_end_their_element(images):
    text = build(images, dataset=HOSTILE)
    data, = re.findall('<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(data)["dataset"] == HOSTILE
    assert not set("<>&") & set(data)


def test_only_the_pages_own_script_and_style_may_run(images):
    text = build(images)
    policy = re.search('Content-Security-Policy"\\s+content="(.*?)"', text, re.DOTALL)[1]
    for tag in ("script", "style"):
        element, = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(element.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_the_first_images_of_every_digit_and_the_worst_are_in_the_page():
    labels, errors = torch.arange(400) % 10, torch.linspace(0, 1, 400)
    chosen, worst = page.choose(labels, errors)
    assert worst == list(range(399, 379, -1))
    assert chosen == [*range(300), *range(380, 400)]


def test_the_map_has_the_principal_components_as_its_axes():
    codes = torch.randn(500, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 5, 0.1, 3])
    centre, axes, variance = page.map_axes(codes)
    _, s, v = torch.linalg.svd((codes - codes.mean(0)).double(), full_matrices=False)
    torch.testing.assert_close(centre, codes.double().mean(0))
    torch.testing.assert_close((axes @ v[:2].T).abs(), torch.eye(2, dtype=torch.float64))
    assert variance == pytest.approx((s[:2].square().sum() / s.square().sum()).item())
    assert axes[0].argmax() == 1 and axes[1].argmax() == 3  # pointing up, whatever the sign of the solver


def test_one_or_two_units_are_axes_themselves():
    for units in (1, 2):
        centre, axes, variance = page.map_axes(torch.rand(10, units))
        assert centre.tolist() == [0] * units and axes.equal(torch.eye(2, units)) and variance == 1


def test_floats_keep_15_bits_of_their_fraction():
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 100
    packed = torch.frombuffer(bytearray(base64.b64decode(page.pack_floats(values))), dtype=torch.uint8)
    words = (packed.view(-1, 3).int() << torch.tensor([8, 16, 24])).sum(1, dtype=torch.int32)
    torch.testing.assert_close(words.view(torch.float32), values, rtol=2**-16, atol=0)


def test_65_units_are_too_many():
    page.require_room(autoencoderMLP4Layer(N_bottleneck=64))
    with pytest.raises(LabError, match="65 units: the page has room for 64"):
        page.require_room(autoencoderMLP4Layer(N_bottleneck=65))
