"""Stop runs, fill disks and damage files by the hundred, and print what came of it, a line for each.

    python benchmarks/faults.py            # a quarter of an hour on two cores
    python benchmarks/faults.py --quick    # a tenth of each: two minutes

Runs are forks of this process on small glyphs in MNIST's archives, one thread each, with a checkpoint after
every epoch; disks are tmpfs mounts, for which it needs root on Linux. What must not happen is printed as a
FAULT and makes the exit status 1.
"""

import argparse
import os
import random
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from unittest.mock import patch

import torch
import torch._dynamo  # noqa: F401 (or Adam would, 1 s in every fork)
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from damage import Hostile, damaged, gzipped_idx, with_two_members_exchanged

import train
from labkit import LabError, archives, checkpoint, figures, files, glyphs, run_files

ROOT = Path(__file__).parents[1]
FILES = ("-s", "model.pth", "-p", "loss.png")
DATA = ("--data-dir", "../data", "--device", "cpu")
RECIPE = (*FILES, *DATA, "--dataset", "mnist", "-b", "128", "-e", "12", "--noise", "0.1")
NUMBERS = {"NaN": float("nan"), "huge": 1e30, "negative": -1.0}
MARKER = Path("marker")  # that hostile files would make
GONE = object()  # in the place of an entry that is left out
PLAUSIBLE = re.compile(  # what a run rightly goes on with: a number that nothing else in the file contradicts
    r"model \S+: (huge|negative)|optimizer \d (exp_avg: (huge|negative)|exp_avg_sq: huge)|"
    r"history \d seconds: huge|settings seed: a number|settings epochs: a number")


def fork(function, folder, **environment):
    """Start `function` in a fork of this process, in `folder`, with its output there; return its id."""
    if pid := os.fork():
        return pid
    status = 99
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # as the commands begin
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(60)  # ends a run that hangs
        os.chdir(folder)
        os.environ.update(environment)
        sys.stdout, sys.stderr = open("out.txt", "a", buffering=1), open("err.txt", "a", buffering=1)
        function()
        status = 0
    except SystemExit as end:
        status = end.code
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def start_training(folder, *options, world_size=1):
    """Start a run of `world_size` processes in `folder` as torchrun does; return their ids.

    Each rank notes in epochs-RANK.txt after how many epochs its last snapshot is.
    """
    snapshot = run_files.RunFiles.snapshot

    def noting_snapshot(self, model, optimizer, history, settings):
        Path(f"epochs-{self.rank}.txt").write_text(str(len(history)))
        snapshot(self, model, optimizer, history, settings)

    def run():
        with patch.object(run_files.RunFiles, "snapshot", noting_snapshot):
            train.main(list(options))

    for name in ("out.txt", "err.txt"):
        (folder / name).write_text("")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
    size = str(world_size)
    return [fork(run, folder, RANK=rank, LOCAL_RANK=rank, WORLD_SIZE=size, LOCAL_WORLD_SIZE=size,
                 MASTER_ADDR="127.0.0.1", MASTER_PORT=port) for rank in map(str, range(world_size))]


def wait(pids):
    """Wait for the processes of a run as torchrun does, which ends the others when one fails.

    Return their exit statuses, negative for a signal.
    """
    first, status = os.wait()
    others = [pid for pid in pids if pid != first]
    if status:
        time.sleep(0.1)
        for pid in others:
            os.kill(pid, signal.SIGTERM)
    statuses = [status, *(os.waitpid(pid, 0)[1] for pid in others)]
    return [os.waitstatus_to_exitcode(status) for status in statuses]


def trained(root, *options, world_size=1):
    """Return the new folder of a run that nothing disturbs, and how many seconds it took."""
    folder, start = Path(tempfile.mkdtemp(dir=root)), time.monotonic()
    statuses = wait(start_training(folder, *RECIPE, *options, world_size=world_size))
    assert not any(statuses), (folder / "err.txt").read_text()
    return folder, time.monotonic() - start


