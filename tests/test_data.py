import gzip
import hashlib
import socket
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import torch
from conftest import ROOT

from labkit import data
from tests import damage


@pytest.fixture
def archives(monkeypatch):
    """Four small archives, name -> bytes, which torchvision takes for MNIST's."""
    from torchvision.datasets import MNIST

    images = torch.arange(30 * 784).remainder(256).to(torch.uint8).view(30, 28, 28)
    labels = torch.arange(30).remainder(10).to(torch.uint8)
    tensors = images[:20], labels[:20], images[20:], labels[20:]
    names = (*data.ARCHIVES["train"], *data.ARCHIVES["test"])
    files = {name: damage.gzipped_idx(tensor) for name, tensor in zip(names, tensors)}
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(MNIST, "resources", checksums)
    return files


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on loopback as MNIST's only mirror: returns the folder that it serves."""
    from torchvision.datasets import MNIST

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.server_port}/"])
    yield folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent(monkeypatch):
    """A mirror that accepts connections and never answers."""
    from torchvision.datasets import MNIST

    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setattr(MNIST, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"] * 2)
        monkeypatch.setattr(data, "TIMEOUT", 0.2)
        yield


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def left(folder):
    """What a later run could find."""
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file())


def test_downloads_once_and_then_needs_no_network(archives, mirror, tmp_path):
    put(mirror, archives)
    name, train, test = data.load(None, tmp_path / "data", "train", "test")
    assert name == "mnist" and train.images.shape == (20, 784) and test.images.shape == (10, 784)
    assert train.images.dtype == torch.uint8 and train.images[1, 0] == 784 % 256 and test.labels[3] == 3
    assert left(tmp_path / "data") == sorted(archives)
    for file in mirror.iterdir():
        file.unlink()
    again = data.load("mnist", tmp_path / "data", "test")[1]
    assert again.images.equal(test.images)


def damaged(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize("trouble", ["404", "damaged", "silent"])
def test_a_bad_mirror_leads_to_glyphs_or_an_error_and_leaves_nothing(trouble, archives, mirror, request, tmp_path, capsys, small):
    if trouble == "damaged":
        put(mirror, {name: damaged(content) for name, content in archives.items()})
    if trouble == "silent":
        request.getfixturevalue("silent")
    name, images = data.load(None, tmp_path / "data", "test")
    assert name == "glyphs" and len(images) == 600
    warning = capsys.readouterr().err
    assert "mnist is not in" in warning and "using glyphs instead" in warning
    with pytest.raises(data.DataError, match="could not be downloaded"):
        data.load("mnist", tmp_path / "data", "test")
    assert left(tmp_path / "data") == []
    assert socket.getdefaulttimeout() is None


def test_damaged_archives_are_mended_by_a_download_or_named(archives, mirror, tmp_path):
    raw = tmp_path / "data/MNIST/raw"
    put(raw, archives | {"t10k-images-idx3-ubyte.gz": b"<html>404 not found</html>"})
    with pytest.raises(data.DataError, match=r"t10k-images-idx3-ubyte.gz is damaged \(delete it\)"):
        data.load("mnist", tmp_path / "data", "test")
    assert (raw / "t10k-images-idx3-ubyte.gz").read_bytes().startswith(b"<html>")
    put(mirror, archives)
    assert len(data.load("mnist", tmp_path / "data", "test")[1]) == 10
    assert (raw / "t10k-images-idx3-ubyte.gz").read_bytes() == archives["t10k-images-idx3-ubyte.gz"]


def test_a_half_unpacked_file_is_never_read(archives, tmp_path):
    half = gzip.decompress(archives["t10k-images-idx3-ubyte.gz"])[:5000]
    put(tmp_path / "data/MNIST/raw", archives | {"t10k-images-idx3-ubyte": half})
    assert len(data.load("mnist", tmp_path / "data", "test")[1]) == 10


def test_mutated_archives_load_as_they_were_or_are_refused(archives, silent, tmp_path, monkeypatch):
    monkeypatch.setattr(data, "TIMEOUT", 0.01)
    raw, good = tmp_path / "data/MNIST/raw", archives["t10k-images-idx3-ubyte.gz"]
    put(raw, archives)
    expected = data.load("mnist", tmp_path / "data", "test")[1].images
    for i in range(20):
        at = i * len(good) // 20
        mutant = good[:at] if i % 2 else good[:at] + bytes([good[at] ^ 1 << i % 8]) + good[at + 1 :]
        put(raw, {"t10k-images-idx3-ubyte.gz": mutant})
        try:
            assert data.load("mnist", tmp_path / "data", "test")[1].images.equal(expected)
        except data.DataError as error:
            assert "\n" not in str(error) and "damaged" in str(error)


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_cure(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision/__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    for dataset in (None, "mnist"):  # never glyphs: a broken installation is mended in a minute
        with pytest.raises(data.DataError, match=r"torchvision .* beside torch .*: pip install"):
            data.load(dataset, tmp_path / "data", "test")


def test_glyphs_are_the_same_every_time_and_look_like_mnist(small):
    _, train, test = data.load("glyphs", None, "train", "test")
    _, again = data.load("glyphs", None, "train")
    assert train.images.equal(again.images) and train.labels.equal(again.labels)
    assert train.images.shape == (2000, 784) and test.images.shape == (600, 784) and train.images.dtype == torch.uint8
    assert not train.images[:600].equal(test.images)
    assert train.labels.unique().tolist() == list(range(10))
    assert 0.08 < data.to_float(train.images).mean() < 0.18  # MNIST: 0.13
    corners = train.images.view(-1, 28, 28)[:, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 0).float().mean() > 0.99


def test_an_epoch_shows_every_image_once_in_an_order_of_its_own(small):
    images = data.Images(torch.arange(100).to(torch.uint8).view(100, 1), torch.zeros(100))
    batches = data.batches(images, 32, seed=1)

    def epoch(batches, number):
        batches.sampler.set_epoch(number)
        return [(x.flatten() * 255).round().int().tolist() for x in batches]

    first, second = epoch(batches, 1), epoch(batches, 2)
    assert [len(b) for b in first] == [32, 32, 32, 4] == [len(b) for b in second] and len(batches) == 4
    assert sorted(sum(first, [])) == sorted(sum(second, [])) == list(range(100)) and first != second
    assert epoch(batches, 1) == first != epoch(data.batches(images, 32, seed=2), 1)
    halves = [epoch(data.batches(images, 32, 1, rank, 2), 1) for rank in range(2)]
    assert [sorted(sum(batch, [])) for batch in zip(*halves)] == [sorted(batch) for batch in first]
    thirds = [epoch(data.batches(images, 33, 1, rank, 3), 1) for rank in range(3)]
    assert [[len(batch) for batch in third] for third in thirds] == [[11, 11, 11]] * 3  # one of 100 is left out


def test_a_batch_is_float32_in_0_1(small):
    _, images = data.load("glyphs", None, "test")
    batch = next(iter(data.batches(images, 64, seed=0)))
    assert batch.dtype == torch.float32 and batch.shape == (64, 784)
    assert batch.min() == 0 and batch.max() == 1


@pytest.mark.skipif(not (ROOT / "data/MNIST/raw").exists(), reason="no MNIST in data/")
def test_real_mnist():
    name, train, test = data.load("mnist", ROOT / "data", "train", "test")
    assert name == "mnist" and train.images.shape == (60_000, 784) and test.images.shape == (10_000, 784)
    assert data.to_float(train.images).mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert train.labels.bincount()[:3].tolist() == [5923, 6742, 5958]
