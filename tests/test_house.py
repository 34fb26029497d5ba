import ast

import pytest
from conftest import ROOT

MODULES = {path.stem: path for path in (ROOT / "labkit").glob("*.py")}
APART = {"metrics", "figures", "data", "archives", "glyphs", "cli", "job"}


def imported(path):
    """Return the project's modules that a file imports anywhere, "data" for labkit.data."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name.removeprefix("labkit.") for name in names} & {*MODULES, "train", "lab1", "model"}


def test_the_rooms_are_where_the_house_says():
    assert {*MODULES} >= APART | {"checkpoint"}
    assert imported(ROOT / "train.py") >= {"data", "checkpoint", "model"}  # imported() sees what there is


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_module_imports_a_command(module):
    assert not imported(MODULES[module]) & {"train", "lab1"}


@pytest.mark.parametrize("module", sorted(APART))
def test_the_lowest_modules_import_none_of_each_other(module):
    allowed = {"archives", "glyphs"} if module == "data" else set()
    assert imported(MODULES[module]) & APART == allowed


def test_the_model_stands_alone():
    assert imported(ROOT / "model.py") == set()