def stopped_and_resumed(number, stops, world_size, rng, root):
    """Stop runs at random moments and resume each to its end, until there were so many stops."""
    undisturbed, length = trained(root, world_size=world_size)
    done = 0
    while done < stops:
        folder, statuses = Path(tempfile.mkdtemp(dir=root)), [number]
        while any(statuses):
            pids = start_training(folder, *RECIPE, "--resume", world_size=world_size)
            time.sleep(rng.uniform(0.02, length))
            for pid in pids if rng.random() < 0.5 else [rng.choice(pids)]:
                os.kill(pid, number)
            statuses = wait(pids)
            done += any(statuses)
            yield stop_outcome(folder, statuses, number)
        same = (folder / "model.pth").read_bytes() == (undisturbed / "model.pth").read_bytes()
        yield "resumed to the undisturbed run's model.pth" if same else "FAULT: resumed to another model.pth"


def stop_outcome(folder, statuses, number):
    """Return what came of a run to which the signal `number` was sent."""
    allowed = {0, -number, 128 + number}
    if len(statuses) > 1:  # ended by torchrun, or by the loss of another
        allowed |= {-signal.SIGTERM, 128 + signal.SIGTERM, 1}
    output = (folder / "out.txt").read_text() + (folder / "err.txt").read_text()
    epochs = {path.read_text() for path in folder.glob("epochs-*.txt")}
    line, times = Counter(output.splitlines()).most_common(1)[0] if output else ("", 0)
    if not allowed.issuperset(statuses) or "Traceback" in output:
        return f"FAULT: exit {statuses}, {output[-300:]!r}"
    if times > 1 or len(epochs) > 1:
        return f"FAULT: {line!r} {times} times, ranks ended after {epochs} epochs"
    if 1 in statuses and "\nepoch " in output:  # in training they agree when to stop
        return f"FAULT: one process lost the other in training, {output[-300:]!r}"
    if any(statuses):
        return "stopped, one process lost the other" if 1 in statuses else "stopped"
    return "came too late"


def stopped_starts(number, stops, rng, root):
    """Stop both commands at random moments, from the imports to the end: no unfinished file stays."""
    whole, _ = trained(root, "-e", "0")
    commands = {"train.py": [*RECIPE, "-e", "0"],
                "lab1.py": ["-l", whole / "model.pth", *DATA, "--dataset", "mnist", "--out", "."]}

    def run(script, delay=None):
        folder, start = Path(tempfile.mkdtemp(dir=root)), time.monotonic()
        (folder / "tmp").mkdir()
        process = subprocess.Popen([sys.executable, ROOT / script, *commands[script]], cwd=folder, text=True,
                                   env=os.environ | {"TMPDIR": str(folder / "tmp")},
                                   stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        if delay:
            time.sleep(delay)
            process.send_signal(number)
        errors = process.communicate(timeout=60)[1]
        found = {str(path.relative_to(folder)): path.is_file() and path.read_bytes()
                 for path in folder.rglob("*")}
        return process.returncode, errors, found, time.monotonic() - start

    undisturbed = {script: run(script) for script in commands}
    for _ in range(stops):
        script = rng.choice(list(commands))
        _, _, whole_files, length = undisturbed[script]
        status, errors, found, _ = run(script, rng.uniform(0.2, length))
        if status not in (0, -number, 128 + number) or "Traceback" in errors:
            yield f"FAULT: {script}, exit {status}, {errors!r}"
        elif not found.items() <= whole_files.items():
            yield f"FAULT: {script} left {', '.join(found)}"
        else:
            yield f"{script} {'stopped' if status else 'came to its end'}, nothing unfinished left"


def killed_while_writing(kills, rng, root):
    """Kill a process that does nothing but write a checkpoint, two versions in turn."""
    versions = [bytes(checkpoint.to_bytes(torch.full((1_900_000,), value))) for value in (0.1, 0.2)]

    def write_forever():
        while True:
            for version in versions:
                files.write("model.ckpt", version)

    for _ in range(kills):
        with tempfile.TemporaryDirectory(dir=root) as name:
            folder, target = Path(name), Path(name, "model.ckpt")
            pid = fork(write_forever, folder)
            time.sleep(rng.uniform(0.01, 0.1))
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            if any(folder.glob(".*.part")):
                yield "hit an unfinished write"
            if target.exists():
                yield "target whole" if target.read_bytes() in versions else "FAULT: target damaged"
            else:
                yield "target absent"


def disks(root):
    """Train on a disk too small for the weights, and on one that turns read-only after the first epochs."""
    disk = root / "disk"
    disk.mkdir()
    for what, size in (("full", "2m"), ("turned read-only", "50m")):
        folder, weights = Path(tempfile.mkdtemp(dir=root)), disk / "model.pth"
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", disk], check=True)
        try:
            weights.write_text("old")
            pids = start_training(folder, *RECIPE, "-s", str(weights))
            if what != "full":
                while (folder / "out.txt").read_text().count("epoch ") < 3:
                    time.sleep(0.01)
                while subprocess.run(["mount", "-o", "remount,ro", disk], capture_output=True).returncode:
                    time.sleep(0.001)  # busy: a file is being written
            status, = wait(pids)
            epochs = (folder / "out.txt").read_text().count("epoch ")
            errors = (folder / "err.txt").read_text()
            kept = weights.read_bytes() == b"old" and not any(disk.glob(".*.part"))
        finally:
            subprocess.run(["umount", disk], check=True)
        if (status, epochs, errors.count("\n"), kept) == (1, 12, 2, True):
            yield f"{what}: all epochs done, a warning, then one line and exit status 1, the old file kept"
        else:
            yield f"FAULT: {what}, exit {status}, {epochs} epochs, {errors!r}, kept: {kept}"


def load_outcome(load, good):
    """Return what came of a load that may take 10 s and gives, undamaged, `good`, bytes of torch.save's."""
    signal.alarm(10)
    try:
        return "loaded as it was" if checkpoint.to_bytes(load()) == good else "loaded otherwise"
    except LabError as error:
        return "refused in one line" if "\n" not in str(error) else f"FAULT: {error}"
    except BaseException as error:
        return f"FAULT: {error!r}"
    finally:
        signal.alarm(0)


def damaged_files(loaders, damage, count, rng):
    """Load files by `loaders`, path -> function, one of them changed by `damage`."""
    good = {path: (path.read_bytes(), checkpoint.to_bytes(load())) for path, load in loaders.items()}
    for _ in range(count):
        path = rng.choice(list(loaders))
        content, state = good[path]
        path.write_bytes(damage(content, rng))
        outcome = load_outcome(loaders[path], state)
        if outcome == "loaded otherwise" and damage is not with_two_members_exchanged:
            outcome = "FAULT: loaded otherwise"
        yield "FAULT: code ran" if MARKER.exists() else outcome
        path.write_bytes(content)


def hostile(content, rng):
    """Return a file of torch.save's that runs code where it is trusted."""
    return checkpoint.to_bytes({"fc1.weight": Hostile(MARKER)})


def entries(value):
    """Return the entries of a dict, list or tuple as a dict; other values have none."""
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value))
    return value if isinstance(value, dict) else {}


