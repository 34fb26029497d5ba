import gzip
import hashlib
import pickle
import re
import socket
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import damage
import pytest
import torch
from conftest import put_archives

from labkit import archives, data

TEST_IMAGES, TEST_LABELS = archives.ARCHIVES["test"]


@pytest.fixture
def small_archives(tmp_path, monkeypatch):
    """Four small archives, name -> bytes, which torchvision takes for MNIST's."""
    from torchvision.datasets import MNIST

    files = put_archives(tmp_path / "archives")
    checksums = [(name, hashlib.md5(content).hexdigest()) for name, content in files.items()]
    monkeypatch.setattr(MNIST, "resources", checksums)
    return files


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A web server on loopback between two mirrors that are down: returns the folder that it serves."""
    from torchvision.datasets import MNIST

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    folder = tmp_path / "mirror"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder))
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    down = "http://127.0.0.1:9/"
    monkeypatch.setattr(MNIST, "mirrors", [down, f"http://127.0.0.1:{server.server_port}/", down])
    yield folder
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent(monkeypatch):
    """Mirrors that accept connections and never answer."""
    from torchvision.datasets import KMNIST, MNIST

    with socket.create_server(("127.0.0.1", 0)) as server:
        for dataset in (MNIST, KMNIST):
            monkeypatch.setattr(dataset, "mirrors", [f"http://127.0.0.1:{server.getsockname()[1]}/"] * 2)
        monkeypatch.setattr(archives, "TIMEOUT", 0.01)
        yield


def put(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)


def left(folder):
    """Return what a later run could find."""
    return sorted(p.name for p in Path(folder).rglob("*") if p.is_file())


def with_a_flipped_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


def test_downloads_once_and_then_needs_no_network(small_archives, mirror, tmp_path):
    put(mirror, small_archives)
    name, train, test = data.load(None, tmp_path / "data", "train", "test")
    assert name == "mnist" and train.images.shape == (20, 784) and test.images.shape == (10, 784)
    assert train.images.dtype == torch.uint8 and train.images[1, 0] == 784 % 256 and test.labels[3] == 3
    assert left(tmp_path / "data") == sorted(small_archives)
    for file in mirror.iterdir():
        file.unlink()
    again = data.load("mnist", tmp_path / "data", "test")[1]
    assert again.images.equal(test.images)


LOAD = """
import sys
for name in [name for name in sys.modules if name.partition(".")[0] == "labkit"]:
    del sys.modules[name]
