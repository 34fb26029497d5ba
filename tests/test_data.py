import gzip
import socket

import damage
import pytest
import torch
from conftest import MNIST, ROOT, needs_mnist, put_archives

from labkit import data

TEST_IMAGES, TEST_LABELS = data.FILES["test"]


def numbered(count):
    """Return images of one pixel, its grey level the image's number."""
    return torch.arange(count).to(torch.uint8).view(count, 1)


def epoch(*args):
    """Return the numbers of the images in each batch of data.batches(*args)."""
    return [(x.flatten() * 255).round().int().tolist() for x in data.batches(*args)]


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own():
    images = numbered(100)
    first, second = epoch(images, 32, 1, 1), epoch(images, 32, 1, 2)
    assert [len(batch) for batch in first] == [32, 32, 32, 4] == [len(batch) for batch in second]
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(100)) and first != second
    assert epoch(images, 32, 1, 1) == first != epoch(images, 32, 2, 1)


def test_processes_train_on_equally_many_images_of_the_same_batches():
    images = numbered(100)
    halves = [epoch(images, 32, 1, 1, rank, 2) for rank in range(2)]
    assert [sorted(sum(batch, [])) for batch in zip(*halves)] == [sorted(b) for b in epoch(images, 32, 1, 1)]
    thirds = [epoch(images, 33, 1, 1, rank, 3) for rank in range(3)]
    assert [[len(batch) for batch in third] for third in thirds] == [[11, 11, 11]] * 3  # 1 is left out


def test_noise_has_a_seed_of_its_own_in_every_run_epoch_and_process():
    runs = [(seed, epoch) for seed in range(9) for epoch in range(60)]
    seeds = {data.noise_seed(*run, rank) for run in runs for rank in range(3)}
    shuffles = {1_000_003 * seed + epoch for seed, epoch in runs}
    assert len(seeds) == 9 * 60 * 3 and not seeds & shuffles
    assert data.noise_seed(1, 2, 3) == data.noise_seed(1, 2, 3)


def test_a_batch_is_float32_in_0_1():
    _, images = data.load("glyphs", None, "test")
    batch = next(data.batches(images.images, 64, 0, 1))
    assert batch.dtype == torch.float32 and batch.shape == (64, 784)
    assert batch.min() == 0 and batch.max() == 1


def test_the_mean_image_is_over_all_images():
    images = data.load("glyphs", None, "train")[1].images
    torch.testing.assert_close(data.mean_image(images), (images / 255).mean(0))


@needs_mnist
def test_real_mnist_is_called_mnist_and_other_images_in_its_place_are_not(tmp_path, capsys):
    name, train, test = data.load("mnist", ROOT / "data", "train", "test")
    assert name == "mnist" and train.images.shape == (60_000, 784) and test.images.shape == (10_000, 784)
    assert data.to_float(train.images).mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert train.labels.bincount()[:3].tolist() == [5923, 6742, 5958]
    assert capsys.readouterr().err == ""

    for file in MNIST.glob("*.gz"):
        source = str(file).replace("t10k", "train") if "images" in file.name else str(file)
        (tmp_path / file.name).symlink_to(source)
    (tmp_path / f"{TEST_LABELS}.gz").unlink()
    (tmp_path / f"{TEST_LABELS}.gz").symlink_to(MNIST / "train-labels-idx1-ubyte.gz")
    assert data.load(None, tmp_path, "test")[0] == "not-mnist"  # the training images as test images
    err = capsys.readouterr().err
    assert TEST_IMAGES in err and TEST_LABELS in err and "not MNIST's" in err and err.count("\n") == 1


PLACES = ["data/MNIST/raw", "data/mnist/MNIST/raw", "data", "data/MNIST", "data/mnist"]
NAMES = ["{}.gz", "{}", "{} (1).gz", "{}(1)", "{dotted}", "{dotted}.gz"]


@pytest.mark.parametrize("place, name", [(place, NAMES[0]) for place in PLACES]
                         + [(PLACES[0], name) for name in NAMES[1:]])
def test_mnist_is_found_where_people_keep_it(place, name, tmp_path):
    for file, content in put_archives(tmp_path / "source").items():
        file = file.removesuffix(".gz")
        path = tmp_path / place / name.format(file, dotted=file.replace("-idx", ".idx"))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if path.suffix == ".gz" else gzip.decompress(content))
    name, train, test = data.load("mnist", tmp_path / "data", "train", "test")
    assert (name, len(train.images), len(test.images)) == ("not-mnist", 20, 10)
    assert train.images[1, 0] == 784 % 256 and test.labels[3] == 3


def test_fashion_mnist_is_not_looked_for_among_mnists_files(tmp_path, monkeypatch):
    from torchvision.datasets import FashionMNIST

    monkeypatch.setattr(FashionMNIST, "mirrors", ["http://127.0.0.1:9/"])
    put_archives(tmp_path)
    with pytest.raises(data.DataError, match="put fashion-mnist's four files into .*FashionMNIST/raw"):
        data.load("fashion-mnist", tmp_path, "test")


