"""Kill runs, fill disks and damage files by the hundred, and print what came of it.

    python benchmarks/faults.py            # about ten minutes on two cores
    python benchmarks/faults.py --quick    # a tenth of each

Runs are forks of this process on small glyphs, one thread each, checkpoint after every epoch; disks are
tmpfs mounts, for which it needs root on Linux.
"""

import argparse
import gzip
import hashlib
import io
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import torch
import torch._dynamo  # Adam does, 1 s in every fork

sys.path.insert(0, str(Path(__file__).parent.parent))
import checkpoint
import data
import train

OPTIONS = ("--dataset", "glyphs", "-b", "256", "-e", "12", "--noise", "0.1", "-s", "model.pth", "-p", "loss.png")


def fork(function, folder):
    """Run `function` in a fork of this process, in `folder`, its output in out.txt; return the process's id."""
    if pid := os.fork():
        return pid
    try:
        os.chdir(folder)
        sys.stdout = sys.stderr = open("out.txt", "a", buffering=1)
        torch.set_num_threads(1)
        function()
        status = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code)
        status = 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        status = 99
    os._exit(status)


def ended(pid):
    """Wait for a fork and return its exit status, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def training(*more):
    return lambda: train.main([*OPTIONS, *more])


def stopped_and_resumed(number, stops, rng, root):
    """Stop runs by a signal at random moments and resume each to its end, until there were so many stops."""
    straight = root / "straight"
    if not straight.exists():
        straight.mkdir()
        assert ended(fork(training(), straight)) == 0, (straight / "out.txt").read_text()
    start = time.monotonic()
    assert ended(fork(training(), straight)) == 0
    length = time.monotonic() - start
    done = runs = same = tracebacks = 0
    while done < stops:
        folder, status = Path(tempfile.mkdtemp(dir=root)), None
        while status != 0:
            pid = fork(training("--resume"), folder)
            time.sleep(rng.uniform(0, length))
            os.kill(pid, number)
            status = ended(pid)
            assert status in (0, -number, 128 + number), (status, (folder / "out.txt").read_text())
            done += status != 0
        runs += 1
        same += (folder / "model.pth").read_bytes() == (straight / "model.pth").read_bytes()
        tracebacks += "Traceback" in (folder / "out.txt").read_text()
        shutil.rmtree(folder)
    return f"{done} stops of {runs} runs: {same} ended with the undisturbed run's model.pth, bit for bit; {tracebacks} tracebacks"


def killed_while_writing(kills, rng, root):
    """Kill a process that does nothing but write a checkpoint, the old and the new one in turn."""
    model, optimizer, scheduler = train.build(8, torch.zeros(1, 784, dtype=torch.uint8))
    parts = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict(), "settings": {}}
    versions = [bytes(checkpoint.to_bytes(parts | {"losses": [loss]})) for loss in (0.1, 0.2)]

    def write_forever():
        while True:
            for version in versions:
                checkpoint.write("model.ckpt", version)

    counts, parts_left = {"absent": 0, "old or new, whole": 0, "damaged": 0}, 0
    for _ in range(kills):
        folder = Path(tempfile.mkdtemp(dir=root))
        pid = fork(write_forever, folder)
        time.sleep(rng.uniform(0, 0.1))
        os.kill(pid, signal.SIGKILL)
        assert ended(pid) == -signal.SIGKILL
        target = folder / "model.ckpt"
        state = "absent" if not target.exists() else "old or new, whole" if target.read_bytes() in versions else "damaged"
        counts[state] += 1
        parts_left += any(folder.glob(".*.part"))
        shutil.rmtree(folder)
    return f"{kills} kills: target " + ", ".join(f"{k} {v}" for k, v in counts.items()) + f"; {parts_left} hit an unfinished write"


class Hostile:
    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "w")


def swapped(content, rng):
    """Return a zip archive with the contents of two members exchanged and their checksums right."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    a, b = rng.sample(sorted(members), 2)
    members[a], members[b] = members[b], members[a]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return buffer.getvalue()


def mutated(content, rng):
    """Return `content` with a few bits flipped, or cut."""
    if rng.random() < 0.3:
        return content[: rng.randrange(len(content))]
    content = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        edge = rng.choice([len(content), min(len(content), 4000)])  # the head and the tail of an archive say what is in it
        content[rng.choice([rng.randrange(edge), -1 - rng.randrange(edge)])] ^= 1 << rng.randrange(8)
    return bytes(content)


