import csv
import os
from pathlib import Path

import pytest
import torch
from conftest import Report

import lab1
from labkit import UsageError, checkpoint, comparison, data
from model import load

GLYPHS = ("--dataset", "glyphs", "--out", "out")


def save(path, units=8, seed=0):
    torch.manual_seed(seed)
    model = Report(N_bottleneck=units)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)


def test_a_file_that_cannot_be_used_is_named_and_the_others_are_compared(folder, capsys):
    save("nets/a.pth", units=3)
    save("nets/b.pth", units=8)
    save("nets/wide.pth", units=1000)
    Path("nets/text.pth").write_text("no weights")
    with pytest.raises(SystemExit) as end:
        lab1.main(["-l", "nets", *GLYPHS])
    assert end.value.code == 1
    assert sorted(os.listdir("out")) == ["comparison.csv", "comparison.png", "sizes.png"]
    *rows, failed = csv.DictReader(open("out/comparison.csv"))
    images = data.to_float(data.load("glyphs", None, "test")[1].images)
    for row in rows:  # some units are 0 on some images
        codes = load(f"nets/{row['network']}")[0].encode(images)
        assert int(row["live_units"]) == (codes > 0).any(0).sum() > (codes > 0).all(0).sum()
    assert failed["network"] == "text.pth" and "not written by torch.save, or is damaged" in failed["error"]
    assert "\ntext.pth: nets/text.pth was not written" in capsys.readouterr().out


@pytest.mark.parametrize("paths, names", [
    (["s/ann/MLP.8.pth", "s/bob/MLP.8.pth"], ["ann", "bob"]),
    (["s/ann/a.pth", "s/bob/b.pth"], ["ann/a.pth", "bob/b.pth"]),
    (["a.pth", "b.pth"], ["a.pth", "b.pth"]),
    (["s/x/1/m.pth", "s/y/1/m.pth"], ["x", "y"]),
])
def test_networks_are_called_by_the_part_of_their_paths_that_differs(paths, names):
    assert comparison.short_names([Path(path) for path in paths]) == names


def test_files_folders_and_wildcards_are_found(folder):
    for path in ("nets/a.pth", "nets/deep/b.pth", "c.pth"):
        save(path)
    (folder / "empty").mkdir()
    a, b, c = Path("nets/a.pth"), Path("nets/deep/b.pth"), Path("c.pth")
    assert comparison.find([Path("nets")]) == [a, b]
    assert comparison.find([Path("nets/*.pth"), c]) == [a, c]
    assert comparison.find([Path("missing.pth")]) == [Path("missing.pth")]
    with pytest.raises(UsageError, match="-l empty: there is no .pth file"):
        comparison.find([Path("empty")])


def test_a_network_of_a_data_set_that_nobody_knows_is_named(folder, capsys):
    weights = Report().state_dict()
    for dataset in ("emnist", "glyphs"):
        record = {"dataset": dataset, "epochs": 1, "settings": {}}
        torch.save(checkpoint.with_record(weights, record), f"{dataset}.pth")
    with pytest.raises(SystemExit) as end:
        lab1.main(["-l", "emnist.pth", "glyphs.pth", "--out", "out"])
    out = capsys.readouterr().out
    assert end.value.code == 1 and "\nglyphs.pth  " in out
    assert "\nemnist.pth: data set emnist is unknown: give --dataset one of mnist, " in out


def test_networks_of_one_size_have_no_size_curve_and_keep_none_of_others(folder):
    (folder / "out").mkdir()
    (folder / "out/sizes.png").write_text("of other networks")
    for seed in range(2):
        save(f"nets/{seed}.pth", seed=seed)
    with pytest.raises(SystemExit) as end:
        lab1.main(["-l", "nets/0.pth", "nets/1.pth", *GLYPHS])
    assert end.value.code == 0 and sorted(os.listdir("out")) == ["comparison.csv", "comparison.png"]
