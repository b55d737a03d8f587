"""The command `compare`: its output, its files, and rejected runs."""

import csv
import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from afclip_lightning.cli import compare
from afclip_runtime.files import only_writer
from tests.support.recorded_runs import write_recorded

MANY = dict.fromkeys("abcdef", (8, 9))


def said(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    assert compare.main([*map(str, args)]) == 0
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *args: str | Path) -> str:
    assert compare.main([*map(str, args)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    return err.removeprefix("error: ").strip()


def cells(text: str, title: str, *names: str) -> list[str]:
    """Returns the cells of a table's row after its names."""
    table = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    rows = [[cell.strip(" *") for cell in line.strip("| ").split("|")] for line in table.splitlines() if "|" in line]
    [row] = [row for row in rows if row[: len(names)] == list(names)]
    return row[len(names) :]


def test_a_better_run_is_told_from_a_lucky_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weak, same, strong = (
        write_recorded(tmp_path / n, s, seed=i)
        for i, (n, s) in enumerate([("weak", 0.5), ("same", 0.5), ("strong", 2.5)])
    )
    text = said(capsys, weak, same)
    assert float(cells(text, "Differences of the means", "I-AUROC", "drawn", "same − weak")[1]) > 0.1
    text = said(capsys, weak, strong)
    value, p_value = cells(text, "Differences of the means", "I-AUROC", "drawn", "strong − weak")
    assert re.fullmatch(r"\+\d+\.\d \[\+\d+\.\d, \+\d+\.\d\]", value)
    assert float(p_value) < 0.01
    ours, theirs, difference, p_value, delong = cells(text, "I-AUROC", "drawn", "a")
    assert float(theirs.split()[0]) - float(ours.split()[0]) == pytest.approx(float(difference.split()[0]), abs=0.11)
    assert float(p_value) < 0.05
    assert float(delong.strip("<")) < 0.05
    assert "The signed-rank test over categories needs 6 of them; there are 2." in text
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(line) for line in table[:3]} == {len(table[0])}  # the columns stand below each other
    assert said(capsys, weak, strong) == text


def test_the_files_say_what_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    runs = [
        write_recorded(tmp_path / name, skill, seed=i, categories=MANY)
        for i, (name, skill) in enumerate([("x", 0.5), ("y|$", 1.5), ("z", 1.0)])
    ]
    with only_writer(tmp_path / "out"):
        assert compare.main([*map(str, runs), f"--out={tmp_path / 'out'}", "--replicates=200"]) == 2
    assert "another process is writing there" in capsys.readouterr().err
    text = said(capsys, *runs, "--out", tmp_path / "out", "--replicates", "200")
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {f"comparison.{kind}" for kind in ("md", "csv", "json", "tex")} < names
    assert {"ranks_image_auroc_categories.svg", "ranks_image_auroc_categories.png"} < names
    markdown = (tmp_path / "out/comparison.md").read_text()
    assert markdown.startswith(text.partition("\n\nTables: ")[0])
    assert "![ranks_image_auroc_categories](ranks_image_auroc_categories.svg)" in markdown
    assert r"y\|\$" not in markdown
    found = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [method["name"] for method in found["methods"]] == ["x", "y|$", "z"]
    with (tmp_path / "out/comparison.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(found["differences"]) == 3 * 3 * 7  # pairs, metrics of images, categories and mean
    for line, entry in zip(lines, found["differences"], strict=True):
        assert float(line["p_value"]) == entry["p_value"]
        assert float(line["second_value"]) - float(line["first_value"]) == pytest.approx(entry["value"])
        assert entry["low"] <= entry["value"] <= entry["high"] or entry["category"] != "mean"
    signed = found["signed_rank_tests"][0]
    assert (signed["over"], signed["count"], signed["wins"] + signed["losses"]) == ("categories", 6, 6)
    assert signed["p_value"] <= signed["corrected"] <= 1
    assert sum(found["ranks"][0]["ranks"].values()) == pytest.approx(6)
    svg = (tmp_path / "out/ranks_image_auroc_categories.svg").read_bytes()
    assert b"critical difference 1.35" in svg
    said(capsys, *runs, "--out", tmp_path / "again", "--replicates", "200")
    for path in (tmp_path / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_pixels_are_compared_where_all_runs_counted_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b, without = (
        write_recorded(tmp_path / name, skill, seed=i, pixels=name != "without")
        for i, (name, skill) in enumerate([("a", 0.5), ("b", 1.5), ("without", 1.0)])
    )
    text = said(capsys, a, b)
    assert "left out" not in text  # what is kept of the images gives the metrics of the tables
    for title in ("P-AUROC", "P-AP", "P-F1", "P-PRO"):
        value, p_value = cells(text, "Differences of the means", title, "drawn", "b − a")
        assert value.startswith("+")
        assert float(p_value) < 0.01
        assert len(cells(text, title, "drawn", "b")) == 4
    text = said(capsys, a, without)
    remedy = "Test with --evaluation.intervals 1000 to compare pixel metrics as well."
    assert f"Image metrics only: {without} did not count pixels. {remedy}" in text
    assert "## P-" not in text


def test_a_damaged_record_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = (write_recorded(tmp_path / name, 1.0, seed=i, pixels=True) for i, name in enumerate("ab"))
    file = b / "image_counts.npz"
    file.write_bytes(file.read_bytes()[:-200])
    assert refused(capsys, a, b).startswith(f"{file} holds no counts of images, or is damaged")


def test_without_matplotlib_the_rest_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [write_recorded(tmp_path / str(i), i, seed=i, categories=MANY) for i in range(3)]
    monkeypatch.setattr(compare, "find_spec", lambda name: None)
    assert "pip install 'afclip_lightning[plots]'" in said(capsys, *runs, "--out", tmp_path / "out")
    assert not list((tmp_path / "out").glob("ranks*"))


def test_too_few_samples_for_holms_correction_are_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_recorded(tmp_path / str(i), i / 3, seed=i) for i in range(4)]
    text = said(capsys, *runs, "--replicates", "100")
    assert "With 6 pairs and 100 samples, Holm's p is at least 0.12: take --replicates 239 or more." in text
    assert "never below" not in said(capsys, *runs, "--replicates", "239")


def test_several_seeds_are_a_method_with_both_sources_of_variation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = write_recorded(tmp_path / "one", 1.0)
    seeds = [write_recorded(tmp_path / f"s{i}", 0.6 + 0.6 * i, seed=i) for i in range(3)]
    text = said(capsys, one, f"many={','.join(map(str, seeds))}")
    value = cells(text, "Means over categories", "I-AUROC", "drawn")[1]
    found = re.fullmatch(r"(\S+) ± (\S+) \[(\S+), (\S+)\]", value)
    assert found
    assert float(found[2]) > 1
    assert "its interval holds both sources of variation, images and seeds" in text
    alone = cells(said(capsys, one, seeds[1]), "Means over categories", "I-AUROC", "drawn")[1]
    low, high = map(float, re.findall(r"[\d.]+", alone)[1:])
    assert float(found[4]) - float(found[3]) > high - low  # wider than images alone make it
    assert "DeLong" not in cells(text, "I-AUROC", "dataset")  # it is of two runs


def test_datasets_may_lie_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here, there = write_recorded(tmp_path / "here", 1.0), write_recorded(tmp_path / "there", 1.0, root="x/y/drawn")
    text = said(capsys, here, there)
    assert cells(text, "Differences of the means", "I-AUROC", "drawn", "there − here") == ["+0.0 [+0.0, +0.0]", "1.000"]
    assert "nan" not in text


def test_runs_of_other_images_are_refused_and_the_difference_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = write_recorded(tmp_path / "first", 1.0)
    fewer = write_recorded(tmp_path / "fewer", 1.0, categories={"a": (12, 16), "b": (10, 12)})
    message = refused(capsys, first, fewer)
    assert f"{first} and {fewer} are not runs on the same images: 2 of 52 are in {first} alone, " in message
    assert "/data/drawn/b/test/bad/022.png, /data/drawn/b/test/bad/023.png (of drawn/b)" in message
    assert f"2 of 52 are in {first} alone" in refused(capsys, fewer, first)
    other = write_recorded(tmp_path / "other", 1.0, categories={"a": (12, 16), "c": (10, 14)})
    assert "24 of 52 are in" in refused(capsys, first, other)
    relabelled = shutil.copytree(first, tmp_path / "relabelled")
    scores = (relabelled / "scores.csv").read_text()
    (relabelled / "scores.csv").write_text(scores.replace("good/000.png,0", "good/000.png,1", 1))
    said = refused(capsys, first, relabelled)
    assert "disagree on which images are normal: 1 images have another label, /data/drawn/a/test/good/000.png." in said


def test_mistakes_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    a, b = write_recorded(Path("a"), 1.0), write_recorded(Path("b"), 1.0, seed=1)
    assert refused(capsys, a) == "a alone cannot be compared. Name two runs or more."
    assert refused(capsys, f"x={a},{b}").endswith("Name two runs or more.")
    assert refused(capsys, a, tmp_path / "a") == "a is named twice. Name each run once."
    assert refused(capsys, f"x={a}", f"x={b}").startswith("x stands for two methods.")
    assert refused(capsys, a, "x=") == "x=: names no run. Write NAME=RUN,RUN."
    assert refused(capsys, a, "nowhere").startswith("nowhere: no results.json, so it is not the folder of a test run.")
    normal = [write_recorded(Path(name), 1.0, categories={"a": (9, 0)}) for name in ("n", "m")]
    assert refused(capsys, *normal).startswith("There is nothing to compare. No category has both")
    single = [write_recorded(Path(n), 1.0, seed=i, categories={"a": (9, 4)}) for i, n in enumerate(("p", "q"))]
    message = refused(capsys, *single)
    assert message.startswith(
        "There is nothing to compare. drawn/a is left out, and so is its dataset's mean, in I-AUROC"
    )
    assert message.endswith("An interval needs 5 normal and 5 anomalous ones.")
    (b / "scores.csv").write_text((b / "scores.csv").read_text()[:400])
    assert "scores.csv" in refused(capsys, a, b)
    with pytest.raises(SystemExit, match="2"):
        compare.main(["a", "b", "--replicates", "10"])
    assert "must be from 100 to 1000000, got 10" in capsys.readouterr().err


def test_files_of_two_tests_are_not_mixed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = write_recorded(tmp_path / "a", 0.2), write_recorded(tmp_path / "b", 2.0, seed=1)
    shutil.copy(b / "scores.csv", a)
    assert "to compare. I-AUROC is left out: for drawn/a it is" in refused(capsys, a, b)
    limit = write_recorded(tmp_path / "limit", 1.0, pro_limit=0.05)
    assert "P-PRO is left out: the runs integrate it up to 0.05 and 0.3." in said(capsys, limit, b)


def test_of_a_run_the_name_is_its_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_recorded(tmp_path / name / "run", 1.0, seed=i) for i, name in enumerate("ab")]
    assert f"# Comparison of {runs[0]}, {runs[1]}" in said(capsys, *runs)
    assert "# Comparison of run, x" in said(capsys, runs[0], f"x={runs[1]}")


def test_tables_of_heads_that_shared_a_pass_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = write_recorded(tmp_path / "one", 1.0, pixels=True)
    other = write_recorded(tmp_path / "other", 2.0, seed=1, pixels=True)
    for name in ("results.json", "scores.csv", "curves.json", "image_counts.npz"):
        stem, _, kind = name.partition(".")
        shutil.copy(other / name, one / f"{stem}_second.{kind}")
    text = said(capsys, one, one / "results_second.json")
    assert "# Comparison of one, results_second.json" in text
    assert cells(text, "Differences of the means", "P-AP", "drawn", "results_second.json − one")[0].startswith("+")


def test_help_needs_no_torch(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match="0"):
        compare.main(["--help"])
    assert "paired bootstrap" in capsys.readouterr().out
