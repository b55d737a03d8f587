"""`adapt`: from normal images to a folder for `inspect` and `export`; rejected input; messages."""

import csv
import shutil
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from afclip_lightning import load
from afclip_lightning.cli import adapt as verb
from afclip_lightning.cli.inspect import main as inspect
from afclip_lightning.heads.file import read_head_file
from afclip_lightning.inspection import adapt as inspection_adapt
from afclip_lightning.inspection import fit_head
from afclip_lightning.inspection.adapt import product_of
from afclip_lightning.inspection.export import export
from afclip_lightning.inspection.predictor import Predictor
from afclip_lightning.methods.base import AnomalyMethod
from afclip_runtime.inspection.calibration import Calibration
from afclip_runtime.inspection.drift import Drift
from tests.support.small_head import BACKBONE, MODEL_OPTIONS, picture, write_head, write_pictures

NEIGHBOURS = ["--checkpoint", "NearestNeighbours", *MODEL_OPTIONS, "--model.layers=[2,4]"]


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One product: a pattern with a little noise."""
    folder = tmp_path_factory.mktemp("normal")
    rng = np.random.default_rng(0)
    for number in range(5):
        noisy = picture(60, 80) + rng.normal(0, 6, (60, 80, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.png")
    return folder


def adapt(normal: Path, out: Path, *options: str) -> int:
    return verb.main(["--normal", str(normal), "--out", str(out), "--num_workers", "0", *options])


@pytest.fixture(scope="module")
def made(normal: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    assert adapt(normal, folder / "model", "--checkpoint", str(write_head(folder / "head.ckpt", {}))) == 0
    return folder / "model"


def test_inspect_takes_the_folder_as_it_is(made: Path, normal: Path, tmp_path: Path) -> None:
    strange = picture(60, 80)
    strange[20:40, 30:60] = (255, 0, 255)
    Image.fromarray(strange).save(tmp_path / "strange.png")
    shutil.copytree(made, tmp_path / "moved")
    assert sorted(path.name for path in made.iterdir()) == ["head.calibration.json", "head.safetensors"]
    paths = [str(tmp_path / "strange.png"), str(normal / "0.png")]
    out = tmp_path / "out"
    options = ["--checkpoint", str(tmp_path / "moved"), "--out", str(out), "--num_workers", "0"]
    assert inspect([*paths, *options]) == 0
    with (out / "inspections.csv").open(newline="") as file:
        assert [row["verdict"] for row in csv.DictReader(file)] == ["anomalous", "normal"]


@pytest.mark.parametrize(
    ("out", "category", "product"),
    [("flange", "object", "flange"), ("flange", "bolt", "bolt"), ("a=b", "object", "object")],
)
def test_the_product_is_the_category_or_the_folder(out: str, category: str, product: str) -> None:
    assert product_of(Path(out), category) == product


def test_the_calibration_names_the_product(made: Path) -> None:
    origin = Calibration.read(made / "head.calibration.json").origin
    assert origin is not None
    assert origin.product == "model"


def test_the_head_beside_the_memory_counts(made: Path) -> None:
    model, alone = load(made, device="cpu"), load(made, device="cpu", arguments={"head_weight": 0.0}, calibration=None)
    strange = picture(60, 80, 3)
    assert model.predict(strange).score != pytest.approx(alone.predict(strange).score, abs=1e-3)
    assert any(name.startswith("head.adapter") for name in read_head_file(made / "head.safetensors").tensors)


def test_the_memory_can_be_replaced(made: Path) -> None:
    model = load(made, device="cpu", calibration=None)
    before = model.predict(picture(60, 80, 3)).score
    model.fit_few_shot([picture(60, 80, 3), picture(60, 80, 4)])
    assert model.predict(picture(60, 80, 3)).score < before


def test_a_method_that_takes_few_shot_images_stays_itself(normal: Path, tmp_path: Path) -> None:
    assert adapt(normal, tmp_path / "model", *NEIGHBOURS) == 0
    model = load(tmp_path / "model", device="cpu")
    plain = load(
        "NearestNeighbours",
        arguments={f"backbone.{name}": value for name, value in BACKBONE.items()} | {"layers": [2, 4]},
        few_shot=sorted(normal.iterdir()),
        device="cpu",
    )
    strange = picture(60, 80, 9)
    assert model.predict(strange).score == pytest.approx(plain.predict(strange).score, abs=1e-3)
    assert model.calibration is not None
    assert model.calibration.image.n == 5


def test_held_out_images_score_as_in_a_memory_without_them(normal: Path, tmp_path: Path) -> None:
    assert adapt(normal, tmp_path / "model", *NEIGHBOURS) == 0
    images = sorted(normal.iterdir())
    model = load(tmp_path / "model", device="cpu", calibration=None)
    scores = []
    for index, image in enumerate(images):
        model.fit_few_shot(images[:index] + images[index + 1 :])
        scores.append(model.predict(image).score)
    made = Calibration.read(tmp_path / "model" / "head.calibration.json")
    deviation = np.std(scores, ddof=1) * 3.746947 * np.sqrt(1 + 1 / 5)  # t of 4 degrees of freedom, 0.99
    assert made.image.value == pytest.approx(np.mean(scores) + deviation, rel=0.02)


PATTERNS = (0, 0, 1, 0, 1, 2, 0, 1, 3, 1, 4, 5)  # of 12 normal images; four patterns occur once


def write_parts(folder: Path, count: int, rng: np.random.Generator, light: float = 1.0, mesh: bool = False) -> Path:
    """Writes images of a product with six patterns, in the proportions of `PATTERNS`, or of a mesh; with noise."""
    folder.mkdir()
    for number in range(count):
        clean = picture(60, 80, PATTERNS[number % len(PATTERNS)])
        if mesh:
            clean = np.full_like(clean, 230)
            clean[::6] = clean[:, ::6] = 20
        noisy = light * (clean + rng.normal(0, 6, clean.shape))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:03d}.png")
    return folder


@pytest.mark.slow
def test_images_like_the_normal_ones_are_no_drift_and_others_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The pattern of an image that occurs once is in no memory without it; the memory of all images has all patterns.

    So four of 12 held-out scores are above those of all new images, without any change.
    """
    rng, model = np.random.default_rng(0), tmp_path / "model"
    assert adapt(write_parts(tmp_path / "normal", 12, rng), model, *NEIGHBOURS) == 0
    parts = {
        "same": write_parts(tmp_path / "same", 120, rng),
        "dark": write_parts(tmp_path / "dark", 36, rng, light=0.4),
        "mesh": write_parts(tmp_path / "mesh", 36, rng, mesh=True),
    }
    codes = {}
    for name, folder in parts.items():
        options = ["--checkpoint", str(model), "--out", str(tmp_path / f"{name}_out"), "--num_workers", "0"]
        capsys.readouterr()
        codes[name] = inspect([str(folder), *options])
        assert ("scores are higher" in capsys.readouterr().err) == (name != "same")
    assert codes == {"same": 0, "dark": 3, "mesh": 3}
    kept = Calibration.read(model / "head.calibration.json").good
    assert kept is not None
    with (tmp_path / "same_out/inspections.csv").open(newline="") as file:
        scores = [float(row["score"]) for row in csv.DictReader(file)]
    independent = Drift(replace(kept, held_out=False))
    for score in scores:
        independent.add(score)
    found = independent.finish()
    assert found is not None  # as if the held-out scores were those of other images
    assert found.side == "lower"


