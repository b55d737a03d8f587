"""MuSc: the unlabelled test images of a category score each other."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.mutual_scoring import MutualScoring, nearest_distances, normalise_planes, similarities
from afclip_lightning.data.whole_test_set import CategoryImages, WholeTestSet, share
from afclip_lightning.methods.base import AnomalyMethod, UsesTestSet
from afclip_lightning.types import AnomalyPrediction, Batch, ClipFeatures, Sample
from afclip_runtime.errors import DatasetError, UserError

Key = tuple[str, str, Path]  # dataset, category, image
Encoded = tuple[list[Sample], ClipFeatures]  # a batch
WINDOWS_REASON = "rscin_windows asks for that many similar ones"


class Scored(NamedTuple):
    """The result of an image, which is known when its category is scored.

    Attributes:
        patch_map: `[h, w]`, float32, in the CPU's memory.
        pred_score: Image-level anomaly score.
    """

    patch_map: Tensor
    pred_score: float


def constrain(scores: Tensor, embeddings: Tensor, windows: Sequence[int]) -> Tensor:
    """Returns the image scores `[I]` of a category, each averaged with those of the most similar images, in [0, 1].

    Scores are scaled to [0, 1] over the category first. If all are equal, they are 0.

    Args:
        scores: `[I]`.
        embeddings: `[I, D]`, image embeddings, L2-normalised.
        windows: Numbers of images, itself included, that are averaged. The result is the mean of these averages.

    Reference: MuSc, RsCIN.
    Differs: equal scores become 0, where the official code gives NaN.
    """
    scaled = (scores - scores.min()) / (scores.max() - scores.min()).clamp(min=torch.finfo(scores.dtype).tiny)
    cosines = embeddings @ embeddings.T
    averages = []
    for window in windows:
        weights, neighbours = cosines.topk(window, dim=1)
        averages.append((weights * scaled[neighbours]).sum(1) / weights.sum(1))
    return torch.stack(averages).mean(0)


class MuSc(AnomalyMethod):
    """MuSc: mutual scoring of the unlabelled test images of a category; no training, no prompt, no normal image.

    A patch is normal if most other images have a similar patch. A score therefore needs all test images of its
    category. At the start of `validate`, `test` or `predict`, the test images of the data module are scored category by
    category, without labels and masks. The results are used when the batch of an image comes. The work depends on the
    test set, so limits on the number of batches do not shorten it.

    Several processes each score whole categories, distributed by their cost, and exchange the results. More processes
    than categories do not help. A process that is done waits for at most the `timeout` of the strategy.

    Cost of a category of I images with N patches of C channels, L blocks and R scales: I² N² C L R operations. This is
    half the cost of all ordered pairs, because the product of two blocks of images gives the nearest patches in both
    directions. For ViT-L/14 at 518 pixels, 4 blocks and 3 scales it is 2.3 · 10^10 · I². From I = 40 on, that is more
    than the backbone's 10^12 per image. The features (4 L I N C bytes, 22 MB per image) and the distances of a block (4
    R I² N bytes, 16 kB per pair) are on disk. With m images per block, I² / 2m images are read back per tapped block,
    for all scales at once. Two blocks and their similarities are in memory, within `block_mb`, and the distances of one
    image, 4 I N bytes. Each test image keeps 4 N bytes.

    Differs: subsets are drawn without looking at the kinds of defects. The official code distributes these evenly.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        scales: Odd window sides of the aggregation, in patches. 1 is the patch itself.
        interval: Share of the other images with the lowest distances. The score of a patch is the mean over them.
        subsets: Number of parts of a category that are scored separately. Image scores are still constrained over the
            whole category. Cost and disk space fall with the number.
        seed: Seed of the division.
        rscin_windows: Numbers of most similar images, itself included, that an image score is averaged over (RsCIN): 1,
            2, 3 for MVTec AD and 1, 8, 9 for VisA. Empty takes the maximum of the map.
        block_mb: Memory for features and similarities on the device, in MiB. Results do not depend on it. More memory
            reads less back from the disk. On a CPU, few images per block are faster because their similarities fit into
            the cache.
        feature_dir: Folder of the features while a category is scored. The run folder by default.

    Attributes:
        known: Results of the running evaluation per image.

    Reference: MuSc (Li et al., ICLR 2024); subsets as in the official code.
    """

    title = "MuSc"
    paper = "li2024musc"
    official_code = "xrli-U/MuSc"
    parity = "equal to the official code"
    uses_test_set: ClassVar[UsesTestSet] = "always"

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (6, 12, 18, 24),
        scales: Sequence[int] = (1, 3, 5),
        interval: float = 0.3,
        subsets: int = 1,
        seed: int = 0,
        rscin_windows: Sequence[int] = (1, 2, 3),
        block_mb: int = 1024,
        feature_dir: Path | None = None,
    ) -> None:
        super().__init__(backbone, backbone.spec(layers, image_embedding=True), optimizer=None)
        self.mutual = MutualScoring(backbone.grid, backbone.image_size, scales, interval)
        if subsets < 1:
            raise ValueError(f"subsets must be at least 1, got {subsets}")
        if any(window < 1 for window in rscin_windows):
            raise ValueError(f"rscin_windows must be at least 1 each, got {list(rscin_windows)}")
        self.subsets = subsets
        self.seed = seed
        self.rscin_windows = tuple(rscin_windows)
        self.shape = math.prod(backbone.grid), backbone.vision.width  # N, C
        self.block = _images_in(block_mb, *self.shape, len(self.mutual.scales))
        self.feature_dir = feature_dir
        self.known: dict[Key, Scored] = {}

    def extract(self, batch: Batch) -> ClipFeatures:
        """Returns no tokens, because `score` looks up stored results: the backbone encodes each image once."""
        return ClipFeatures(tokens=(), grid=self.backbone.grid)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns the stored results of the images of a batch.

        Raises:
            DatasetError: An image was not among the test images when the evaluation began.
        """
        found = []
        for sample in batch.samples:
            if _key(sample) not in self.known:
                raise DatasetError(
                    f"{sample.image_path}: MuSc has no results for this image, since it was not in the test set of "
                    f"{sample.dataset}/{sample.category} when the evaluation began. Images are scored by each other: "
                    "use Trainer.validate, test or predict with a data module that has them all."
                )
            found.append(self.known[_key(sample)])
        scores = torch.tensor([of.pred_score for of in found], device=self.device)
        patch_maps = torch.stack([of.patch_map for of in found]).to(self.device)
        return AnomalyPrediction(scores, self.mutual.upsampled(patch_maps))

    def observe(self, test_set: WholeTestSet) -> dict[Key, Scored]:
        """Returns the mutual scores of the images of this process's categories.

        Raises:
            DatasetError: A category has too few images.
            UserError: The features do not fit on the disk.
        """
        categories = test_set.categories()
        for key, images in categories.items():  # also those of other processes: all stop before the first image is read
            reason = f"images are scored by each other, and subsets is {self.subsets}"
            _require("/".join(key), len(images), 2 * self.subsets, reason)
            _require("/".join(key), len(images), max(self.rscin_windows, default=0), WINDOWS_REASON)
        mine = share({key: len(images) ** 2 for key, images in categories.items()})
        folder = self.feature_dir or Path(self.trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(
            total=sum(len(categories[key]) for key in mine) * (1 + len(self.spec.layers)),  # to read, to score
            desc="mutual scoring",
            disable=None if self.trainer.is_global_zero and self.trainer.progress_bar_callback else True,
        ) as bar:
            found: dict[Key, Scored] = {}
            for key in mine:
                bar.set_postfix_str("/".join(key))
                found |= self.score_category(self._subsets(categories[key]), "/".join(key), folder, bar.update)
        return found

    def take_observed(self, observed: Sequence[dict[Key, Scored]]) -> None:
        """Stores the results of all processes."""
        self.known = {key: scored for part in observed for key, scored in part.items()}

    def on_evaluation_end(self) -> None:
        """Also drops the results of the images."""
        super().on_evaluation_end()
        self.known = {}

    def _subsets(self, images: CategoryImages) -> Iterator[tuple[int, Iterable[Encoded]]]:
        """Yields the subsets of a category, each with its number of images."""
        category = images.samples[0].category
        order = np.random.default_rng([self.seed, *category.encode()]).permutation(len(images))
        for first in range(self.subsets):
            chosen = sorted(order[first :: self.subsets].tolist())
            yield len(chosen), self._encoded(images.loader(chosen))

    def _encoded(self, loader: Iterable[Batch]) -> Iterator[Encoded]:
        for batch in loader:
            with self.trainer.precision_plugin.forward_context():
                features = self.features_of(batch.to(self.device))
            yield batch.samples, features

    def score_category(
        self,
        subsets: Iterable[tuple[int, Iterable[Encoded]]],
        name: str,
        folder: Path,
        step: Callable[[int], object] = lambda _: None,
    ) -> dict[Key, Scored]:
        """Returns the mutual scores of the images of a category.

        Args:
            subsets: Per subset, the maximum number of its images, and the readable images, batch by batch.
            name: Name of the category, for errors.
            folder: Folder of the features while the category is scored.
            step: Called with the number of images that were read, or that were scored at a layer.

        Raises:
            DatasetError: There are too few images.
            UserError: The features do not fit on the disk.
        """
        samples: list[Sample] = []
        maps, embeddings = [], []
        for size, batches in subsets:
            with TemporaryDirectory(prefix="musc-", dir=folder) as place:
                features = _on_disk(Path(place) / "features", len(self.spec.layers), size, *self.shape)
                count = 0
                for read, encoded in batches:
                    for layer, tokens in zip(features, encoded.tokens, strict=True):
                        layer[count : count + len(read)] = normalise_planes(tokens).cpu()
                    assert encoded.image_embedding is not None  # requested by the spec
                    embeddings.append(F.normalize(encoded.image_embedding.float(), dim=-1).cpu())
                    samples += read
                    count += len(read)
                    step(len(read))
                _require(name, count, 2, "images are scored by each other")  # files may have been skipped
                maps.append(self._mutual_maps(features[:, :count], Path(place), step))
        _require(name, len(samples), max(self.rscin_windows, default=0), WINDOWS_REASON)
        patch_maps = torch.cat(maps).unflatten(1, self.backbone.grid)
        scores = torch.cat([self.mutual.upsampled(one[None]).amax((1, 2)) for one in patch_maps])
        if self.rscin_windows:
            scores = constrain(scores, torch.cat(embeddings), self.rscin_windows)
        return dict(zip(map(_key, samples), map(Scored, patch_maps, scores.tolist()), strict=True))

    def _mutual_maps(self, features: Tensor, place: Path, step: Callable[[int], object]) -> Tensor:
        """Returns the patches' scores `[I, N]` of features `[L, I, N, C]`: the mean over layers and scales.

        Reference: MuSc, MSM.
        """
        _, count, patches, _ = features.shape
        scales = self.mutual.scales
        distances = _on_disk(place / "distances", len(scales), count, count, patches)  # from image [1] to image [2]
        blocks = [slice(start, min(start + self.block, count)) for start in range(0, count, self.block)]
        total = torch.zeros(count, patches)
        for layer in features:
            for number, rows in enumerate(blocks):
                read = layer[rows].to(self.device)
                queries = [self.mutual.at_scale(read, scale) for scale in scales]
                for columns in blocks[number:]:
                    references = layer[columns].to(self.device)
                    for scale, a, there in zip(scales, queries, distances, strict=True):
                        b = self.mutual.at_scale(references, scale)
                        cosines = similarities(a, b)
                        there[rows, columns] = nearest_distances(cosines, a, b).cpu()
                        there[columns, rows] = nearest_distances(cosines.permute(1, 0, 3, 2), b, a).cpu()
                step(rows.stop - rows.start)
            for image in range(count):
                for there in distances:
                    others = torch.cat([there[image, :image], there[image, image + 1 :]])
                    total[image] += self.mutual.lowest_mean(others.to(self.device)).cpu()
        return total / (len(features) * len(scales))


def _key(sample: Sample) -> Key:
    return sample.dataset, sample.category, sample.image_path


def _require(name: str, count: int, least: int, reason: str) -> None:
    if count < least:
        raise DatasetError(
            f"{name} has {count} test image{'s' if count > 1 else ''}, and MuSc needs at least {least}: {reason}. Add "
            "images, leave the category out, or change that argument."
        )


def _images_in(block_mb: int, patches: int, channels: int, scales: int) -> int:
    """Returns the largest number of images per block for which two blocks can be compared within the memory.

    The memory holds at once: the first block as read and at all scales; the second block as read, pooled and
    normalised, with intermediate results; the similarities of all pairs, their maxima and distances; and the
    similarities and features of the near patches of one image.

    Raises:
        ValueError: Not even one image fits.
    """
    of_image = (scales + 5) * patches * channels
    of_pair = patches * (patches + 6)
    once = patches * (patches + 4 * channels)
    room = block_mb * 2**20 / 4 - once
    images = int((math.sqrt(of_image**2 + 4 * of_pair * max(room, 0)) - of_image) / (2 * of_pair))
    if images < 1:
        least = math.ceil((of_image + of_pair + once) * 4 / 2**20)
        raise ValueError(f"block_mb must be at least {least} for {patches} patches of {channels}, got {block_mb}")
    return images


def _on_disk(path: Path, *shape: int) -> Tensor:
    """Returns a float32 tensor in a new file. The system writes and drops its pages when it needs memory.

    Raises:
        UserError: The disk has too little space.
    """
    size = math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if free < 4 * size:  # writing to a mapped file on a full disk kills the process without a message
        raise UserError(
            f"{path.parent}: {4 * size / 1e9:.3g} GB are needed for features, and {free / 1e9:.3g} GB are free. Set "
            "feature_dir to a folder on a larger disk, or divide the categories: subsets."
        )
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
