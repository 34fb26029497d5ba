"""What lab1.py leaves behind: figures and their numbers in a folder, windows on the screen, a page."""

import hashlib
import json
import os
import platform
import sys
import webbrowser
from pathlib import Path

import torch
from matplotlib.figure import Figure

from labkit import LabError, data, figures, files, page


def default_folder(args, record):
    """Return the folder for the results of the options `args`: outputs/<folder>-<name of the weights>.

    In it there is one for a data set other than that of the training, and one for chosen images.
    """
    weights, trained_on = args.load[0], data.trained_on(record)
    words = [word for word in (weights.parent.name, weights.stem) if word not in ("", "..")]
    other = trained_on and args.dataset not in (None, trained_on)
    return Path("outputs", "-".join(words), args.dataset if other else "", "chosen" if args.index else "")


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
        tested = f"tested on {lab.dataset} with seed {args.seed}"
        figures.sign(drawn[name], f"{figures.small_print(record)}; {tested}")
        files.write(path, figures.to_bytes(drawn[name], path.suffix))
    for path in metrics_path:
        files.write(path, json.dumps(numbers, indent=2).encode() + b"\n")
    print(f"wrote {', '.join(path.name for path in (*paths.values(), *metrics_path))} to {out}")
    if not args.no_show:
        show(drawn)


def explore(lab, args, record, out):
    """Write a page to play with the network to the folder `out`, and open it in the browser."""
    path, units = out / "explore.html", lab.model.fc2.out_features
    if units > page.MAX_UNITS:
        raise LabError(f"{lab.weights} has {units} units: the page has room for {page.MAX_UNITS}")
    files.announce(path)
    tensors = lab.model.cpu(), lab.images.cpu(), lab.labels.cpu()  # some devices have no float64
    text = page.explore_page(*tensors, lab.dataset, lab.weights, record)
    files.write(path, text.encode())
    print(f"wrote {path}: open it in any browser, it needs no network")
    if has_display() and not args.no_show:
        webbrowser.open(path.resolve().as_uri())


def has_display():
    """Return whether a window can open; only Linux can be without a display."""
    return sys.platform != "linux" or bool({"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys())


def show(named_figures):
    """Show Figures, a dict by name, in windows until they are closed, where windows can open.

    A backend that fails is a warning: the files were drawn without any.
    """
    if not has_display():
        return
    try:
        import matplotlib.pyplot as plt

        for name, figure in named_figures.items():
            plt.figure(FigureClass=lambda *_, figure=figure, **__: figure)
            figure.canvas.manager.set_window_title(name)
        if figure.canvas.required_interactive_framework:
            print("close the windows to end the command")
            plt.show()
    except Exception as error:  # a backend is any module
        print(f"warning: no windows: {error}", file=sys.stderr)