def test_an_adapted_model_is_adapted_again(made: Path, tmp_path: Path) -> None:
    write_pictures(tmp_path / "others", 4, seed=20)
    assert adapt(tmp_path / "others", tmp_path / "model", "--checkpoint", str(made)) == 0
    one, other = read_head_file(made / "head.safetensors"), read_head_file(tmp_path / "model" / "head.safetensors")
    assert all(np.array_equal(other.tensors[name], tensor) for name, tensor in one.tensors.items())
    assert not np.array_equal(one.memory["spread"], other.memory["spread"])


@pytest.mark.slow
def test_it_can_be_exported(made: Path, tmp_path: Path) -> None:
    assert export(load(made, device="cpu"), tmp_path / "model.pt2", "torch_export")["score"]["threshold"] is not None


def test_an_image_unlike_the_others_is_named(normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(normal, tmp_path / "normal")
    Image.fromarray(picture(60, 120, 5)).save(tmp_path / "normal" / "odd.png")
    assert adapt(tmp_path / "normal", tmp_path / "model", *NEIGHBOURS) == 0
    said = capsys.readouterr()
    assert "odd.png looks unlike the other normal images" in said.err
    assert "have different shapes" in said.err
    assert "6 normal images cannot guarantee a false-positive rate below 14.3 %" in said.out


@pytest.mark.parametrize(
    ("count", "message"),
    [(0, "the folder of normal images, has no image. Check the path."), (1, "one normal image is too few")],
)
def test_too_few_images_are_refused(
    count: int, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pictures(tmp_path / "normal", count)
    assert adapt(tmp_path / "normal", tmp_path / "model", *NEIGHBOURS) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_what_cannot_be_read_is_named(normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(normal, tmp_path / "normal")
    (tmp_path / "normal" / "3.png").write_bytes((normal / "3.png").read_bytes()[:100])
    assert adapt(tmp_path / "normal", tmp_path / "model", *NEIGHBOURS) == 2
    assert "3.png" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_model_that_is_there_stays(made: Path, normal: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (made / "head.safetensors").read_bytes()
    assert adapt(normal, made, *NEIGHBOURS) == 2
    assert "has a model already" in capsys.readouterr().err
    assert (made / "head.safetensors").read_bytes() == before


def test_a_method_that_compares_test_images_is_refused(
    normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert adapt(normal, tmp_path / "model", "--checkpoint", "MuSc", *MODEL_OPTIONS, "--model.layers=[2,4]") == 2
    assert "cannot score an image alone" in capsys.readouterr().err


@pytest.fixture(scope="module")
def patches(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A head whose fit takes no time."""
    return write_head(tmp_path_factory.mktemp("patches") / "head.ckpt", {}, "PatchLogit", {"layers": [2, 4]})


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    write_pictures(folder, 3)
    return folder


@pytest.fixture
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_head, "STEPS", 3)
    monkeypatch.setattr(fit_head, "DRAWN", 2)


def test_a_fitted_head_depends_on_the_seed_alone(few_steps: None, patches: Path, three: Path, tmp_path: Path) -> None:
    for name, seed in {"a": 0, "b": 0, "c": 1}.items():
        assert adapt(three, tmp_path / name, "--checkpoint", str(patches), "--fit_head", f"--seed={seed}") == 0
    a, b, c = (read_head_file(tmp_path / name / "head.safetensors") for name in "abc")
    given = torch.load(patches, weights_only=True)["state_dict"]["own"]
    assert all(torch.equal(tensor, b.tensors[name]) for name, tensor in a.tensors.items())
    for other in (given, c.tensors["head.own"]):
        assert not torch.equal(a.tensors["head.own"], other)
    assert (a.card.trained_on[-1].dataset, a.card.trained_on[-1].images) == ("pseudo-anomalies drawn onto these", 6)
    thresholds = [Calibration.read(tmp_path / name / "head.calibration.json").image.value for name in "abc"]
    assert thresholds[0] == thresholds[1] != thresholds[2]


def test_an_image_is_scored_by_a_head_and_a_memory_that_never_had_it(
    few_steps: None, patches: Path, three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fitted: list[set[int]] = []
    remembered: list[int] = []

    def noted(head: AnomalyMethod, drawn: fit_head.Drawn, images: Collection[int], seed: int) -> None:
        fitted.append(set(images))
        fit_head.fit(head, drawn, images, seed)

    filled = Predictor.fit_few_shot

    def counted(self: Predictor, images: Any, progress: Any = None) -> None:
        remembered.append(len(images))
        filled(self, images, progress)

    monkeypatch.setattr(inspection_adapt, "fit", noted)
    monkeypatch.setattr(Predictor, "fit_few_shot", counted)
    assert adapt(three, tmp_path / "model", "--checkpoint", str(patches), "--fit_head") == 0
    assert fitted == [{0, 1, 2}, {1, 2}, {0, 2}, {0, 1}]
    assert remembered == [3, 2, 2, 2]


def test_what_cannot_be_fitted_is_refused(normal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert adapt(normal, tmp_path / "model", *NEIGHBOURS, "--fit_head") == 2
    assert "this model has none that trains" in capsys.readouterr().err
    assert not (tmp_path / "model" / "head.safetensors").exists()
