"""Names in two Unicode forms, numbers as names, and names with a meaning."""

import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml

from afclip_lightning.cli.datasets import main
from afclip_lightning.data.doctor import examine
from afclip_lightning.data.images import pair_masks
from afclip_lightning.data.names import find, holds_no_pictures, means_normal
from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.catalogue import find_dataset
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.datasets.listing import Listing
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.table import Table
from afclip_lightning.datasets.visa import VisA
from afclip_lightning.engine.app import main as run
from afclip_runtime.errors import DatasetError, UserError
from tests.support.layouts import write_image, write_mask
from tests.support.layouts.listing import write_meta
from tests.support.layouts.mvtec import write_mvtec
from tests.support.layouts.visa import write_visa

ONE, TWO = (unicodedata.normalize(form, "prüfung") for form in ("NFC", "NFD"))
BOTH = r"'pr\\xfcfung.*' and 'pru\\u0308fung.*'"


@pytest.fixture(params=[(ONE, TWO), (TWO, ONE)], ids=["composed on disk", "decomposed on disk"])
def forms(request: pytest.FixtureRequest) -> tuple[str, str]:
    """A name as on disk, and as it is requested."""
    pair: tuple[str, str] = request.param
    return pair


def test_folders(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, other = forms
    write_image(tmp_path / f"bad {disk}/{disk}/{disk}.png")
    mask = write_mask(tmp_path / f"masks/{other}/{other}_mask.png")
    dataset = Folder(tmp_path, abnormal_dir=f"bad {other}", mask_dir="masks")
    dataset.check()
    assert [s.mask_path for s in dataset.samples("test")] == [mask]
    assert not dataset.left_out("test")


def test_mvtecs_layout(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, other = forms
    shot = write_image(tmp_path / f"shots/{other}/0.png")
    tmp_path /= "set"
    image = write_image(tmp_path / f"{disk}/test/{disk}/{disk}.png")
    mask = write_mask(tmp_path / f"{disk}/ground_truth/{other}/{other}_mask.png")
    write_image(tmp_path / f"{disk}/test/good/0.png")
    write_image(tmp_path / f"{disk}/train/good/0.png")
    dataset = MVTecLayout(tmp_path, categories=[other], class_names={other: "test bench"})
    dataset.check()
    assert [(s.image_path, s.mask_path) for s in dataset.samples("test") if s.label] == [(image, mask)]
    assert dataset.selected_categories() == [ONE]  # whatever the disk or the user write
    assert dataset.class_name_of(ONE) == dataset.class_name_of(TWO) == "test bench"
    assert not dataset.left_out("test")
    dataset.few_shot_dir = tmp_path.with_name("shots")
    assert [s.image_path for s in dataset.few_shot(1, 0)[dataset.name, ONE]] == [shot]


def test_tables(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, other = forms
    image, mask = write_image(tmp_path / f"{disk}/{disk}.png"), write_mask(tmp_path / f"masks/{disk}.png")
    rows = ["image,label,mask,category", f"{other}/{other}.png,1,masks/{other}.png,{other}"]
    (tmp_path / f"{disk}.csv").write_text("\n".join(rows), encoding="utf-8")
    table = Table(tmp_path, f"{other}.csv", categories=[disk])
    assert [(s.image_path, s.mask_path) for s in table.samples("test")] == [(image, mask)]
    (tmp_path / f"{disk}.csv").write_text("\n".join([*rows, rows[1].replace(other, disk)]), encoding="utf-8")
    with pytest.raises(DatasetError, match=r"line 3: .* is already in an earlier line"):
        table.samples("test")


def test_listings(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, other = forms
    root = write_meta(tmp_path)
    (root / "bolt/test/crack/000.png").rename(root / f"bolt/test/crack/{disk}.png")
    (root / "bolt/ground_truth/crack/000_mask.png").rename(root / f"bolt/ground_truth/crack/{disk}_mask.png")
    text = (root / "meta.json").read_text().replace("bolt/test/crack/000.png", f"bolt/test/crack/{other}.png")
    text = text.replace("crack/000_mask", f"crack/{other}_mask")
    (root / "meta.json").write_text(text, encoding="utf-8")
    assert len(Listing(root).samples("test")) == 4


def test_visa(forms: tuple[str, str], tmp_path: Path) -> None:
    disk, other = forms
    root = write_visa(tmp_path, ["candle"])
    for folder, suffix in (("Images", "JPG"), ("Masks", "png")):
        (root / f"candle/Data/{folder}/Anomaly/000.{suffix}").rename(
            root / f"candle/Data/{folder}/Anomaly/{disk}.{suffix}"
        )
    table = root / "split_csv/1cls.csv"
    table.write_text(table.read_text().replace("Anomaly/000.", f"Anomaly/{other}."), encoding="utf-8")
    assert len(VisA(root, categories=["candle"]).samples("test")) == 3


def test_names_that_look_alike_are_refused_and_told_apart(tmp_path: Path) -> None:
    images = [write_image(tmp_path / f"{name}.png") for name in (ONE, TWO)]
    with pytest.raises(DatasetError, match=BOTH):
        pair_masks(images, [write_mask(tmp_path / f"m/{ONE}.png")])
    masks = [tmp_path / f"m/{ONE}.png", write_mask(tmp_path / f"m/{TWO}_mask.png")]
    with pytest.raises(DatasetError, match=BOTH):
        pair_masks(images[:1], masks)
    third = unicodedata.normalize("NFC", "a\u0323\u0302")  # asked for in a third form, that of neither
    for form in ("a\u0323\u0302", "\u1ea1\u0302"):
        write_image(tmp_path / f"three/{form}.png")
    with pytest.raises(DatasetError, match="differ by their Unicode form only"):
        find(tmp_path, f"three/{third}.png")
    assert find(tmp_path, f"{TWO}.png") == images[1]  # the very name wins
    for name in (TWO, ONE):  # sorted
        write_image(tmp_path / f"set/{name}/test/good/0.png")
    with pytest.raises(DatasetError, match=r"'pru\\u0308fung' and 'pr\\xfcfung'"):
        MVTecLayout(tmp_path / "set").find_categories()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("categories", "[01]", "1 is a number, not a name"),
        ("categories", "[010]", "8 is a number"),
        ("categories", "[no]", "False is a truth value"),
        ("categories", "['01', 1e3]", "1000.0 is a number"),
        ("categories", "[null]", "None is nothing"),
        ("categories", "[12:30]", "750 is a number"),
        ("categories", "01", r"must be a list, such as '\[\"01\"\]'"),
        ("categories", "bottle", r"must be a list, such as '\[\"bottle\"\]'"),
        ("categories", "[]", "must be named once each"),
        ("class_names", "{01: plug}", "1 is a number, not a name"),
        ("class_names", "{no: plug}", "False is a truth value"),
        ("class_names", "{'01': 3}", "3 is a number"),
        ("class_names", "{'01': null}", "None is nothing"),
        ("class_names", "{'01': '  '}", "the one of '01' is empty"),
    ],
)
def test_numbers_and_truth_values_as_names(
    option: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        find_dataset("BTAD", [f"--{option}", value])
    assert "\n" not in str(caught.value)
    if "not a name" in message:
        assert ("""'{"01": "plug"}'""" if option == "class_names" else """'["01"]'""") in str(caught.value)
    assert main(["check", "BTAD", f"--{option}={value}"]) == 2
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("cls", [BTAD, MVTecLayout, Table, Listing])
def test_every_class_checks_its_names(cls: Any, tmp_path: Path) -> None:
    for arguments in ({"categories": [1]}, {"class_names": {1: "plug"}}, {"class_names": {"a": 1}}):
        with pytest.raises(ValueError, match="1 is a number, not a name"):
            cls(tmp_path, **arguments)
    with pytest.raises(ValueError, match="1 is a number"):
        Medical("isic", tmp_path, class_names={"skin": 1})


def test_quoted_numbers_are_names(tmp_path: Path) -> None:
    dataset = find_dataset("BTAD", ["--categories", '["01", "02"]', "--class_names", '{"01": plug}'], tmp_path)
    assert dataset.selected_categories() == ["01", "02"]
    assert dataset.class_name_of("01") == "plug"


def test_a_category_that_is_called_mean(tmp_path: Path) -> None:
    dataset = MVTecLayout(write_mvtec(tmp_path, ["bolt", "mean"]))
    with pytest.raises(DatasetError, match="a category is called 'mean', as the row of the mean"):
        dataset.check()
    assert any("called 'mean'" in problem for problem in examine(dataset).problems)
    write_image(tmp_path / "0.png")
    (tmp_path / "images.csv").write_text("image,label,category\n0.png,0,mean\n")
    with pytest.raises(DatasetError, match="called 'mean'"):
        Table(tmp_path).check()
    write_mvtec(tmp_path / "all", ["all", "good", "test", "train"])
    MVTecLayout(tmp_path / "all").check()


def test_class_names_that_another_sets_config_left(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["bolt"])
    said = r"class names are given for metal_nut, which it does not have\. These are not used"
    with pytest.warns(UserWarning, match=said):
        MVTecLayout(root, class_names={"metal_nut": "metal_nut"}).check()
    with pytest.raises(DatasetError, match="class names are given for metalnut, which the dataset does not have"):
        MVTecLayout(root, class_names={"metal_nut": "metal_nut", "metalnut": "nut"}).check()


def test_what_a_folders_name_says() -> None:
    assert all(map(means_normal, ("good", "OK", "Defect-Free", "normal_3", "no defects", "n.i.o"[2:], "Gut")))
    assert not any(map(means_normal, ("", "ko", "not ok", "bad", "fine scratch", "abnormal", "goods")))
    assert all(map(holds_no_pictures, ("masks", "GT", "ground_truth", "label", "xyz", "mask_1")))
    assert not any(map(holds_no_pictures, ("cam2", "rgb", "labelled by hand", "")))


def test_class_names_that_the_text_tower_would_cut_off(tmp_path: Path) -> None:
    root = write_mvtec(tmp_path, ["bolt"])
    MVTecLayout(
        root, class_names={"bolt": "hexagon head bolt with a flange, zinc plated, of the third production line"}
    ).check()
    for class_name in (100 * "bolt ", "ABC-123/" * 20, "螺" * 60):
        dataset = MVTecLayout(root, class_names={"bolt": class_name})
        with pytest.warns(
            UserWarning, match=r"the class name of 'bolt' has \d+ tokens, and prompts have room for about 48"
        ):
            dataset.check()
    long = write_image(tmp_path / f"names/{80 * 'ab '}end/test/good/0.png").parents[2].name
    with pytest.warns(UserWarning, match="tokens, and prompts have room for about 48"):
        MVTecLayout(tmp_path / "names").check()
    MVTecLayout(tmp_path / "names", class_names={long: "part"}).check()


@pytest.mark.slow
def test_numbers_as_names_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Path(__file__).parents[2] / "configs/clip_mvtec.yaml"
    nested = tmp_path / "nested.yaml"
    test = [{"class_path": "BTAD", "init_args": {"root": str(tmp_path), "categories": [1]}}]
    nested.write_text(yaml.safe_dump({"data": {"class_path": "CrossDataset", "init_args": {"test": test}}}))
    base = ["test", f"--config={config}"]
    own = ["--data=BTAD", f"--data.root={tmp_path}"]
    for options in ([*own, "--data.categories=[01]"], [*own, "--data.class_names={01: plug}"], [f"--config={nested}"]):
        assert run([*base, *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
        assert "1 is a number, not a name" in line
