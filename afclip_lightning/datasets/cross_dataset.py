"""Train on one dataset, test on others: the protocol of zero-shot anomaly detection."""

import copy
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.lightning_base import rank_zero_warn
from afclip_lightning.data.references import Pairing
from afclip_lightning.errors import DatasetError
from afclip_lightning.types import Batch, Sample

if TYPE_CHECKING:
    from torch.utils.data import DataLoader


class CrossDataset(AnomalyData):
    """One dataset to train on and others to test on, one test loader each.

    Args:
        train: The dataset to train on; none for a method that trains nothing. Testing a checkpoint does not read it.
        test: The datasets to test on, in the order of the loaders.
        skip_missing: Leaves out the test datasets that are not on disk, with a warning that names them. One must
            remain, and a dataset that is there but incomplete is still an error.
        seen_if_alone: Where `skip_missing` leaves no test dataset, tests on the training dataset under the name
            `<name>_seen`, with a warning: that is not zero-shot, and says only that the head has learnt.
        allow_train_test_overlap: Allows a category to be trained on and tested on, which is no longer zero-shot.

    Raises:
        ValueError: No test dataset is given, a category is tested on twice, or it is trained on and tested on.
    """

    def __init__(
        self,
        train: AnomalyDataModule | None = None,
        test: list[AnomalyDataModule] | AnomalyDataModule | None = None,
        skip_missing: bool = False,
        seen_if_alone: bool = False,
        allow_train_test_overlap: bool = False,
    ) -> None:
        super().__init__()
        self.train_set = train
        self.all_test_sets = list(test) if isinstance(test, (list, tuple)) else [test] if test else []
        self.skip_missing = skip_missing
        self.seen_if_alone = seen_if_alone
        self.allow_train_test_overlap = allow_train_test_overlap
        if not self.all_test_sets:
            raise ValueError("test must name at least one dataset")
        tested: set[tuple[str, str]] = set()
        for dataset in self.all_test_sets:
            if twice := tested & _claims(dataset):
                raise ValueError(f"tested on twice: {_names(twice)}. Give the datasets other names or categories.")
            tested |= _claims(dataset)
        if train and not allow_train_test_overlap and (both := tested & _claims(train)):
            raise ValueError(
                f"trained on and tested on: {_names(both)}. Zero-shot results come from other datasets than the one "
                "trained on; to do this all the same, set allow_train_test_overlap: true."
            )

    @property
    def test_sets(self) -> list[AnomalyDataModule]:
        """Returns the test datasets in use: those on disk with `skip_missing`, else all.

        Raises:
            DatasetError: None is left.
        """
        absent = self._absent()
        if len(absent) == len(self.all_test_sets):
            if self.seen_if_alone and self.train_set:
                seen = copy.copy(self.train_set)
                seen.name = f"{seen.name}_seen"
                return [seen]
            raise DatasetError(
                f"None of the test datasets is there: {_places(absent)}.\ndata/README.md says how to get them. To see "
                "the project work without any dataset: make demo."
            )
        return [dataset for dataset in self.all_test_sets if dataset not in absent]

    @property
    def parts(self) -> list[AnomalyDataModule]:
        """Returns the training dataset and all the test datasets, whether or not they are on disk."""
        return [*self._trained, *self.all_test_sets]

    @property
    def training_set(self) -> AnomalyDataModule:
        """Returns the training dataset.

        Raises:
            DatasetError: There is none.
        """
        if self.train_set is None:
            raise DatasetError("There is no dataset to train on: name one as `train` of CrossDataset.")
        return self.train_set

    @property
    def _trained(self) -> list[AnomalyDataModule]:
        return [] if self.train_set is None else [self.train_set]

    def check(self, stage: str = "fit") -> None:
        """Checks the training dataset, for `fit` only, and the test datasets in use; cheap, reads no image.

        Raises:
            DatasetError: Says which folder was looked for, what it should contain and how to get it.
        """
        for dataset in self._read_by(stage):
            dataset.check(stage)

    def few_shot(self, k_shot: int, seed: int) -> dict[tuple[str, str], list[Sample]]:
        """Returns k normal training images per tested category: `(dataset, category)` to samples, sorted by path.

        Raises:
            DatasetError: A category has fewer normal training images than `k_shot`.
        """
        return {key: drawn for dataset in self.test_sets for key, drawn in dataset.few_shot(k_shot, seed).items()}

    def pair(self, pairing: Pairing) -> None:
        """Gives each image of the test datasets in use references from its own category.

        Raises:
            DatasetError: A category has too few images.
        """
        for dataset in self._trained:
            dataset.pairing = pairing  # for `seen_if_alone`, which tests on a copy of it
        for dataset in self.test_sets:
            dataset.pair(pairing)

    def prepare_data(self) -> None:
        """Lets every dataset that is read make what it makes on disk."""
        trains = self.trainer is None or self.trainer.state.fn == "fit"
        for dataset in (*(self._trained if trains else []), *self.all_test_sets):
            dataset.prepare_data()

    def setup(self, stage: str) -> None:
        """Checks what the stage reads: the training dataset for `fit` only, the test datasets in use always.

        Raises:
            DatasetError: A dataset is not as it must be, or an image is trained on and tested on under two names; or
                there is none to train on.
        """
        trained = self.training_set if stage == "fit" else None
        for dataset in self._read_by(stage):
            dataset.setup(stage)
        if trained and not self.allow_train_test_overlap:
            self._refuse_shared_images(trained)

    def _refuse_shared_images(self, train: AnomalyDataModule) -> None:
        """The names of datasets and categories are compared before; this finds one folder under two names."""
        trained = {sample.image_path.resolve() for sample in train.samples(train.train_split)}
        absent = self._absent()
        for dataset in (dataset for dataset in self.all_test_sets if dataset not in absent):
            for sample in dataset.samples("test"):
                if sample.image_path.resolve() in trained:
                    raise DatasetError(
                        f"{sample.image_path}: is trained on, as of {train.name}, and tested on, as of "
                        f"{dataset.name}. Train on another dataset, or set allow_train_test_overlap: true."
                    )

    def train_dataloader(self) -> "DataLoader[Batch]":
        """Returns the shuffled loader of the training dataset."""
        return self.training_set.train_dataloader()

    def val_dataloader(self) -> "list[DataLoader[Batch]]":
        """Returns one loader per test dataset in use."""
        return self.test_dataloader()

    def test_dataloader(self) -> "list[DataLoader[Batch]]":
        """Returns one loader per test dataset in use."""
        return [dataset.test_dataloader() for dataset in self.test_sets]

    def predict_dataloader(self) -> "list[DataLoader[Batch]]":
        """Returns one loader per test dataset in use."""
        return self.test_dataloader()

    def _absent(self) -> list[AnomalyDataModule]:
        return [dataset for dataset in self.all_test_sets if dataset.is_absent()] if self.skip_missing else []

    def _read_by(self, stage: str) -> Iterator[AnomalyDataModule]:
        """Yields what the stage reads, the training dataset first, and warns of the test datasets that are left out."""
        if stage == "fit":
            yield from self._trained
        yield from self.test_sets
        if absent := self._absent():
            rank_zero_warn(f"Not on disk and left out, since skip_missing is set: {_places(absent)}.")
            if len(absent) == len(self.all_test_sets):
                rank_zero_warn("No other dataset is there: testing on the training dataset, which is NOT zero-shot.")


def _claims(dataset: AnomalyDataModule) -> set[tuple[str, str]]:
    # The chosen names as they stand: whether the dataset has such categories is for its check to say.
    return {(dataset.name, category) for category in dataset.categories or dataset.find_categories()}


def _places(datasets: Iterable[AnomalyDataModule]) -> str:
    return ", ".join(f"{dataset.name} ({dataset.root})" for dataset in datasets)


def _names(claims: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{dataset}/{category}" for dataset, category in sorted(claims))