def nodes(value, path=()):
    """Yield `value` and every entry of its nested dicts, lists and tuples, each with the path to it."""
    yield path, value
    for key, entry in entries(value).items():
        yield from nodes(entry, (*path, key))


def replaced(value, path, new):
    """Return a copy of `value` with `new` for the entry at `path`, or without it where that is GONE."""
    if not path:
        return new
    changed = entries(value) | {path[0]: replaced(entries(value)[path[0]], path[1:], new)}
    changed = {key: entry for key, entry in changed.items() if entry is not GONE}
    return changed if isinstance(value, dict) else type(value)(changed.values())


def replacements(value):
    """Yield what may stand in a checkpoint in the place of `value`, with a word for it."""
    others = {"gone": GONE, "None": None, "a number": 7, "text": "text", "empty": [],
              "a tensor": torch.ones(3)}
    if isinstance(value, torch.Tensor):
        others |= {"of another shape": value.new_ones(3, 3), "of another dtype": value.double()}
        others |= {word: torch.full_like(value, number) for word, number in NUMBERS.items()}
    elif isinstance(value, dict):
        others |= {"with one more": value | {"more": 0}, "a list": list(value.values())}
    elif isinstance(value, (list, tuple)):
        others |= {"twice as long": value + value, "a dict": entries(value)}
    elif isinstance(value, (bool, int)):
        others |= {"of another type": float(value), "huge": 10**30, "negative": -1, "the opposite": not value}
    elif isinstance(value, float):
        others |= NUMBERS | {"of another type": int(value)}
    return {word: other for word, other in others.items() if repr(other) != repr(value)}.items()