def test_another_data_set_keeps_its_name_though_its_images_are_not_mnists(tmp_path, capsys):
    put_archives(tmp_path / "KMNIST/raw")
    assert data.load("kmnist", tmp_path, "test")[0] == "kmnist" and capsys.readouterr().err == ""


def test_files_on_disk_need_no_torchvision(start, folder):
    put_archives(folder / "data/MNIST/raw")
    code = ("import sys; from labkit import data; data.load(None, 'data', 'test'); "
            "print('torchvision' in sys.modules, 'labkit.data' in sys.modules)")
    (folder / "load.py").write_text(code)
    assert start(folder / "load.py").end()[1] == "False True\n"


def test_a_missing_data_set_leads_to_glyphs_with_two_lines_or_to_an_error(folder, unreachable, capsys):
    name, images = data.load(None, "data", "test")
    first, second = capsys.readouterr().err.splitlines()
    assert name == "glyphs" and len(images.images) == 300
    assert first.startswith("warning: put mnist's four files into data/MNIST/raw: there is no t10k-images")
    assert "could not be downloaded" in first and second.startswith("warning: using glyphs instead")
    with pytest.raises(data.DataError, match="put mnist's four files into data/MNIST/raw") as error:
        data.load("mnist", "data", "test")
    assert "\n" not in str(error.value)


def test_two_of_four_files_are_told_which_is_missing(folder, unreachable):
    raw = folder / "data/MNIST/raw"
    put_archives(raw)
    (raw / f"{TEST_LABELS}.gz").unlink()
    with pytest.raises(data.DataError, match=f"there is no {TEST_LABELS}.gz"):
        data.load("mnist", "data", "test")


def test_torchvision_downloads_what_is_missing(folder, monkeypatch):
    from torchvision import datasets

    class Downloads:
        def __init__(self, root, download):
            assert download
            put_archives(root / "MNIST/raw")
            assert socket.getdefaulttimeout() == data.TIMEOUT

    monkeypatch.setattr(datasets, "MNIST", Downloads)
    assert len(data.load("mnist", folder / "data", "test")[1].images) == 10
    assert socket.getdefaulttimeout() is None


def zeros(*shape, value=0):
    return damage.idx(torch.full(shape, value, dtype=torch.uint8))


TEN = (10).to_bytes(4, "big")  # the size of a dimension
WRONG = {
    "labels of another count": (TEST_LABELS, zeros(9), "different numbers of images and labels"),
    "labels above 9": (TEST_LABELS, zeros(10, value=10), "holds no labels from 0 to 9"),
    "labels for images": (TEST_IMAGES, zeros(10), "holds no images of 28 x 28"),
    "larger images": (TEST_IMAGES, zeros(10, 32, 32), "holds no images of 28 x 28"),
    "no images": (TEST_IMAGES, zeros(0, 28, 28), "is damaged"),
    "16 bits per pixel": (TEST_LABELS, b"\0\0\x0b\x01" + TEN + bytes(20), "is damaged"),
    "one byte missing": (TEST_LABELS, b"\0\0\x08\x01" + TEN + bytes(9), "is damaged"),
    "one byte too many": (TEST_LABELS, b"\0\0\x08\x01" + TEN + bytes(11), "is damaged"),
    "half a header": (TEST_LABELS, b"\0\0\x08\x01", "is damaged"),
    "nothing": (TEST_LABELS, b"", "is damaged"),
}


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("file, content, words", WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_in_one_line(file, content, words, packed, folder, unreachable):
    put_archives(folder / "MNIST/raw")
    (folder / f"MNIST/raw/{file}.gz").unlink()
    path = folder / f"MNIST/raw/{file}{'.gz' if packed else ''}"
    path.write_bytes(gzip.compress(content) if packed else content)
    with pytest.raises(data.DataError, match=words) as error:
        data.load("mnist", folder, "test")
    assert "\n" not in str(error.value)


def test_a_damaged_file_beside_a_sound_one_does_not_matter(folder):
    content = put_archives(folder / "MNIST/raw")[f"{TEST_IMAGES}.gz"]
    (folder / "MNIST/raw" / TEST_IMAGES).write_bytes(gzip.decompress(content)[:5000])  # half unpacked
    assert len(data.load("mnist", folder, "test")[1].images) == 10
    (folder / f"MNIST/raw/{TEST_IMAGES}.gz").write_bytes(content[:-9])
    (folder / f"MNIST/raw/{TEST_IMAGES} (1).gz").write_bytes(content)
    assert len(data.load("mnist", folder, "test")[1].images) == 10


def test_weights_are_tested_on_the_data_set_they_were_trained_on():
    assert data.trained_on(None) is None
    assert data.trained_on({"dataset": "kmnist"}) == "kmnist"
    assert data.trained_on({"dataset": "not-mnist"}) == "mnist"  # where those images are
