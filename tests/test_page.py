"""What page.py and lesson.py put into the page, without a browser; test_page_in_browser.py opens it."""

import base64
import gzip
import hashlib
import json
import re
import zlib

import pytest
import torch

from labkit import lesson, metrics, page
from model import autoencoderMLP4Layer

HOSTILE = "</script><img src=x onerror=alert(1)></script ><!--<script>&amp;"
RECORD = {"dataset": "mnist", "epochs": 50, "settings": {"noise": 0.0}}


@pytest.fixture(scope="module")
def images():
    return torch.rand(400, 784, generator=torch.Generator().manual_seed(0)).round(decimals=2)


def build(images, units=8, dataset="mnist", record=RECORD, labels=None):
    """Return the page of a random network and the data in it."""
    torch.manual_seed(0)
    model = autoencoderMLP4Layer(N_bottleneck=units)
    labels = torch.arange(400) % 10 if labels is None else labels
    text = page.explore_page(model, images, labels, dataset, "model.pth", record)
    data, = re.findall('<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    return text, json.loads(data), data


def test_names_in_the_data_cannot_end_their_element(images):
    _, data, raw = build(images, dataset=HOSTILE, record=RECORD | {"dataset": HOSTILE})
    assert data["dataset"] == HOSTILE and HOSTILE in data["texts"]["lesson"]
    assert not set("<>&") & set(raw)


def test_only_the_pages_own_script_and_style_may_run(images):
    text, _, _ = build(images)
    policy = re.search('Content-Security-Policy"\\s+content="(.*?)"', text, re.DOTALL)[1]
    for tag in ("script", "style"):
        element, = re.findall(f"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(element.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy


def test_it_is_small_and_says_who_made_it_and_what_it_needs(images):
    text, _, _ = build(images, units=64)
    assert len(text.encode()) < 2_100_000 and len(gzip.compress(text.encode())) < 1_600_000
    for piece in ('<meta name="author"', "MIT License", "labkit/page.html", "<noscript>"):
        assert piece in text


def test_the_first_images_of_every_label_and_the_worst_are_in_the_page():
    labels, errors = torch.arange(400) % 10, torch.linspace(0, 1, 400)
    chosen, worst = page.choose(labels, errors)
    assert worst == list(range(399, 379, -1))
    assert chosen == [*range(300), *range(380, 400)]


def test_the_errors_of_pca_in_the_page_are_those_of_its_reconstructions(images):
    numbers = build(images)[1]["pcaErrors"]
    mean, components, _ = metrics.pca(images.double())
    assert len(numbers) == 785
    for count in (0, 1, 8, 100, 784):
        projected = (images - mean) @ components[:count].T @ components[:count] + mean
        assert numbers[count] == pytest.approx((projected - images).square().mean().item(), abs=1e-6)


def test_weights_are_rounded_by_half_a_step_at_most_and_the_page_has_the_rounded_ones(images):
    model = autoencoderMLP4Layer()
    rounded, layers = page.round_weights(model)
    original, weight = model.fc1.weight, rounded.fc1.weight
    assert ((weight - original).abs() <= original.abs().amax(1, keepdim=True) / 127 * 0.501).all()

    def unpack(text, dtype):
        return torch.frombuffer(bytearray(zlib.decompress(base64.b64decode(text))), dtype=dtype)

    integers = unpack(layers[0]["integers"], torch.int8).view(392, 784)
    assert weight.equal(integers * unpack(layers[0]["steps"], torch.float32)[:, None])
    assert unpack(layers[0]["bias"], torch.float32).equal(model.fc1.bias.detach())

    _, data, _ = build(images)
    torch.manual_seed(0)
    model = autoencoderMLP4Layer()
    for network, name in ((model, "mse"), (page.round_weights(model)[0], "roundedMse")):
        assert data[name] == pytest.approx((network(images) - images).square().mean().item(), rel=1e-5)
    assert f"{data['roundedMse']:.5f}" in data["texts"]["about"]


@pytest.mark.parametrize("record, sentence", [
    (None, "How this one was trained is not recorded."),
    (RECORD, "This one was trained on MNIST for 50 epochs, without noise."),
    (RECORD | {"settings": {}}, "This one was trained on MNIST for 50 epochs, without noise."),
    ({"dataset": "kmnist", "epochs": 1, "settings": {"noise": 0.25}},
     "This one was trained on KMNIST for 1 epoch, to remove noise of 0.25.")])
def test_the_lesson_says_how_the_weights_were_trained(images, record, sentence):
    assert sentence in build(images, record=record)[1]["texts"]["lesson"]


def test_experiments_that_need_a_label_that_is_absent_are_left_out(images):
    assert len(build(images)[1]["experiments"]) == 7
    data = build(images, labels=torch.full((400,), 3))[1]
    assert [question for question, _, _ in data["experiments"]] == [
        "And a letter, which is not a digit?", "Which image is the worst?", "What does one number do?"]


@pytest.mark.parametrize("dataset, thing", [
    ("mnist", "digit"), ("glyphs", "digit"), ("fashion-mnist", "garment"), ("kmnist", "character"),
    ("my photographs", "image")])
def test_each_data_set_is_called_what_it_is(images, dataset, thing):
    texts = build(images, dataset=dataset)[1]["texts"]
    assert texts["keys-thing"] == thing and f"{thing} in 8 numbers" in texts["title"]
    assert len(lesson.words(dataset).names) == 10
