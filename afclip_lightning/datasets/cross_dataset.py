"""Training on one or several datasets and testing on others: the protocol of zero-shot anomaly detection."""

import copy
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Literal

from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.lightning_base import rank_zero_warn
from afclip_lightning.data.references import Pairing
from afclip_lightning.types import Batch, Sample, TrainSampling
from afclip_runtime.errors import DatasetError

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

NearCopies = Literal["refuse", "warn", "ignore"]


class CrossDataset(AnomalyData):
    """Datasets for training, which are used together, and other datasets for testing, with one test loader each.

    Args:
        train: Training datasets; none for a method without training. Testing a checkpoint does not read them. Each
            dataset keeps its class names, masks and white levels. A batch may contain images of all of them.
        test: Test datasets, in the order of the loaders.
        skip_missing: Leave out test datasets that are not on disk, with a warning that names them. At least one must
            remain, and an incomplete dataset is still an error.
        seen_if_alone: If `skip_missing` leaves no test dataset, test on the training datasets under the names
            `<name>_seen`, with a warning. This is not zero-shot, and only shows that the head has learnt.
        allow_train_test_overlap: Allow a category to be both trained on and tested on, which is no longer zero-shot.
        near_copies: Reaction of `fit` to a test image that shows a training picture: saved again, smaller, brighter or
            cropped (see `data.picture_hash`). `ignore` skips the search. Equal files are always refused.
        train_sampling: Sampling of several training datasets. `by_size` shows every image once per epoch, as if they
            were one dataset. `evenly` shows the same total number of images, equally many of each dataset: a large
            dataset is spread over several epochs, and a small one is repeated.

    Raises:
        ValueError: No test dataset is given; a category is trained on twice, tested on twice, or both trained on and
            tested on; or training datasets have different batch sizes.
    """

    def __init__(
        self,
        # A single dataset comes first in the union, so that `--data.train.root` applies to it. It is no list, because
        # unions of the same members are equal in any order, and the parser would use the one of `test`.
        train: AnomalyDataModule | Sequence[AnomalyDataModule] | None = None,
        test: list[AnomalyDataModule] | AnomalyDataModule | None = None,
        skip_missing: bool = False,
        seen_if_alone: bool = False,
        allow_train_test_overlap: bool = False,
        train_sampling: TrainSampling = "by_size",
        near_copies: NearCopies = "refuse",
    ) -> None:
        super().__init__()
        self.train_sets = _listed(train)
        self.all_test_sets = _listed(test)
        self.skip_missing = skip_missing
        self.seen_if_alone = seen_if_alone
        self.allow_train_test_overlap = allow_train_test_overlap
        self.train_sampling = train_sampling
        self.near_copies: NearCopies = near_copies
        if not self.all_test_sets:
            raise ValueError("test must name at least one dataset")
        sizes = {dataset.batch_size: dataset.name for dataset in self.train_sets}
        if len(sizes) > 1:
            found = ", ".join(f"{size} of {name}" for size, name in sizes.items())
            raise ValueError(f"batch_size must be the same for all that is trained on, got {found}")
        trained, tested = _claims(self.train_sets, "trained"), _claims(self.all_test_sets, "tested")
        if not allow_train_test_overlap and (both := tested & trained):
            raise ValueError(
                f"trained on and tested on: {_names(both)}. Zero-shot results come from other datasets than the one "
                "trained on; to do this all the same, set allow_train_test_overlap: true."
            )

    @property
    def test_sets(self) -> list[AnomalyDataModule]:
        """Returns the test datasets in use: with `skip_missing` those on disk, otherwise all.

        Raises:
            DatasetError: No test dataset is left.
        """
        absent = self._absent()
        if len(absent) == len(self.all_test_sets):
            if self.seen_if_alone and self.train_sets:
                return [_seen(dataset) for dataset in self.train_sets]
            raise DatasetError(
                f"None of the test datasets is there: {_places(absent)}.\ndata/README.md says how to get them. To see "
                "the project work without any dataset: make demo."
            )
        return [dataset for dataset in self.all_test_sets if dataset not in absent]

    @property
    def parts(self) -> list[AnomalyDataModule]:
        """Returns the training datasets and all the test datasets, whether or not they are on disk."""
        return [*self.train_sets, *self.all_test_sets]

    @property
    def training_sets(self) -> list[AnomalyDataModule]:
        """Returns the training datasets.

        Raises:
            DatasetError: There is no training dataset.
        """
        if not self.train_sets:
            raise DatasetError("There is no dataset to train on: name one as `train` of CrossDataset.")
        return self.train_sets

    def check(self, stage: str = "fit") -> None:
        """Checks the training datasets, for `fit` only, and the test datasets in use. It is fast and reads no image.

        Raises:
            DatasetError: A folder is missing. The message says what it should contain and how to get it.
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
        for dataset in self.train_sets:
            dataset.pairing = pairing  # for `seen_if_alone`, which tests on copies of them
        for dataset in self.test_sets:
            dataset.pair(pairing)

    def prepare_data(self) -> None:
        """Calls `prepare_data` of every dataset that is read."""
        trains = self.trainer is None or self.trainer.state.fn == "fit"
        for dataset in (*(self.train_sets if trains else []), *self.all_test_sets):
            dataset.prepare_data()

    def setup(self, stage: str) -> None:
        """Checks the datasets of the stage: the training datasets for `fit` only, the test datasets in use always.

        Raises:
            DatasetError: A dataset is not as it must be, a picture is both trained on and tested on, a picture has two
                labels in two training datasets, or there is no training dataset.
        """
        trained = self.training_sets if stage == "fit" else []
        for dataset in self._read_by(stage):
            dataset.setup(stage)
        self._refuse_contrary_labels(trained)
        if trained and not self.allow_train_test_overlap:
            self._refuse_copies()

    def _refuse_contrary_labels(self, sets: Sequence[AnomalyDataModule]) -> None:
        """Checks the labels of shared images: they may be trained on twice, but not as normal and as anomalous."""
        from afclip_lightning.data.copies import same_files, told

        for one, other in combinations(sets, 2):
            shared = same_files(one.samples(one.train_split), other.samples(other.train_split))
            if contrary := [pair for pair in shared if {pair.first.label, pair.second.label} == {0, 1}]:
                raise DatasetError(
                    f"{_count(len(contrary))} normal in one training dataset and anomalous in another:\n"
                    f"{told(contrary)}\nLeave one of the datasets out, or correct its labels."
                )

    def _refuse_copies(self) -> None:
        """Checks for pictures that are trained on and tested on under two names. Equal names are found before."""
        from afclip_lightning.data.copies import near_copies, same_files, told
        from afclip_lightning.distributed import agreed, rank

        absent = self._absent()
        trained = [sample for dataset in self.train_sets for sample in dataset.samples(dataset.train_split)]
        tested = [s for dataset in self.all_test_sets if dataset not in absent for s in dataset.samples("test")]
        if same := same_files(trained, tested):
            raise DatasetError(
                f"{_count(len(same))} trained on and tested on:\n{told(same)}\n"
                "Train on another dataset, or set allow_train_test_overlap: true."
            )
        if self.near_copies == "ignore":
            return
        near = agreed(near_copies(trained, tested, progress=sys.stderr.isatty()) if rank() == 0 else [])
        if not near:
            return
        said = f"{_count(len(near))} tested on and nearly the same as one that is trained on:\n{told(near)}"
        if self.near_copies == "warn":
            rank_zero_warn(said)
            return
        raise DatasetError(
            f"{said}\nLook at these pairs. Test on another dataset or leave these images out; if they are other "
            "pictures of one product, near_copies: warn goes on all the same (--data.near_copies warn)."
        )

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
        """Yields the datasets of the stage, training datasets first. Warns of test datasets that are left out."""
        if stage == "fit":
            yield from self.train_sets
        yield from self.test_sets
        if absent := self._absent():
            rank_zero_warn(f"Not on disk and left out, since skip_missing is set: {_places(absent)}.")
            if len(absent) == len(self.all_test_sets):
                rank_zero_warn("No other dataset is there: testing on the training datasets, which is NOT zero-shot.")


def _count(images: int) -> str:
    return "1 image is" if images == 1 else f"{images} images are"


def _listed(sets: AnomalyDataModule | Sequence[AnomalyDataModule] | None) -> list[AnomalyDataModule]:
    return [] if sets is None else [sets] if isinstance(sets, AnomalyDataModule) else list(sets)


def _seen(dataset: AnomalyDataModule) -> AnomalyDataModule:
    seen = copy.copy(dataset)
    seen.name = f"{seen.name}_seen"
    return seen


def _claims(sets: list[AnomalyDataModule], used: str) -> set[tuple[str, str]]:
    """Returns pairs of dataset name and category.

    Raises:
        ValueError: Two datasets have a pair in common.
    """
    claimed: set[tuple[str, str]] = set()
    for dataset in sets:
        # The chosen names are not checked here: `check` of the dataset does so.
        own = {(dataset.name, category) for category in dataset.categories or dataset.find_categories()}
        if twice := claimed & own:
            raise ValueError(f"{used} on twice: {_names(twice)}. Give the datasets other names or categories.")
        claimed |= own
    return claimed


def _places(datasets: Iterable[AnomalyDataModule]) -> str:
    return ", ".join(f"{dataset.name} ({dataset.root})" for dataset in datasets)


def _names(claims: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{dataset}/{category}" for dataset, category in sorted(claims))
