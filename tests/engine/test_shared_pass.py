"""Several heads in one pass: each has the same numbers as alone, and the backbone encodes each image once."""

import csv
import json
from pathlib import Path

import pytest

from afclip_lightning.backbones import store_files
from afclip_lightning.cli import features
from afclip_lightning.engine.app import main
from tests.support.cases import command_line
from tests.support.commands import arguments
from tests.support.feature_files import calls, images, make_distinct

pytestmark = pytest.mark.slow

CLIP = """\
model:
  class_path: CLIP
  init_args:
    backbone: {model: small.json, weights: random, image_size: 28}
"""


def numbers(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


def assert_same(path: Path, other: Path, limit: float = 1e-5) -> None:
    rows, others = numbers(path), numbers(other)
    assert len(rows) == len(others) > 1
    for row, beside in zip(rows, others, strict=True):
        for name, value in row.items():
            if name.startswith(("image_", "pixel_")) and value:
                assert float(value) == pytest.approx(float(beside[name]), abs=limit), (row["category"], name)
            else:
                assert value == beside[name]


@pytest.fixture
def heads(folder: Path) -> Path:
    """Trains two heads, one of which needs the V-V path, and writes the config of a method that trains nothing."""
    make_distinct(folder)
    assert main(["fit", *arguments("afclip_visa", out="afclip")]) == 0
    vv = arguments("anomalyclip_visa", out="anomalyclip", **dict(command_line("AnomalyCLIP")))
    assert main(["fit", *vv]) == 0
    Path("clip.yaml").write_text(CLIP)
    return folder


OTHERS = ["--heads.anomalyclip=anomalyclip", "--heads.clip=clip.yaml"]


def test_one_pass_gives_the_numbers_of_each_alone_with_a_store_and_without(
    heads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [*arguments("afclip_visa", out="together"), "--ckpt_path=afclip/head.ckpt", *OTHERS]
    passes = calls(monkeypatch)
    assert main(["test", *given]) == 0
    tested = len(numbers(heads / "together/scores.csv"))
    assert sum(passes) == tested > 40
    assert_same(heads / "together/results.csv", heads / "afclip/results.csv")
    assert_same(heads / "together/results_anomalyclip.csv", heads / "anomalyclip/results.csv")
    assert len(numbers(heads / "together/scores_clip.csv")) == tested
    for name, path in (("", "afclip/head.ckpt"), ("_anomalyclip", "anomalyclip/head.ckpt"), ("_clip", None)):
        conditions = json.loads((heads / f"together/results{name}.json").read_text())["conditions"]
        assert conditions["checkpoint"] == path
        assert path is None or len(conditions["checkpoint_fingerprint"]) == 16
    logged = next((heads / "together").glob("log*/metrics.csv")).read_text().splitlines()[0].split(",")
    assert {"test/mvtec/mean/image_auroc", "test/clip/mvtec/mean/image_auroc"} <= set(logged)

    cache = ["--features.cache=store", "--features.dtype=float32"]
    for run in ("first", "second"):
        passes = calls(monkeypatch)
        given = [*arguments("afclip_visa", out=run), "--ckpt_path=afclip/head.ckpt", *OTHERS, *cache]
        assert main(["test", *given]) == 0
        assert sum(passes) == (len(images(heads / "store")) if run == "first" else 0)
        assert_same(heads / run / "results_anomalyclip.csv", heads / "anomalyclip/results.csv")


def test_build_makes_what_all_heads_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distinct(folder)
    Path("clip.yaml").write_text(CLIP)
    given = ["--heads.clip=clip.yaml", "--features.cache=store"]
    assert features.main(["build", *arguments("afclip_visa"), *given]) == 0
    taps = store_files.info(folder / "store")[0]["taps"]
    assert taps["embedding"]["images"] < taps["layer-03"]["images"]  # the other head's, of the tested images alone
    passes = calls(monkeypatch)
    assert main(["fit", *arguments("afclip_visa", out="run"), *given, "--test_before_fit=true"]) == 0
    assert not passes


def test_training_between_two_shared_passes_is_as_without_them(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_distinct(folder)
    Path("clip.yaml").write_text(CLIP)
    taps = {"model__layers": "[1,2]", "trainer__max_epochs": "2"}  # the other head taps the last block too
    assert main(["fit", *arguments("afclip_visa", out="alone", **taps)]) == 0
    given = ["--heads.clip=clip.yaml", "--test_before_fit=true", "--features.cache=store", "--features.dtype=float32"]
    passes = calls(monkeypatch)
    assert main(["fit", *arguments("afclip_visa", out="beside", **taps), *given]) == 0
    assert sum(passes) == len(images(folder / "store"))  # training reads what its own head needs
    # trained on features of other batches, thus off by roundings that Adam makes larger: some pixels change places
    assert_same(folder / "beside/results.csv", folder / "alone/results.csv", limit=1e-3)
    assert_same(folder / "beside/results_clip.csv", folder / "beside/results_untrained_clip.csv")


def test_heads_that_cannot_share_a_pass_are_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("clip.yaml").write_text(CLIP)
    Path("other.yaml").write_text(CLIP.replace("28", "56"))
    for option, problem in (
        ("--heads.clip=other.yaml", "image_size: 56 the other, 28 one. Test them one by one"),
        ("--heads.main=clip.yaml", "'main' is the name of the run's own head"),
        ("--heads.clip=nothing.ckpt", "nothing.ckpt does not exist"),
    ):
        assert main(["test", *arguments("afclip_visa", out="x"), option]) == 2
        assert problem in capsys.readouterr().err
    assert main(["predict", *arguments("afclip_visa", out="x"), *OTHERS]) == 2
    assert "predict writes the maps of one method" in capsys.readouterr().err
