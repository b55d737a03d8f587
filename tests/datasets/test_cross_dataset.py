"""Train on one dataset, test on others: the rules, the loaders, and a run through Lightning."""

import shutil
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning import LightningModule, Trainer
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.references import Pairing
from afclip_lightning.datasets.btad import BTAD
from afclip_lightning.datasets.cross_dataset import CrossDataset
from afclip_lightning.datasets.medical import Medical
from afclip_lightning.datasets.mvtec_layout import MVTecLayout
from afclip_lightning.datasets.synthetic import SYNTHETIC_TEST, SYNTHETIC_TRAIN, Synthetic
from afclip_lightning.types import Batch
from afclip_runtime.errors import DatasetError
from tests.support.layouts.btad import write_btad
from tests.support.layouts.medical import write_medical
from tests.support.layouts.mvtec import write_mvtec


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_mvtec(tmp_path / "parts", ["bolt", "nut", "pin"])
    write_btad(tmp_path / "btad")
    write_medical(tmp_path / "isic", "isic")
    return tmp_path


def parts(root: Path, *categories: str) -> MVTecLayout:
    return MVTecLayout(root / "parts", categories=list(categories) or None, num_workers=0)


def btad(root: Path, *categories: str) -> BTAD:
    return BTAD(root / "btad", categories=list(categories) or None, num_workers=0)


def test_loaders(root: Path) -> None:
    data = CrossDataset(btad(root), [parts(root), Medical("isic", root / "isic", num_workers=0)])
    data.connect(Preprocess(14))
    assert [part.preprocess for part in data.parts] == [Preprocess(14)] * 3
    data.check()
    data.setup("fit")
    assert [dataset.name for dataset in data.test_sets] == ["parts", "isic"]
    assert {s.dataset for batch in data.train_dataloader() for s in batch.samples} == {"btad"}
    for loaders in (data.test_dataloader(), data.val_dataloader(), data.predict_dataloader()):
        seen = [{s.dataset for batch in loader for s in batch.samples} for loader in loaders]
        assert seen == [{"parts"}, {"isic"}]


def test_one_test_set_need_not_be_a_list(root: Path) -> None:
    assert [dataset.name for dataset in CrossDataset(btad(root), parts(root)).test_sets] == ["parts"]
    assert parts(root).test_sets[0].name == "parts"


def test_few_shot_is_merged_and_the_same_as_alone(root: Path) -> None:
    merged = CrossDataset(parts(root, "nut"), [parts(root, "bolt", "pin"), btad(root)]).few_shot(1, seed=3)
    assert list(merged) == [("parts", "bolt"), ("parts", "pin"), ("btad", "01"), ("btad", "02"), ("btad", "03")]
    alone = parts(root).few_shot(1, seed=3)
    assert merged["parts", "pin"] == alone["parts", "pin"]
    with pytest.raises(DatasetError, match="isic/skin"):
        CrossDataset(parts(root), [btad(root), Medical("isic", root / "isic")]).few_shot(1, seed=3)


