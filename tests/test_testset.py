import dataclasses

import pytest
import torch
from conftest import draw_seven

from labkit import UsageError, testset
from labkit.picture import read_picture
from model import autoencoderMLP4Layer

LABELS = torch.arange(40) % 10
ERRORS = torch.linspace(1, 0, 40)
IMAGES = torch.rand(40, 784, generator=torch.Generator().manual_seed(0))
TEST = testset.TestSet("mnist", IMAGES, LABELS, None, None, None)


@pytest.mark.parametrize("words, chosen", [
    ([], list(range(10))),
    (["7", "39"], [7, 39]),
    (["worst"], list(range(10))),
    (["best"], list(range(39, 29, -1))),
    (["digit=7", "0"], [7, 17, 27, 37, 0]),
    (["my7.png", "3"], ["my7.png", 3]),
])
def test_which_images(words, chosen):
    assert testset.parse_words(words, LABELS, ERRORS) == chosen


def test_without_words_each_digit_there_is_shown_once():
    assert testset.parse_words([], torch.tensor([7, 7, 3, 7, 3]), None) == [2, 0]


@pytest.mark.parametrize("word", ["40", "-1", "digit=x", "digit=11", "digit=", "seven", "x" * 5000,
                                  "9" * 5000, "digit=" + "9" * 20])
def test_words_that_name_nothing_are_refused(word, folder):
    with pytest.raises(UsageError, match=f"^-i {word}: expected an index from 0 to 39, worst, best, digit=0"):
        testset.parse_words([word], LABELS, ERRORS)


def test_more_than_100_images_are_refused():
    words = ["0"] * 100
    assert len(testset.parse_words(words, LABELS, ERRORS)) == 100
    with pytest.raises(UsageError, match="-i chooses 101 images: a figure shows at most 100"):
        testset.parse_words([*words, "1"], LABELS, ERRORS)


def test_pictures_and_test_images_come_in_the_order_of_the_words(folder):
    draw_seven("my7.png")
    shown, names, rows, _ = testset.select(["39", "my7.png", "2"], autoencoderMLP4Layer(), TEST)
    assert names == ["9 (image 39)", "my7.png", "2 (image 2)"] and rows == [39, None, 2]
    assert shown[[0, 2]].equal(IMAGES[[39, 2]]) and shown[1].equal(read_picture("my7.png"))


@torch.inference_mode()
def test_the_worst_are_those_that_the_network_reconstructs_worst():
    images = torch.zeros(40, 784)
    images[13] = 1  # an untrained network paints grey
    images[:13] = images[14:] = 0.5
    test = dataclasses.replace(TEST, images=images)
    assert testset.select(["worst"], autoencoderMLP4Layer(), test)[1][0] == "3 (image 13)"


def test_an_odd_image_gets_the_last_test_image_as_its_pair_and_the_caption_says_so():
    one = testset.Shown(IMAGES[:1], ["my7.png"], [None], [None])
    two = testset.in_pairs(one, IMAGES, LABELS)
    assert two.images.equal(IMAGES[[0, 39]]) and two.rows == [None, 39]
    assert two.names == ["my7.png", "9 (image 39), added to make a pair"]
    assert testset.in_pairs(two, IMAGES, LABELS) is two