def replaced_entries(divisor, rng, root):
    """Go on from checkpoints of which one entry is replaced, of all ways to do so one in `divisor`."""
    whole, _ = trained(root, "-e", "2")
    state, model = checkpoint.read(whole / "model.ckpt"), checkpoint.load_weights(whole / "model.pth")
    tries = [(path, word, new) for path, entry in nodes(state) for word, new in replacements(entry)]
    for path, word, new in rng.sample(tries, len(tries) // divisor):
        what = f"{' '.join(map(str, path))}: {word}"
        folder = Path(tempfile.mkdtemp(dir=root))
        torch.save(replaced(state, path, new), folder / "model.ckpt")
        try:
            checkpoint.dataset_trained_on(folder / "model.pth", model)  # as lab1.py does
        except Exception as error:
            yield f"FAULT: {what}, dataset_trained_on() raises {error!r}"
        status, = wait(start_training(folder, *FILES, *DATA, "--resume", "-e", "3"))
        errors = re.findall(r"^(?!warning: ).+", (folder / "err.txt").read_text(), re.M)
        epochs = re.findall(r"^epoch +(\d+)/", (folder / "out.txt").read_text(), re.M)
        if status in (1, 2) and len(errors) == 1 and errors[0].startswith("train.py: "):
            yield "refused in one line"
        elif (status, errors, epochs) == (0, [], ["3"]) and PLAUSIBLE.fullmatch(what):
            yield "went on with a plausible number"
        else:
            yield f"FAULT: {what}, exit {status}, epochs {epochs}, {errors[-1:]}"


def make_archives(raw):
    """Write small glyphs to the folder `raw` as MNIST's archives."""
    raw.mkdir(parents=True)
    glyphs.SIZES = {"train": 1500, "test": 400}
    for split, names in archives.ARCHIVES.items():
        for name, tensor in zip(names, glyphs.load(split)):
            (raw / name).write_bytes(gzipped_idx(tensor.byte()))


def checks(divisor, rng, root):
    """Yield the name of each check and its outcomes, all counts divided by `divisor`."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        yield f"{number.name}, one process", stopped_and_resumed(number, 50 // divisor, 1, rng, root)
    for number in (signal.SIGINT, signal.SIGTERM):
        yield f"{number.name}, two processes", stopped_and_resumed(number, 40 // divisor, 2, rng, root)
        yield f"{number.name}, train.py -e 0 and lab1.py", stopped_starts(number, 40 // divisor, rng, root)
    yield "SIGKILL while writing", killed_while_writing(320 // divisor, rng, root)
    yield "disks", disks(root) if os.geteuid() == 0 else ["not root: left out"]

    folder, _ = trained(root, "-e", "2")
    weights, state = folder / "model.pth", folder / "model.ckpt"
    loaders = {weights: lambda: checkpoint.load_weights(weights).state_dict(),
               state: lambda: checkpoint.load_checkpoint(state, train.DEFAULTS)}
    for damage, count in ((damaged, 1800), (with_two_members_exchanged, 100), (hostile, 100)):
        title = f"weights and checkpoints, {damage.__name__.replace('_', ' ')}"
        yield title, damaged_files(loaders, damage, count // divisor, rng)

    def load_archives():
        return archives.load("mnist", root / "data", list(archives.ARCHIVES))

    with patch.object(archives, "download", side_effect=OSError("no network")):
        loaders = dict.fromkeys(root.glob("data/MNIST/raw/*"), load_archives)
        yield "archives, damaged", damaged_files(loaders, damaged, 500 // divisor, rng)
    yield "checkpoints, an entry replaced", replaced_entries(divisor, rng, root)


def main():
    raw = argparse.RawDescriptionHelpFormatter  # keeps the line breaks
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default="", metavar="WORDS", help="checks with these words in their name")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process with more cannot be forked
    signal.signal(signal.SIGALRM, signal.default_int_handler)
    run_files.CHECKPOINT_SECONDS = 0
    figures.to_bytes(Figure())  # reads the fonts, for every fork
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        make_archives(Path(folder, "data/MNIST/raw"))
        for name, outcomes in checks(10 if args.quick else 1, random.Random(args.seed), Path(folder)):
            if args.only in name:
                found = Counter(outcomes)
                print(f"{name}: {', '.join(f'{count} {what}' for what, count in found.items())}", flush=True)
                failed |= any(what.startswith("FAULT") for what in found)
        os.chdir("/")
    sys.exit(failed)


if __name__ == "__main__":
    main()