from labkit import data
print(data.load(None, "data", "test")[0], *sys.modules)
"""


def test_archives_on_disk_need_no_torchvision_and_nothing_of_torchrun(start, folder):
    put_archives(folder / "data/MNIST/raw")
    (folder / "load.py").write_text(LOAD)
    status, out, err = start(folder / "load.py").end()
    name, *modules = out.split()
    assert (status, name, err) == (0, "mnist", "") and "labkit.data" in modules
    slow = {"torchvision", "torch.distributed.run", "torch.distributed.elastic"}
    assert slow.isdisjoint(modules)


@pytest.mark.parametrize("answer", ["404", "damaged", "silence"])
def test_a_bad_mirror_leads_to_glyphs_or_an_error_and_leaves_nothing(answer, small_archives, mirror, request,
                                                                     tmp_path):
    if answer == "damaged":
        put(mirror, {name: with_a_flipped_bit(content) for name, content in small_archives.items()})
    if answer == "silence":
        request.getfixturevalue("silent")
    name, images = data.load(None, tmp_path / "data", "test")
    assert name == "glyphs" and len(images) == 300
    with pytest.raises(archives.DataError, match="mnist is not in .* could not be downloaded"):
        data.load("mnist", tmp_path / "data", "test")
    assert left(tmp_path / "data") == []


def test_the_fallback_says_first_what_to_do_in_two_short_lines(silent, capsys, folder):
    data.load(None, "data", "train", "test")
    out, err = capsys.readouterr()
    first, second = err.splitlines()
    assert out == ""
    cure = "put mnist's .gz archives into data/MNIST/raw for results on MNIST"
    assert first.startswith(f"warning: {cure}: mnist is not in data ")
    assert second.startswith("warning: using glyphs instead")
    assert max(len(first), len(second)) <= 200


@pytest.mark.parametrize("dataset", ["mnist", "kmnist"])
def test_a_missing_set_given_explicitly_is_an_error_that_names_glyphs(dataset, silent, folder):
    with pytest.raises(archives.DataError, match="or use --dataset glyphs$") as error:
        data.load(dataset, "data", "test")
    assert str(error.value).startswith(f"{dataset} is not in data and could not be downloaded")
    assert "\n" not in str(error.value) and not (folder / "data").exists()


@pytest.mark.parametrize("served", [True, False])
def test_the_callers_socket_time_out_survives_a_download(served, small_archives, mirror, tmp_path):
    if served:
        put(mirror, small_archives)
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(77)
    try:
        assert data.load(None, tmp_path / "data", "test")[0] == ("mnist" if served else "glyphs")
        assert socket.getdefaulttimeout() == 77
    finally:
        socket.setdefaulttimeout(before)


def test_damaged_archives_are_mended_by_a_download_or_named(small_archives, mirror, tmp_path):
    raw = tmp_path / "data/MNIST/raw"
    put(raw, small_archives | {TEST_IMAGES: b"<html>404 not found</html>"})
    with pytest.raises(archives.DataError, match=f"^{TEST_IMAGES} is damaged .*: replace .*{TEST_IMAGES}"):
        data.load("mnist", tmp_path / "data", "test")
    assert (raw / TEST_IMAGES).read_bytes().startswith(b"<html>")
    put(mirror, small_archives)
    assert len(data.load("mnist", tmp_path / "data", "test")[1]) == 10
    assert (raw / TEST_IMAGES).read_bytes() == small_archives[TEST_IMAGES]


def test_a_damaged_archive_behind_a_link_is_mended_where_it_lies(small_archives, mirror, tmp_path):
    raw, elsewhere = tmp_path / "data/MNIST/raw", tmp_path / "elsewhere" / TEST_IMAGES
    put(raw, small_archives)
    put(elsewhere.parent, {TEST_IMAGES: b"damaged"})
    (raw / TEST_IMAGES).unlink()
    (raw / TEST_IMAGES).symlink_to(elsewhere)
    put(mirror, small_archives)
    assert len(data.load("mnist", tmp_path / "data", "test")[1]) == 10
    assert (raw / TEST_IMAGES).is_symlink() and elsewhere.read_bytes() == small_archives[TEST_IMAGES]


def test_a_half_unpacked_file_is_never_read(small_archives, tmp_path):
    half = gzip.decompress(small_archives[TEST_IMAGES])[:5000]
    put(tmp_path / "data/MNIST/raw", small_archives | {TEST_IMAGES.removesuffix(".gz"): half})
    assert len(data.load("mnist", tmp_path / "data", "test")[1]) == 10


def test_mutated_archives_load_as_they_were_or_are_refused(small_archives, silent, tmp_path):
    raw, good = tmp_path / "data/MNIST/raw", small_archives[TEST_IMAGES]
    put(raw, small_archives)
    expected = data.load("mnist", tmp_path / "data", "test")[1].images
    refused = 0
    for i in range(20):
        at = i * len(good) // 20
        mutant = good[:at] if i % 2 else good[:at] + bytes([good[at] ^ 1 << i % 8]) + good[at + 1 :]
        put(raw, {TEST_IMAGES: mutant})
        try:
            assert data.load("mnist", tmp_path / "data", "test")[1].images.equal(expected)
        except archives.DataError as error:
            refused += 1
            assert "\n" not in str(error) and f"{TEST_IMAGES} is damaged" in str(error)
    assert refused > 10


def zeros(*shape, value=0):
    return damage.idx(torch.full(shape, value, dtype=torch.uint8))


TEN = (10).to_bytes(4, "big")  # the size of a dimension
WRONG = {
    "labels of another count": (TEST_LABELS, zeros(9), r"are of shapes \(10, 28, 28\) and \(9,\); expected"),
    "labels above 9": (TEST_LABELS, zeros(10, value=10), "with labels from 0 to 9: delete the wrong file"),
    "labels in two dimensions": (TEST_LABELS, zeros(10, 1), r"\(10, 1\); expected"),
    "labels for images": (TEST_IMAGES, zeros(10), r"are of shapes \(10,\) and \(10,\); expected"),
    "larger images": (TEST_IMAGES, zeros(10, 32, 32), r"are of shapes \(10, 32, 32\)"),
    "no images": (TEST_IMAGES, zeros(0, 28, 28), f"{TEST_IMAGES} is damaged"),
    "16 bits a pixel": (TEST_LABELS, b"\0\0\x0b\x01" + TEN + bytes(20), f"{TEST_LABELS} is damaged"),
    "one byte missing": (TEST_LABELS, b"\0\0\x08\x01" + TEN + bytes(9), f"{TEST_LABELS} is damaged"),
    "half a header": (TEST_LABELS, b"\0\0\x08\x01", f"{TEST_LABELS} is damaged"),
    "nothing": (TEST_LABELS, b"", f"{TEST_LABELS} is damaged"),
}


@pytest.mark.parametrize("file, content, words", WRONG.values(), ids=WRONG)
def test_wrong_files_are_named_in_one_line(file, content, words, small_archives, silent, tmp_path):
    put(tmp_path / "data/MNIST/raw", small_archives | {file: gzip.compress(content)})
    with pytest.raises(archives.DataError, match=words) as error:
        data.load("mnist", tmp_path / "data", "test")
    assert "\n" not in str(error.value) and re.search("delete|replace", str(error.value))


def test_an_archive_that_unpacks_to_more_than_the_limit_is_refused(small_archives, tmp_path, monkeypatch):
    put(tmp_path, small_archives)
    assert archives.read_idx(tmp_path / TEST_IMAGES).shape == (10, 28, 28)
    monkeypatch.setattr(archives, "MAX_BYTES", 7000)
    with pytest.raises(archives.DataError, match="is damaged"):
        archives.read_idx(tmp_path / TEST_IMAGES)


def test_an_unavailable_data_set_can_be_reported_by_another_process():
    error = archives.UnavailableError("mnist is not here", "put it there")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)


def test_a_torchvision_that_does_not_fit_torch_is_named_with_the_cure(tmp_path, monkeypatch):
    (tmp_path / "torchvision").mkdir()
    fault = "raise RuntimeError('operator torchvision::nms does not exist')"
    (tmp_path / "torchvision/__init__.py").write_text(fault)
    for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.syspath_prepend(tmp_path)
    for dataset in (None, "mnist"):  # never glyphs: a broken installation is mended in a minute
        with pytest.raises(archives.DataError, match=r"torchvision .* beside torch .*: pip install"):
            data.load(dataset, tmp_path / "data", "test")
