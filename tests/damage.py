"""Files as nobody should write them."""

import gzip
import io
import zipfile


class Hostile:
    """Unpickled with trust, creates a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def idx(tensor):
    """Return a uint8 tensor in the IDX format."""
    sizes = b"".join(size.to_bytes(4, "big") for size in tensor.shape)
    return bytes([0, 0, 8, tensor.dim()]) + sizes + tensor.numpy().tobytes()


def gzipped_idx(tensor):
    """Return a uint8 tensor as MNIST's archives hold it."""
    return gzip.compress(idx(tensor), mtime=0)


def zipped(members):
    """Return a zip archive of `members`, name -> bytes, with the right checksums."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def damaged(content, rng):
    """Return the bytes `content` cut, or with a few bits flipped, often in the head or the tail."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        edge = rng.choice([len(content), min(len(content), 4000)])  # where an archive says what is in it
        position = rng.choice([rng.randrange(edge), -1 - rng.randrange(edge)])
        content[position] ^= 1 << rng.randrange(8)
    return bytes(content)
