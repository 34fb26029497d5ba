import csv
import os
from pathlib import Path

import pytest
import torch
from conftest import Report

import lab1
from labkit import UsageError, comparison, data, metrics

GLYPHS = ("--dataset", "glyphs", "--out", "out")


def save(path, units=8, seed=0):
    torch.manual_seed(seed)
    model = Report(N_bottleneck=units)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    torch.save(model.state_dict(), path)
    return model


@torch.inference_mode()
def test_networks_are_measured_sorted_and_written_and_bad_files_named(folder, capsys):
    models = {name: save(f"nets/{name}", units) for name, units in (("a.pth", 3), ("b.pth", 8), ("c.pth", 8))}
    Path("nets/text.pth").write_text("no weights")
    with pytest.raises(SystemExit) as end:
        lab1.main(["-l", "nets", *GLYPHS, "--noise", "0.3", "--seed", "4"])
    assert end.value.code == 1
    assert sorted(os.listdir("out")) == ["comparison.csv", "comparison.png", "sizes.png"]

    images, labels = data.load("glyphs", None, "test")[1]
    images = images / 255
    noisy = images + 0.3 * metrics.normal_like(images, 4)
    *rows, failed = csv.DictReader(open("out/comparison.csv"))
    assert [float(row["mse"]) for row in rows] == sorted(float(row["mse"]) for row in rows)
    assert failed["network"] == "text.pth" and "damaged, or not written by torch.save" in failed["error"]
    for row in rows:
        model = models[row["network"]]
        mse = (model(images) - images).square().mean().item()
        assert float(row["mse"]) == pytest.approx(mse, rel=1e-5)
        denoised = (model(noisy) - images).square().mean().item()
        assert float(row["denoised_mse"]) == pytest.approx(denoised, rel=1e-5)
        pca = metrics.pca_mse(metrics.pca(images)[2], int(row["units"]))
        assert float(row["times_pca"]) == pytest.approx(mse / pca, rel=1e-4)
        codes = torch.relu(model.fc2(torch.relu(model.fc1(images))))
        assert float(row["neighbour_accuracy"]) == metrics.neighbour_accuracy(codes, labels)
        assert int(row["live_units"]) == (codes > 0).any(0).sum()

    out = capsys.readouterr().out.splitlines()
    table = out[[line.startswith("network ") for line in out].index(True) + 1 :]
    assert [line.split()[0] for line in table[:3]] == [row["network"] for row in rows]
    assert table[3].startswith("text.pth: nets/text.pth is damaged")


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


def test_networks_of_one_size_have_no_size_curve_and_keep_none_of_others(folder):
    (folder / "out").mkdir()
    (folder / "out/sizes.png").write_text("of other networks")
    for seed in range(2):
        save(f"nets/{seed}.pth", seed=seed)
    with pytest.raises(SystemExit) as end:
        lab1.main(["-l", "nets/0.pth", "nets/1.pth", *GLYPHS])
    assert end.value.code == 0 and sorted(os.listdir("out")) == ["comparison.csv", "comparison.png"]
