"""What lab1.py leaves behind: figures and their numbers in a folder, windows on the screen, a page."""

import hashlib
import json
import platform
import webbrowser
from pathlib import Path

import torch
from matplotlib.figure import Figure

from labkit import data, figures, files, metrics, page


def default_folder(weights, chosen):
    """Return the folder for results of `weights`: outputs/<folder>-<name>, in it one for `chosen` images."""
    words = [word for word in (weights.parent.name, weights.stem) if word not in ("", "..")]
    return Path("outputs", "-".join(words), "chosen" if chosen else "")


def run_experiments(experiments, lab, args, record, out):
    """Run `experiments`, functions of `lab` and of an empty Figure that return their numbers.

    Write a figure of each to the folder `out`, and, unless `args` chose one of them, metrics.json; show them.
    """
    paths = {experiment.__name__: out / f"{experiment.__name__}.{args.format}" for experiment in experiments}
    metrics_path = [] if args.step else [out / "metrics.json"]
    files.announce(*paths.values(), *metrics_path)

    numbers = {"weights": str(args.load[0]), "sha256": hashlib.sha256(args.load[0].read_bytes()).hexdigest(),
               "trained": record, "dataset": lab.dataset, "test_images": len(lab.images),
               "test_images_crc32": data.checksum((255 * lab.images).round().byte()), "seed": args.seed,
               "device": str(lab.images.device), "torch": torch.__version__,
               "python": platform.python_version()}
    drawn = {name: Figure() for name in paths}
    for experiment, (name, path) in zip(experiments, paths.items()):
        numbers[name] = experiment(lab, drawn[name])
        tested = f"tested on {lab.dataset}, noise seed {args.seed}"
        figures.sign(drawn[name], f"{figures.small_print(record)}; {tested}")
        files.write(path, figures.to_bytes(drawn[name], path.suffix))
    for path in metrics_path:
        files.write(path, json.dumps(numbers, indent=2).encode() + b"\n")
    print(f"wrote {', '.join(path.name for path in (*paths.values(), *metrics_path))} to {out}")
    if not args.no_show:
        figures.show(drawn)


def explore(lab, args, record, out):
    """Write a page to play with the network to the folder `out`, and open it in the browser."""
    path = out / "explore.html"
    page.require_room(lab.model)
    files.announce(path)
    model, images = lab.model.cpu(), lab.images.cpu()  # some devices have no float64
    importance = metrics.importance(model, model.encode(images), images)
    text = page.explore_page(model, images, lab.labels.cpu(), importance, lab.dataset, lab.weights, record)
    files.write(path, text.encode())
    print(f"wrote {path}: open it in any browser, it needs no network")
    if figures.has_display() and not args.no_show:
        webbrowser.open(path.resolve().as_uri())