def equal(a, b):
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.equal(b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    return a == b


def judge(load, good, error):
    """Return what came of a load that may take 10 s: as it was, something else, refused in one line or an accident."""
    signal.alarm(10)
    try:
        return "as it was" if equal(load(), good) else "otherwise"
    except error as refusal:
        return "refused" if "\n" not in str(refusal) else "refused in several lines"
    except BaseException as accident:
        return f"accident: {accident!r}"
    finally:
        signal.alarm(0)


def tally(results):
    return ", ".join(f"{what} {results.count(what)}" for what in sorted(set(results)))


def damaged_weights(count, rng, root):
    folder, marker = root / "straight", root / "marker"
    results, swaps = [], []
    for i in range(count):
        name, load = (("model.pth", lambda p: checkpoint.load_weights(p).state_dict()), ("model.ckpt", checkpoint.load_state))[i % 2]
        whole = (folder / name).read_bytes()
        path = root / f"mutant-{name}"
        if i % 20 == 19:
            torch.save({"fc1.weight": Hostile(marker)}, path)
        elif i % 20 == 18:
            path.write_bytes(swapped(whole, rng))
        else:
            path.write_bytes(mutated(whole, rng))
        verdict = judge(lambda: load(path), load(folder / name), checkpoint.CheckpointError)  # noqa: B023
        (swaps if i % 20 == 18 else results).append(verdict)
    return f"{count} files: {tally(results)}; members exchanged, with right checksums: {tally(swaps)}; " \
           f"marker file {'made' if marker.exists() else 'never made'}"


def damaged_images(count, rng, root):
    from torchvision.datasets import MNIST

    def idx(tensor):
        head = bytes([0, 0, 8, tensor.dim()]) + b"".join(n.to_bytes(4, "big") for n in tensor.shape)
        return head + tensor.numpy().tobytes()

    noise = torch.randint(256, (60, 28, 28), dtype=torch.uint8)
    plain = {name[:-3]: idx(noise if "images" in name else noise[:, 0, 0] % 10) for name, _ in MNIST.resources}
    archives = {f"{name}.gz": gzip.compress(content) for name, content in plain.items()}
    MNIST.resources = [(name, hashlib.md5(content).hexdigest()) for name, content in archives.items()]
    MNIST.mirrors = ["http://127.0.0.1:9/"]
    raw = root / "data/MNIST/raw"
    raw.mkdir(parents=True)
    results = []

    def load():
        images = data.load("mnist", root / "data", "train")[1]
        return {"images": images.images, "labels": images.labels}

    for name, content in archives.items():
        (raw / name).write_bytes(content)
    good = load()
    for i in range(count):
        name = rng.choice(sorted(archives))
        if i % 2:  # an archive
            (raw / name).write_bytes(mutated(archives[name], rng))
        else:  # an unpacked file beside its archive
            (raw / name[:-3]).write_bytes(mutated(plain[name[:-3]], rng))
        results.append(judge(load, good, data.DataError))
        (raw / name).write_bytes(archives[name])
        (raw / name[:-3]).unlink(missing_ok=True)
    return f"{count} files: {tally(results)}"


def disks(root):
    """Train on a disk too small for a checkpoint, and on one that turns read-only after the first epochs."""
    disk = root / "disk"
    disk.mkdir()
    texts = []
    for name, size in (("a full disk", "5m"), ("a disk turned read-only", "50m")):
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        try:
            old = b"old weights"
            (disk / "model.pth").write_bytes(old)
            out = root / "out.txt"
            out.write_text("")
            pid = fork(training("-s", str(disk / "model.pth")), root)
            if size == "50m":
                while out.read_text().count("epoch") < 3:
                    time.sleep(0.01)
                while subprocess.run(["mount", "-o", "remount,ro", disk], stderr=subprocess.DEVNULL).returncode:
                    time.sleep(0.001)  # busy: a file is being written
            status, lines = ended(pid), out.read_text().splitlines()
            epochs = sum(line.startswith("epoch") for line in lines)
            kept = (disk / "model.pth").read_bytes()
            whole = kept == old or len(kept) > 2_000_000 and bool(checkpoint.load_weights(disk / "model.pth"))
            texts.append(f"{name}: {epochs} of 12 epochs, exit {status}, {'old or new weights whole' if whole else 'DAMAGED'}, said: "
                         + " / ".join(line for line in lines if line.startswith(("warning", "train.py"))))
            assert not list(disk.glob(".*.part"))
        finally:
            subprocess.run(["umount", disk], check=True)
    return "\n    ".join(texts)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    share, rng = (10 if args.quick else 1), random.Random(args.seed)
    data.SIZES, train.EVERY = {"train": 3000, "test": 600}, 0
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
            print(f"{number.name}:", stopped_and_resumed(number, 50 // share, rng, root), flush=True)
        if os.geteuid() == 0:
            print("disks:", disks(root), flush=True)
        # From here on this process does work of its own, after which it must not fork any more runs.
        torch.set_num_threads(1)
        print("SIGKILL while writing:", killed_while_writing(320 // share, rng, root), flush=True)
        print("weights and checkpoints:", damaged_weights(2000 // share, rng, root), flush=True)
        print("archives and IDX files:", damaged_images(500 // share, rng, root), flush=True)


if __name__ == "__main__":
    main()