def test_category_in_train_and_test(root: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on and tested on: parts/nut\."):
        CrossDataset(parts(root, "nut", "bolt"), parts(root, "pin", "nut"))
    with pytest.raises(ValueError, match="parts/bolt, parts/nut, parts/pin"):
        CrossDataset(parts(root), [btad(root), parts(root)])
    CrossDataset(parts(root), parts(root), allow_train_test_overlap=True).check()
    CrossDataset(parts(root, "nut", "bolt"), parts(root, "pin")).check()


def test_one_folder_under_two_names(root: Path) -> None:
    (root / "link").symlink_to(root / "parts")
    mine = MVTecLayout(root / "link", name="mine", categories=["pin"], num_workers=0)
    with pytest.raises(
        DatasetError, match=r"link/pin/test/\w+/000\.png, of mine, is the same file as .*/000\.png, of parts\.\n"
    ):
        CrossDataset(parts(root), mine).setup("fit")
    CrossDataset(parts(root), mine).setup("test")  # nothing is trained on
    CrossDataset(parts(root, "nut"), mine).setup("fit")
    CrossDataset(parts(root), mine, allow_train_test_overlap=True).setup("fit")
    by_train_split = MVTecLayout(root / "parts", name="parts", train_split="train", num_workers=0)
    CrossDataset(by_train_split, mine).setup("fit")  # other images of the same products


def test_one_drawn_set_on_both_sides(tmp_path: Path) -> None:
    train, test = (Synthetic(tmp_path, categories=names) for names in (SYNTHETIC_TRAIN, SYNTHETIC_TEST))
    data = CrossDataset(train, [test], skip_missing=True)
    assert data.test_sets == [test]  # absent, but it will be drawn
    with pytest.raises(ValueError, match="trained on and tested on: synthetic/bottle"):
        CrossDataset(test, Synthetic(tmp_path))


def test_category_tested_on_twice(root: Path) -> None:
    with pytest.raises(ValueError, match=r"tested on twice: btad/02\."):
        CrossDataset(parts(root), [btad(root, "01", "02"), btad(root, "02", "03")])
    CrossDataset(parts(root), [btad(root, "01", "02"), btad(root, "03")]).check()
    with pytest.raises(ValueError, match="at least one"):
        CrossDataset(parts(root), [])


def test_absent_test_set(root: Path) -> None:
    absent, empty = BTAD(root / "nowhere"), Medical("kvasir", root / "empty")
    (root / "empty").mkdir()
    for dataset in (absent, empty):
        with pytest.raises(DatasetError, match=f"'{dataset.name}' was not found"):
            CrossDataset(parts(root), [Medical("isic", root / "isic"), dataset]).check()
    skipping = CrossDataset(parts(root), [absent, Medical("isic", root / "isic"), empty], skip_missing=True)
    with pytest.warns(UserWarning, match=r"left out.*btad \(.*nowhere\), kvasir \(.*empty\)"):
        skipping.check()
    assert [dataset.name for dataset in skipping.test_sets] == ["isic"]
    with pytest.raises(DatasetError, match="None of the test datasets is there: btad"):
        CrossDataset(parts(root), [absent, empty], skip_missing=True).check()


@pytest.mark.filterwarnings("ignore:Not on disk")
def test_skip_missing_hides_no_damage(root: Path) -> None:
    (root / "btad/02/test").rename(root / "btad/02/tset")
    with pytest.raises(DatasetError, match="btad/02/test"):
        CrossDataset(parts(root), [btad(root), Medical("isic", root / "isic")], skip_missing=True).check()
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        CrossDataset(MVTecLayout(root / "nowhere"), Medical("isic", root / "isic"), skip_missing=True).check()


def test_testing_does_not_need_the_training_set(root: Path) -> None:
    data = CrossDataset(MVTecLayout(root / "nowhere"), btad(root))
    data.setup("test")
    for action in (data.check, lambda: data.setup("fit")):
        with pytest.raises(DatasetError, match="nowhere does not exist"):
            action()


def test_prepare_data_reaches_every_set(root: Path) -> None:
    class Made(MVTecLayout):
        def prepare_data(self) -> None:
            write_mvtec(self.root, ["x"])

    data = CrossDataset(Made(root / "one"), Made(root / "two"), skip_missing=True)
    data.prepare_data()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data.setup("fit")
    assert len(data.test_sets) == 1


class Counts(LightningModule):
    """Counts its inputs; learns one number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: dict[str, set[str]] = {"train": set(), "0": set(), "1": set()}

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        self.seen["train"] |= {s.dataset for s in batch.samples}
        return (batch.image.mean() * self.weight) ** 2

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        assert batch.image.device == self.device
        self.seen[str(dataloader_idx)] |= {s.dataset for s in batch.samples}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_run_through_lightning(root: Path) -> None:
    data = CrossDataset(btad(root), [parts(root), Medical("isic", root / "isic", num_workers=0)])
    data.connect(Preprocess(14))
    model = Counts()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(accelerator="cpu", max_epochs=1, enable_model_summary=False, default_root_dir=root, **quiet)
    trainer.fit(model, data)
    trainer.test(model, data, verbose=False)
    assert model.seen == {"train": {"btad"}, "0": {"parts"}, "1": {"isic"}}


def test_configuration(root: Path) -> None:
    module = "afclip_lightning.datasets"
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(AnomalyData, "data")

    def made(data: dict[str, Any]) -> Any:
        return parser.instantiate_classes(parser.parse_object({"data": data})).data

    own = {"class_path": f"{module}.folder.Folder", "init_args": {"root": str(root), "normal_dir": "x", "name": "own"}}
    isic: dict[str, Any] = {
        "class_path": f"{module}.medical.Medical",
        "init_args": {"root": "data/isic", "subset": "isic"},
    }
    train = {"class_path": f"{module}.mvtec.MVTecAD", "init_args": {"categories": ["bottle"], "batch_size": 4}}
    cross = f"{module}.cross_dataset.CrossDataset"
    data = made({"class_path": cross, "init_args": {"train": train, "test": [own, isic]}})
    assert isinstance(data, CrossDataset)
    assert [(part.name, part.batch_size) for part in data.train_sets] == [("mvtec", 4)]
    assert [dataset.name for dataset in data.test_sets] == ["own", "isic"]
    second = {**isic, "init_args": {**isic["init_args"], "batch_size": 4}}
    several = {"train": [train, second], "test": own, "train_sampling": "evenly"}
    data = made({"class_path": cross, "init_args": several})
    assert [part.name for part in data.train_sets] == ["mvtec", "isic"]
    assert data.train_sampling == "evenly"
    alone = made({"class_path": cross, "init_args": {"train": train, "test": isic}})
    assert [dataset.name for dataset in alone.test_sets] == ["isic"]
    assert made(isic).name == "isic"


def test_alone_the_training_set_is_tested_under_another_name(tmp_path: Path) -> None:
    train = MVTecLayout(write_mvtec(tmp_path / "set", ["nut"]), name="set", num_workers=0)
    data = CrossDataset(train, BTAD(tmp_path / "absent"), skip_missing=True, seen_if_alone=True)
    with pytest.warns(UserWarning, match="NOT zero-shot"):
        data.check("fit")
    assert [part.name for part in data.test_sets] == ["set_seen"]
    assert {s.dataset for s in data.test_sets[0].samples("test")} == {"set_seen"}
    assert {s.dataset for s in train.samples("test")} == {"set"}
    write_btad(tmp_path / "absent")
    assert [part.name for part in data.test_sets] == ["btad"]


def test_no_dataset_to_train_on(root: Path) -> None:
    data = CrossDataset(test=[parts(root), btad(root)])
    assert [part.name for part in data.parts] == ["parts", "btad"]
    data.check()
    data.setup("test")
    data.connect(Preprocess(28))
    assert len(data.test_dataloader()) == 2
    with pytest.raises(DatasetError, match="There is no dataset to train on: name one as `train`"):
        data.setup("fit")
    absent = CrossDataset(test=[parts(root / "nowhere")], skip_missing=True, seen_if_alone=True)
    with pytest.raises(DatasetError, match="None of the test datasets is there"):
        absent.check()
    with pytest.raises(ValueError, match="at least one dataset"):
        CrossDataset(train=parts(root))


def test_several_training_sets(root: Path) -> None:
    data = CrossDataset([parts(root, "nut"), btad(root)], Medical("isic", root / "isic", num_workers=0))
    data.connect(Preprocess(14))
    assert [part.name for part in data.training_sets] == ["parts", "btad"]
    assert [part.name for part in data.parts] == ["parts", "btad", "isic"]
    data.check()
    data.setup("fit")
    seen = Counter(s.dataset for batch in data.train_dataloader() for s in batch.samples)
    assert seen == {"parts": 4, "btad": len(btad(root).samples("test"))}
    data.train_sampling = "evenly"
    evenly = Counter(s.dataset for batch in data.train_dataloader() for s in batch.samples)
    assert evenly.total() == seen.total()
    assert evenly["parts"] - evenly["btad"] in (0, 1)


def test_several_training_sets_keep_the_rules_of_one(root: Path) -> None:
    with pytest.raises(ValueError, match=r"trained on twice: parts/nut\. Give the datasets other names"):
        CrossDataset([parts(root, "nut"), parts(root)], btad(root))
    with pytest.raises(ValueError, match=r"trained on and tested on: btad/02\."):
        CrossDataset([parts(root), btad(root, "02")], btad(root, "01", "02"))
    CrossDataset([parts(root), btad(root, "02")], btad(root, "01")).setup("fit")
    other = MVTecLayout(root / "parts", batch_size=3)
    with pytest.raises(ValueError, match="batch_size must be the same for all that is trained on, got 8 of btad, 3 of"):
        CrossDataset([btad(root), other], Medical("isic", root / "isic"))
    with pytest.raises(DatasetError, match="nowhere does not exist"):
        CrossDataset([parts(root), MVTecLayout(root / "nowhere")], btad(root)).setup("fit")
    with pytest.raises(DatasetError, match="There is no dataset to train on"):
        CrossDataset([], btad(root)).setup("fit")


@pytest.mark.filterwarnings("ignore:Not on disk", "ignore:No other dataset")
def test_alone_all_the_training_sets_are_tested_as_seen(root: Path) -> None:
    data = CrossDataset([parts(root), btad(root)], BTAD(root / "no", name="b"), skip_missing=True, seen_if_alone=True)
    data.check()
    assert [part.name for part in data.test_sets] == ["parts_seen", "btad_seen"]
    data.pair(Pairing(1, 0))
    assert all(part.pairing for part in data.test_sets)


def test_a_picture_that_was_saved_again_is_refused_unless_allowed(root: Path) -> None:
    mine, other = MVTecLayout(root / "parts", categories=["nut", "pin"]), MVTecLayout(root / "other", num_workers=0)
    write_mvtec(root / "other", ["disc"])
    CrossDataset(mine, other).setup("fit")
    image = root / "other/disc/test/good/000.png"
    with Image.open(root / "parts/pin/test/good/000.png") as trained:
        trained.resize((80, 56), Image.Resampling.BICUBIC).save(image)
    with pytest.raises(
        DatasetError, match=r"1 image is tested on and nearly the same as one that is trained on:\n.*/000"
    ) as e:
        CrossDataset(mine, other).setup("fit")
    assert "near_copies: warn" in str(e.value)
    with pytest.warns(UserWarning, match="nearly the same picture"):
        CrossDataset(mine, other, near_copies="warn").setup("fit")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CrossDataset(mine, other, near_copies="ignore").setup("fit")
        CrossDataset(mine, other, allow_train_test_overlap=True).setup("fit")
        CrossDataset(mine, other).setup("test")
    shutil.copy(root / "parts/pin/test/good/000.png", image)
    with pytest.raises(
        DatasetError, match=r"1 image is trained on and tested on:\n.*byte for byte the same as .*parts\.\n"
    ):
        CrossDataset(mine, other, near_copies="ignore").setup("fit")
    second = MVTecLayout(root / "parts", name="second", categories=["bolt"])
    CrossDataset([second, btad(root)], MVTecLayout(root / "parts", categories=["nut"])).setup("fit")


def test_a_picture_that_is_normal_in_one_training_set_and_anomalous_in_another_is_refused(root: Path) -> None:
    mine, tested = MVTecLayout(root / "parts", categories=["nut"]), MVTecLayout(root / "parts", categories=["pin"])
    write_mvtec(root / "other", ["disc"])
    other = MVTecLayout(root / "other")
    shutil.copy(root / "parts/nut/test/good/000.png", root / "other/disc/test/good/000.png")
    CrossDataset([mine, other], tested).setup("fit")
    shutil.copy(root / "parts/nut/test/good/000.png", root / "other/disc/test/crack/000.png")
    data = CrossDataset([mine, other], tested, allow_train_test_overlap=True)
    with pytest.raises(DatasetError, match=r"1 image is normal in one training dataset and anomalous in another:\n"):
        data.setup("fit")
    data.setup("test")
