"""The report: the files of a run for it, its texts, and the page in a real browser."""

import csv
import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from afclip_lightning.cli.report import main
from afclip_lightning.engine.app import main as run_command
from afclip_lightning.metrics import auroc, exact_counts
from afclip_lightning.report.charts import HEIGHT, WIDTH, histogram, line_path
from afclip_lightning.report.run import Threshold, calibrated, render, sections
from afclip_lightning.report.run_files import read_run
from afclip_runtime.errors import UserError
from afclip_runtime.files import read_csv
from afclip_runtime.inspection.calibration import Calibration, fixed
from tests.support.accessibility import faint, faults_of, unreachable
from tests.support.clips import small_config
from tests.support.commands import arguments
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.visa import write_visa
from tests.support.run_folders import HOSTILE, write_run

if TYPE_CHECKING:
    from playwright.sync_api import Page

CLIP_OPTIONS = [
    "--model=CLIP",
    "--model.backbone.model=tiny-8-112",
    "--model.backbone.weights=embedded",
    "--model.backbone.image_size=56",
    "--trainer.accelerator=cpu",
]


@dataclass
class Predicted:
    image: str


@pytest.mark.slow
def test_a_test_keeps_what_the_report_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("AFCLIP_DATA", raising=False)
    write_visa(tmp_path / "data/visa", ["candle", "capsules"])
    small_config(tmp_path)
    data = ["--data.test=[{class_path: VisA, init_args: {categories: [candle, capsules]}}]"]
    assert run_command(["test", *arguments(data__train__root="gone"), *data]) == 0

    with Path("run/scores.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len({line["image"] for line in lines}) == 6
    table = {row["category"]: row for row in json.loads(Path("run/results.json").read_text())["rows"]}
    for category in ("candle", "capsules"):
        of_label = [
            np.float32([s["score"] for s in lines if s["category"] == category and s["label"] == label])
            for label in ("0", "1")
        ]
        assert auroc(exact_counts(*of_label)) == pytest.approx(table[category]["metrics"]["image_auroc"])
        threshold = np.float32(table[category]["thresholds"]["image_f1_max"])
        assert np.nextafter(threshold, np.float32(np.inf)) in np.concatenate(of_label)  # numbers are kept in full
    kept = json.loads(Path("run/curves.json").read_text())
    assert kept["pro_limit"] == 0.3
    curves = kept["categories"][0]["curves"]
    assert curves.keys() == {"image_roc", "image_pr", "pixel_roc", "pixel_pr", "pixel_pro"}
    assert curves["pixel_pro"]["x"][-1] == 0.3
    assert all(len(curve["x"]) == len(curve["y"]) <= 200 for curve in curves.values())

    shutil.rmtree("data")  # the run folder is enough
    assert main(["run"]) == 0
    page = Path("run/report.html").read_text()
    assert page.count('class="case"') == 6
    assert page.count('class="halo"') == 4  # the anomalous ones


def test_the_threshold_decides_what_is_missed(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run"))
    scores = list(csv.DictReader((tmp_path / "run/scores.csv").read_text().splitlines()))
    for threshold in (None, Threshold(0.5, "given")):
        for section in sections(run, threshold):
            decisions = section.decisions
            assert decisions is not None
            limit = decisions.threshold.value
            mine = [s for s in scores if s["category"] == section.row.category]
            assert decisions.missed == sum(s["label"] == "1" and float(s["score"]) <= limit for s in mine)
            assert decisions.false_alarms == sum(s["label"] == "0" and float(s["score"]) > limit for s in mine)
            assert decisions.threshold.fitted == (threshold is None)
            groups = {group.title: group.cards for group in section.groups or []}
            assert sum(map(len, groups.values())) == 4
            assert all(card.status == "anomalous" and card.score <= limit for card in groups["Missed"])
            assert all(card.status == "normal" and card.score > limit for card in groups["False alarms"])
    best = next(s for s in sections(run) if s.row.category == "b").decisions
    assert best is not None
    found = best.anomalous - best.missed
    f1 = 2 * found / (found + best.false_alarms + best.anomalous)
    row = next(row for row in run.rows if row.category == "b")
    assert f1 == pytest.approx(row.metrics["image_f1_max"])  # the threshold is applied as it was found


def test_a_calibration_calls_anomalous_what_exceeds_it(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1.0})
    scores = [float(line.split(",")[4]) for line in (folder / "scores.csv").read_text().splitlines()[1:]]
    value = sorted(scores)[15]  # that of an image
    file = tmp_path / "head.calibration.json"
    Calibration(fixed(value, np.array(scores)), None, "", {}).save(file)
    decisions = sections(read_run(folder), calibrated(file))[0].decisions
    assert decisions is not None
    assert decisions.anomalous - decisions.missed + decisions.false_alarms == 30 - 16
    assert not decisions.threshold.fitted
    assert main([str(folder), f"--calibration={file}"]) == 0
    page = (folder / "report.html").read_text()
    assert "head.calibration.json: fixed of 30 images" in page
    assert "fitted on the labels" not in page
    assert main([str(folder), f"--threshold={value}"]) == 0
    assert "given by hand" in (folder / "report.html").read_text()
    assert main([str(folder), f"--calibration={folder / 'results.json'}"]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("missing", ["scores.csv", "curves.json", "run.json", "pictures/cases/cases.json"])
def test_missing_parts_of_a_run_are_shown_as_unknown(tmp_path: Path, missing: str) -> None:
    folder = write_run(tmp_path / "run", {"a": 1.0})
    assert "unknown" not in re.sub("<style>.*</style>", "", render(read_run(folder)), flags=re.DOTALL)
    (folder / missing).unlink()
    page = render(read_run(folder))
    assert "ot known" in page
    assert "drawn" in page


def test_intervals_stand_below_their_values(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1.0}, images=9)
    assert 'class="interval"' not in render(read_run(folder))
    table = json.loads((folder / "results.json").read_text())
    for row, ends in zip(table["rows"], ([0.25, 0.5], [0.75, 1.0]), strict=True):
        row["intervals"] = {"image_auroc": ends}
    (folder / "results.json").write_text(json.dumps(table))
    page = render(read_run(folder))
    # the mean stands at the top too
    assert re.findall(r'class="interval">([^<]*)<', page) == ["75.0 to 100.0", "25.0 to 50.0", "75.0 to 100.0"]
    assert "Below each value is its 95 % interval" in page
    table["rows"][0]["operating_points"] = {"image": {"rule": "mean+3sd", "threshold": 1.5, "fpr": 0.5}}
    table["rows"][0]["intervals"]["image_fixed_fpr"] = [0.125, 0.875]
    (folder / "results.json").write_text(json.dumps(table))
    page = render(read_run(folder))
    fixed = page.partition('id="fixed"')[2].partition("</section>")[0]
    assert re.findall(r'class="interval">([^<]*)<', fixed) == ["12.5 to 87.5"]
    assert "Intervals hold for these thresholds, as if they had been given." in fixed
    assert "up to 3 in n" not in page
    table["rows"][0]["intervals"]["image_fixed_fpr"] = [0.0, 0.0]
    (folder / "results.json").write_text(json.dumps(table))
    said = "after n images without an error, up to 3 in n other images may have one"
    assert render(read_run(folder)).count(said) == 1


def test_a_category_without_normal_images_has_a_report(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", {"a": 1.0, "only_anomalous": 1.0}, images=9)
    table = json.loads((folder / "results.json").read_text())
    del table["rows"][1]["thresholds"]["image_f1_max"]
    for row in table["rows"][1:]:
        row["metrics"].pop("image_auroc")
    table["rows"][2].update(metrics={"image_auroc": 0.5}, categories={"image_auroc": 1})
    (folder / "results.json").write_text(json.dumps(table))
    curves = json.loads((folder / "curves.json").read_text())
    curves["categories"][1]["curves"] = {}
    (folder / "curves.json").write_text(json.dumps(curves))
    lines = (folder / "scores.csv").read_text().splitlines()
    kept = [line for line in lines if not ("only_anomalous" in line and ",0," in line)]
    (folder / "scores.csv").write_text("\n".join(kept) + "\n")
    page = render(read_run(folder))
    assert "n/a" in page
    assert "50.0 (1)" in page
    assert sections(read_run(folder))[1].decisions is None
    assert sections(read_run(folder), Threshold(0.0, "given"))[1].decisions is not None


def test_wrong_folders_and_damaged_files_are_one_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "nowhere")]) == 2
    assert f"error: {tmp_path / 'nowhere'} does not exist. Name the folder" in capsys.readouterr().err
    assert main([str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"error: {tmp_path}: no results.json and no inspections.csv. Name the folder" in error
    assert error.endswith("or the output folder of `inspect`.\n")
    (tmp_path / "head.ckpt").write_bytes(b"\x80")
    assert main([str(tmp_path / "head.ckpt")]) == 2
    assert "head.ckpt is not a table, results.json, of a test run. Name the folder" in capsys.readouterr().err
    folder = write_run(tmp_path / "run", {"a": 1.0})
    for name, text, message in (
        ("scores.csv", "dataset,category\nx,y\n", "line 2: there is no label"),
        ("scores.csv", "dataset,category,label,score\nx,y,1,high\n", "line 2: score: expected a number, got text"),
        ("scores.csv", "dataset,category,label,score\nx,y,1,nan\n", "line 2: score: expected a number"),
        ("scores.csv", "dataset,category,label,score\nx,y,-1,0.5\n", "line 2: label: expected a whole number >= 0"),
        ("curves.json", "[]", "expected a mapping, got a list"),
        ("curves.json", '{"pro_limit": 0, "categories": []}', "pro_limit: expected a number > 0"),
        ("results.json", "{", "is not valid JSON"),
        ("results.json", '{"title": "t", "rows": {}}', "rows: expected a list, got a mapping"),
        ("run.json", '{"command": "afclip test"}', "command: expected a list, got text"),
        ("pictures/cases/cases.json", "{}", "expected a list, got a mapping"),
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(text)
        with pytest.raises(UserError, match=f"{name}[:,] .*{message}.*Restore it"):
            read_run(folder)
        (folder / name).write_text(whole)
    curves = {"dataset": "d", "category": "c", "curves": {"image_roc": {"x": [0, 1], "y": [0]}}}
    whole = (folder / "curves.json").read_text()
    (folder / "curves.json").write_text(json.dumps({"pro_limit": 0.3, "categories": [curves]}))
    with pytest.raises(UserError, match="a curve has 2 values of x and 1 of y"):
        read_run(folder)
    (folder / "curves.json").write_text(whole)
    (folder / "pictures/cases/0000.jpg").unlink()
    assert main([str(folder)]) == 2
    assert "0000.jpg" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([str(folder), "--threshold=nan"])


def test_inspected_images_have_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "inspections"
    (folder / "overlays").mkdir(parents=True)
    lines = []
    for i in range(30):
        row = {"path": f"/parts/{i:03}.png", "score": i / 30, "probability": i / 30, "threshold": 0.5, "area": 0.01}
        row |= {"verdict": "anomalous" if i > 15 else "normal", "regions": [], "error": "", "name": f"{i:03}"}
        lines.append(json.dumps(row))
    Image.new("RGB", (640, 480), "red").save(folder / "overlays/029.jpg")  # all others are not at hand
    failed = dict.fromkeys(json.loads(lines[0])) | {"path": "x", "error": f"x is no image: {HOSTILE}", "name": "x"}
    (folder / "inspections.jsonl").write_text("\n".join([*lines, json.dumps(failed), '{"path": "cut o']))
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "30 images, 14 called anomalous, 16 called normal" in page
    assert page.count('class="case"') == 24
    assert page.count("data:image/jpeg") == 1
    assert page.count("no picture available") == 23
    assert page.index("029.png") < page.index("028.png") < page.index("000.png")
    assert "1 image could not be inspected" in page
    assert HOSTILE not in page

    without = [json.dumps({**json.loads(line), "verdict": None, "threshold": None}) for line in lines]
    (folder / "inspections.jsonl").write_text("\n".join([*without, ""]))
    assert main([str(folder), "--out", str(tmp_path / "page.html")]) == 0
    assert "There is no threshold" in (tmp_path / "page.html").read_text()
    assert main([str(folder), "--threshold=1"]) == 2
    assert "leave the option out" in capsys.readouterr().err
    (folder / "inspections.jsonl").write_text("{}\n")
    assert main([str(folder)]) == 2
    assert "inspections.jsonl, line 1: there is no path" in capsys.readouterr().err


def test_a_page_holds_nothing_from_outside_of_its_folder(tmp_path: Path) -> None:
    folder, secret = write_run(tmp_path / "run", {"a": 1.0}), tmp_path / "secret.jpg"
    Image.new("RGB", (32, 32), "red").save(secret)
    file = folder / "pictures/cases/cases.json"
    cases = json.loads(file.read_text())
    for name in ("../../../secret.jpg", str(secret)):
        file.write_text(json.dumps([{**cases[0], "picture": name}]))
        with pytest.raises(UserError, match="outside of the run folder"):
            read_run(folder)
    file.write_text(json.dumps(cases))
    (folder / "pictures/cases/0000.jpg").unlink()
    (folder / "pictures/cases/0000.jpg").symlink_to(secret)
    with pytest.raises(UserError, match="outside of the run folder"):
        read_run(folder)
    (folder / "pictures/cases/0000.jpg").unlink()
    for content, message in ((b"root:x:0:0", "is not a JPEG"), (None, "is a named pipe")):
        path = folder / "pictures/cases/0000.jpg"
        path.write_bytes(content) if content else (path.unlink(), os.mkfifo(path))
        with pytest.raises(UserError, match=rf"0000\.jpg.* {message}"):
            read_run(folder)

    inspected = tmp_path / "inspections"
    (inspected / "overlays").mkdir(parents=True)
    (inspected / "overlays/link.jpg").symlink_to(secret)
    for line in (
        {"path": str(secret), "name": "secret", "score": 0.5},
        {"path": "a.png", "name": "../../secret", "score": 0.5},
        {"path": "a.png", "name": str(secret.with_suffix("")), "score": 0.5},
        {"path": "a.png", "name": "secret", "method": "..", "score": 0.5},
        {"path": "a.png", "name": "link", "score": 0.5},
    ):
        (inspected / "inspections.jsonl").write_text(json.dumps(line) + "\n")
        assert main([str(inspected)]) == 0
        assert "data:image" not in (inspected / "report.html").read_text()
    (inspected / "inspections.jsonl").write_text(json.dumps({"path": str(secret), "name": "x", "score": 0.5}) + "\n")
    assert main([str(inspected), "--originals"]) == 0
    assert (inspected / "report.html").read_text().count("data:image/jpeg") == 1
    moved = {"path": "gone.png", "moved_to": str(secret), "name": "x", "score": 0.5}
    (inspected / "inspections.jsonl").write_text(json.dumps(moved) + "\n")
    assert main([str(inspected), "--originals"]) == 0
    assert (inspected / "report.html").read_text().count("data:image/jpeg") == 1


def test_names_that_are_not_utf8_have_a_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"caf\xe9\x1b[31m")
    folder = write_run(tmp_path / name, {name: 1.0, "=1+1": 1.0})
    assert main([str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert page.count("caf\\xe9\\x1b[31m") > 5
    assert "\x1b" not in page
    assert [section.row.category for section in sections(read_run(folder))] == [name, "=1+1"]
    assert all(section.decisions for section in sections(read_run(folder)))  # the scores are found by the names
    assert "\x1b" not in capsys.readouterr().out
    inspected = tmp_path / "inspections"
    inspected.mkdir()
    line = {"path": f"{name}.png", "name": name, "score": 0.5, "error": ""}
    (inspected / "inspections.jsonl").write_text(json.dumps(line) + "\n")
    assert main([str(inspected)]) == 0
    assert "caf\\xe9\\x1b[31m.png" in (inspected / "report.html").read_text()


@pytest.mark.slow
def test_a_set_with_names_that_are_not_utf8_is_tested_and_predicted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    category, stem = os.fsdecode(b"caf\xe9"), os.fsdecode(b"\xff\x1b[31m")
    for place in ("test/good", "test/bad"):
        write_image(tmp_path / "set" / category / place / f"{stem}.png")
    write_mask(tmp_path / "set" / category / "ground_truth/bad" / f"{stem}_mask.png")
    write_image(tmp_path / "set" / category / "train/good/0.png")
    options = [*CLIP_OPTIONS, "--data=MVTecLayout", f"--data.root={tmp_path / 'set'}", "--data.num_workers=0"]
    assert run_command(["test", *options, "--out=tested"]) == 0
    assert "| caf\\xe9 " in capsys.readouterr().out
    assert main(["tested"]) == 0
    assert "caf\\xe9" in Path("tested/report.html").read_text()
    assert run_command(["predict", *options, "--out=predicted"]) == 0
    assert "'caf\\xe9" in Path("predicted/predictions.csv").read_text()
    found = [row.image for row in read_csv("predicted/predictions.csv", Predicted)]
    assert [Path(image).stem for image in found] == [stem, stem]
    assert all(Path(image).is_file() for image in found)  # the names lead to the files


@pytest.mark.parametrize("score", ["NaN", "Infinity", "1e999", '"high"', "[1]", "true", "1e305"])
def test_inspections_with_other_values_are_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], score: str
) -> None:
    whole = '{"path": "a.png", "name": "a", "score": 0.5}\n'
    (tmp_path / "inspections.jsonl").write_text(whole + whole.replace("0.5", score))
    assert main([str(tmp_path)]) == 2
    assert "inspections.jsonl, line 2: score: " in capsys.readouterr().err


def test_paths_of_charts() -> None:
    assert line_path([0, 0.5, 1], [0, 1, 1]) == f"M0.0 {HEIGHT}L{WIDTH / 2} 0L{WIDTH}.0 0"
    assert line_path([0, 0.15], [1, 0], x_max=0.3, steps=True) == f"M0.0 0V{HEIGHT}H{WIDTH / 2}"
    bars = histogram([0.0, 0.0, 1.0], [32.0], threshold=16.0)
    assert (bars.low, bars.high, bars.peak, bars.threshold) == (0, 32, 2, WIDTH / 2)
    assert bars.normal.count("M") == 2
    assert bars.anomalous.startswith(f"M{WIDTH * 31 / 32:.1f} ")
    alone = histogram([], [0.5], threshold=None)
    assert (alone.peak, alone.threshold, alone.normal) == (1, None, "")


@pytest.mark.browser
def test_the_page_in_a_browser(tmp_path: Path, page: "Page") -> None:
    out = tmp_path / "elsewhere" / "report.html"
    assert main([str(write_run(tmp_path / "run")), "--out", str(out)]) == 0
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto(out.as_uri())
    assert {url.partition(":")[0] for url in requests} <= {"file", "data"}
    assert page.title() == f"Report · Test {HOSTILE}"
    assert page.locator("script").count() == 1
    assert page.locator("main img:not([src^='data:'])").count() == 0
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert faults_of(page) == []
    assert faint(page) == []
    assert unreachable(page, "a[href], button, input, summary") == []

    def column(name: str) -> list[str]:
        position = [h.strip() for h in page.locator("#table-results thead th").all_inner_texts()].index(name)
        return [
            row.locator("th, td").nth(position).inner_text() for row in page.locator("#table-results tbody tr").all()
        ]

    given = column("I-AUROC")
    heading = page.locator("#table-results thead button", has_text="I-AUROC")
    heading.click()
    assert column("I-AUROC") == sorted(given, key=float) != given
    assert column("category")[-1] == "b"
    heading.press("Enter")  # the keyboard sorts too
    assert column("I-AUROC") == sorted(given, key=float, reverse=True)
    assert page.locator("#table-results th[aria-sort]").get_attribute("aria-sort") == "descending"

    page.locator("#opacity").fill("0")
    assert page.locator(".picture .map").first.evaluate("(map) => getComputedStyle(map).opacity") == "0"
    page.locator("#outlines").uncheck()
    assert not page.locator(".picture svg").first.is_visible()
    for width, scheme in ((1280, "light"), (1280, "dark"), (360, "light")):
        page.set_viewport_size({"width": width, "height": 800})
        page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type]
        assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing is cut off at the side
        shot = tmp_path / f"{width}_{scheme}.png"
        page.screenshot(path=shot, full_page=True)
        with Image.open(shot) as picture:
            colours = np.asarray(picture.convert("L"))
        assert colours.std() > 5
        assert (colours.mean() < 100) == (scheme == "dark")
