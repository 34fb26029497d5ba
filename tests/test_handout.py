"""The course's hand-out, docs/lab.md: its commands run as they stand, and what its text names is there."""

import json
import re
import shlex

import pytest
import torch
from conftest import ROOT, draw_seven, put_archives

from model import autoencoderMLP4Layer

HANDOUT = (ROOT / "docs" / "lab.md").read_text(encoding="utf-8")
FILE = re.compile(r"[\w/-]+\.(csv|gz|html|json|png|pth)")
QUICK = {"train.py": ("--dataset", "glyphs", "-e", "1"), "lab1.py": ()}  # of equal options the last counts


@pytest.fixture
def course(folder):
    """The current folder with what the hand-out asks its readers to bring."""
    draw_seven(folder / "my7.png")
    put_archives(folder / "course" / "MNIST" / "raw")
    for student in "ada", "emmy":
        weights = folder / "submissions" / student / "model.pth"
        weights.parent.mkdir(parents=True)
        torch.save(autoencoderMLP4Layer().state_dict(), weights)
    return folder


def test_commands_run_and_what_the_text_names_is_there_by_then(course, start):
    printed = ""
    for paragraph in HANDOUT.split("\n\n"):
        if paragraph.startswith("    "):
            printed += "".join(run(line.strip(), start) for line in paragraph.splitlines())
            continue
        for name in re.findall("`([^`]+)`", paragraph):
            quoted = name in printed and not FILE.fullmatch(name)  # a word of a command or of its output
            assert quoted or (course / name).exists(), f"{name} is not there yet: {paragraph}"


def test_the_fields_of_metrics_json_are_explained():
    numbers = json.loads((ROOT / "outputs/reference/metrics.json").read_text())
    explained = {names: set(re.findall(r"[a-z_]\w+", text))
                 for names, text in re.findall(r"^\| ([a-z].*) \| (.*) \|$", HANDOUT, re.MULTILINE)}
    top = {name: text for names, text in explained.items() for name in names.split(", ")}
    for name, value in numbers.items():
        fields = {*value, *value.get("settings", ())} if isinstance(value, dict) else set()
        assert fields <= top[name], name


def run(line, start):
    """Run a command of the hand-out, train.py for an epoch on glyphs; return the line and what it prints."""
    if not line.startswith("python "):
        assert f"    {line}\n" in (ROOT / "README.md").read_text(encoding="utf-8"), f"nothing runs {line}"
        return line
    _, script, *options = shlex.split(line)
    status, out, err = start(script, *options, *QUICK[script]).end()
    assert status == 0, f"{line}: {err}"
    return line + out


def test_links_lead_to_files():
    links = re.findall(r"\]\(([^)#]+)", HANDOUT)
    assert links
    for link in links:
        assert (ROOT / "docs" / link).exists(), link
