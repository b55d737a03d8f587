"""MuSc: the unlabelled test images of a category score each other; and MuSc-2, where each has few others to look at."""

import math
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import SequentialSampler
from tqdm import tqdm

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.components.scoring import upsample
from afclip_lightning.data.base import AnomalyData, AnomalyDataModule
from afclip_lightning.data.dataset import AnomalyDataset
from afclip_lightning.data.loader import make_loader
from afclip_lightning.data.pairs import Pairing
from afclip_lightning.errors import DatasetError, UserError
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import UNKNOWN, AnomalyPrediction, Batch, ClipFeatures, Sample

Key = tuple[str, str, Path]  # dataset, category, image
Encoded = tuple[list[Sample], ClipFeatures]  # a batch
WINDOWS_REASON = "rscin_windows asks for that many similar ones"
NEAR = 1e-2  # squared distances below are computed again from differences: 2 - 2ab loses what small ones consist of


class Scored(NamedTuple):
    """What is known of an image once its category is scored.

    Attributes:
        patch_map: `[h, w]`, float32, in the CPU's memory.
        pred_score: Image-level anomaly score.
    """

    patch_map: Tensor
    pred_score: float


def normalise_planes(tokens: Tensor) -> Tensor:
    """Returns the patches of tokens `[B, 1 + N, C]`, `[B, N, C]`, float32, of mean 0 and variance 1 over an image.

    Reference: MuSc, LNAMD; the normalisation as in the official code.
    """
    patches = tokens[:, 1:].float()
    return F.layer_norm(patches, patches.shape[1:])


def aggregate(patches: Tensor, grid: tuple[int, int], scale: int) -> Tensor:
    """Returns the mean of the patches `[B, N, C]` over a window around each, `[B, N, C]`; beyond the borders are zeros.

    The official code pools the values of a window from C x scale x scale to C, which is this mean.

    Reference: MuSc, LNAMD.
    """
    if scale == 1:
        return patches
    planes = patches.unflatten(1, grid).permute(0, 3, 1, 2)  # [B, C, h, w], a view in channels-last order
    return F.avg_pool2d(planes, scale, stride=1, padding=scale // 2).permute(0, 2, 3, 1).flatten(1, 2)


def similarities(queries: Tensor, references: Tensor) -> Tensor:
    """Returns cosines `[P, Q, N, M]` of L2-normalised patches `[P, N, C]` and `[Q, M, C]`, of one matrix product."""
    product = queries.flatten(0, 1) @ references.flatten(0, 1).T
    return product.unflatten(1, references.shape[:2]).unflatten(0, queries.shape[:2]).transpose(1, 2)


def nearest_distances(cosines: Tensor, queries: Tensor, references: Tensor) -> Tensor:
    """Returns the Euclidean distance of each query patch to the nearest patch of each reference, `[P, Q, N]`.

    Args:
        cosines: `[P, Q, N, M]`, see `similarities`.
        queries: `[P, N, C]`, L2-normalised.
        references: `[Q, M, C]`, L2-normalised.

    Reference: MuSc, MSM.
    """
    squared = 2 - 2 * cosines.amax(3)
    for near in (squared < NEAR).nonzero().split(queries.shape[1]):  # a few at a time: they may be all
        p, q, n = near.unbind(1)
        nearest = references[q, cosines[p, q, n].argmax(1)]
        squared[p, q, n] = (queries[p, n] - nearest).square_().sum(1)
    return squared.sqrt_()


def lowest_mean(distances: Tensor, interval: float) -> Tensor:
    """Returns the mean `[N]` over the lowest of the distances `[J, N]` to J references: this share, at least one.

    Reference: MuSc, MSM, the interval average.
    Differs: at least one, where the official code has none, and gives NaN, for less than five images.
    """
    kept = max(1, int(interval * distances.shape[0]))
    return distances.topk(kept, dim=0, largest=False).values.mean(0)


def constrain(scores: Tensor, embeddings: Tensor, windows: Sequence[int]) -> Tensor:
    """Returns the image scores `[I]` of a category, each averaged with those of the images most like it, in [0, 1].

    Scores are scaled to [0, 1] over the category first; if all are equal they are 0.

    Args:
        scores: `[I]`.
        embeddings: `[I, D]`, image embeddings, L2-normalised.
        windows: How many images, itself included, an average is over; the result is the mean of one average each.

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


class MutualScoring(AnomalyMethod):
    """What MuSc and MuSc-2 share: their features, and patches of a layer at a scale.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        scales: Windows of the aggregation in patches, odd; 1 is the patch itself.
        interval: Share of the references, those with the lowest distances, that a patch's score is the mean over.
        image_embedding: Whether the image embedding is needed.
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int],
        scales: Sequence[int],
        interval: float,
        image_embedding: bool,
    ) -> None:
        super().__init__(backbone, backbone.spec(layers, image_embedding=image_embedding), optimizer=None)
        if not scales or any(scale < 1 or scale % 2 == 0 for scale in scales):
            raise ValueError(f"scales must be odd and positive, got {list(scales)}")
        if not 0 < interval <= 1:
            raise ValueError(f"interval must be in (0, 1], got {interval}")
        self.scales = tuple(scales)
        self.interval = interval

    def at_scale(self, patches: Tensor, scale: int) -> Tensor:
        """Returns patches `[B, N, C]` of one layer, from `normalise_planes`, aggregated and L2-normalised."""
        return F.normalize(aggregate(patches, self.backbone.grid, scale), dim=-1)

    def upsampled(self, patch_maps: Tensor) -> Tensor:
        """Returns maps `[B, h, w]` at the size of the input image, `[B, H, W]`."""
        return upsample(patch_maps, (self.backbone.image_size, self.backbone.image_size), align_corners=True)


class MuSc(MutualScoring):
    """MuSc: mutual scoring of the unlabelled test images of a category; no training, no prompt, no normal image.

    A patch is normal if most other images have one like it. A score therefore needs all test images of its category:
    when `validate`, `test` or `predict` begins, the data module's test images are walked category by category, without
    their labels and masks, and what comes of it is looked up when an image's batch comes. The work follows the test
    set, so that limits on the number of batches do not shorten it.

    Over several processes each walks whole categories of its own, dealt by their cost, and all exchange the results:
    more processes than categories do not help, and one that is done waits as long as the strategy's `timeout`
    allows.

    Cost of a category of I images, for N patches of C channels, L layers and R scales: I² N² C L R operations, half of
    what every ordered pair would take, since the product of two blocks of images gives the nearest patches in both
    directions. For ViT-L/14 at 518 pixels, 4 layers and 3 scales that is 2.3 · 10^10 · I²: from I = 40 on more than
    the backbone's 10^12 an image. On disk are the features, 4 L I N C bytes, and the distances of a layer,
    4 R I² N bytes: 22 MB · I and 16 kB · I². With m images a block, I² / 2m images are read back a layer, for all
    scales at once. In memory are two blocks and their similarities, within `block_mb`; one image's distances,
    4 I N bytes; and what is kept of each test image, 4 N bytes.

    Differs: subsets are drawn without looking at the kinds of defects, which the official code divides evenly.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        scales: Windows of the aggregation in patches, odd; 1 is the patch itself.
        interval: Share of the other images, those with the lowest distances, that a patch's score is the mean over.
        subsets: Into how many parts a category is divided, that are scored by themselves (not the image scores: they
            are constrained over the whole category); cost and disk fall with their number.
        seed: Seed of the division.
        rscin_windows: Numbers of most similar images, itself included, that an image score is averaged over (RsCIN): 1,
            2, 3 for MVTec AD and 1, 8, 9 for VisA. Empty takes the largest value of the map as it is.
        block_mb: Memory for features and similarities at a time, on the device, in MiB. Results do not depend on it.
            More reads less back from the disk; on a CPU few images a block are faster, whose similarities fit its
            cache.
        feature_dir: Where the features lie while a category is scored; the run folder by default.

    Attributes:
        known: What the running evaluation knows of each image.

    Reference: MuSc (Li et al., ICLR 2024); subsets as in the official code.
    """

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
        super().__init__(backbone, layers, scales, interval, image_embedding=True)
        if subsets < 1:
            raise ValueError(f"subsets must be at least 1, got {subsets}")
        if any(window < 1 for window in rscin_windows):
            raise ValueError(f"rscin_windows must be at least 1 each, got {list(rscin_windows)}")
        self.subsets = subsets
        self.seed = seed
        self.rscin_windows = tuple(rscin_windows)
        self.shape = math.prod(backbone.grid), backbone.vision.width  # N, C
        self.block = _images_in(block_mb, *self.shape, len(self.scales))
        self.feature_dir = feature_dir
        self.known: dict[Key, Scored] = {}

    def extract(self, batch: Batch) -> ClipFeatures:
        """Returns no tokens: `score` looks up what came of them, so that the backbone sees an image once."""
        return ClipFeatures(tokens=(), grid=self.backbone.grid)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns what the other test images said of these.

        Raises:
            DatasetError: An image was not among the test images when the evaluation began.
        """
        found = []
        for sample in batch.samples:
            if _key(sample) not in self.known:
                raise DatasetError(
                    f"{sample.image_path}: MuSc knows nothing of this image, since it was not in the test set of "
                    f"{sample.dataset}/{sample.category} when the evaluation began. Images are scored by each other: "
                    "use Trainer.validate, test or predict with a data module that has them all."
                )
            found.append(self.known[_key(sample)])
        scores = torch.tensor([of.pred_score for of in found], device=self.device)
        return AnomalyPrediction(scores, self.upsampled(torch.stack([of.patch_map for of in found]).to(self.device)))

    def on_evaluation_start(self) -> None:
        """Scores all test images, and shares what comes of it with the other processes.

        Raises:
            TypeError: There is no data module to ask for the test images.
            DatasetError: A category has too few images.
            UserError: The features do not fit on the disk.
        """
        trainer, categories = self.trainer, self._test_categories()
        costs = {key: len(samples) ** 2 for key, (_, samples) in categories.items()}
        mine = _share(costs, trainer.global_rank, trainer.world_size)
        folder = self.feature_dir or Path(trainer.default_root_dir)
        folder.mkdir(parents=True, exist_ok=True)
        with tqdm(
            total=sum(len(categories[key][1]) for key in mine) * (1 + len(self.spec.layers)),  # to read, to score
            desc="mutual scoring",
            disable=None if trainer.is_global_zero and trainer.progress_bar_callback else True,
        ) as bar:
            found: dict[Key, Scored] = {}
            for key in mine:
                bar.set_postfix_str("/".join(key))
                subsets = self._subsets(*categories[key])
                found |= self.score_category(subsets, "/".join(key), folder, bar.update)
        self.known = found
        if trainer.world_size > 1:
            gathered: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(gathered, found)
            self.known = {key: scored for part in gathered for key, scored in part.items()}

    def on_evaluation_end(self) -> None:
        """Forgets the images."""
        self.known = {}

    def _test_categories(self) -> dict[tuple[str, str], tuple[AnomalyDataModule, list[Sample]]]:
        """Returns the test images of each category, and the dataset that they are of."""
        data = getattr(self.trainer, "datamodule", None)
        if not isinstance(data, AnomalyData):
            raise TypeError("MuSc needs all test images at once: give the trainer a datamodule, not loaders")
        categories: dict[tuple[str, str], tuple[AnomalyDataModule, list[Sample]]] = {}
        for part in data.test_sets:
            for sample in part.samples("test"):
                categories.setdefault((sample.dataset, sample.category), (part, []))[1].append(sample)
        for key, (_, samples) in categories.items():
            reason = f"images are scored by each other, and subsets is {self.subsets}"
            _require("/".join(key), len(samples), 2 * self.subsets, reason)
            _require("/".join(key), len(samples), max(self.rscin_windows, default=0), WINDOWS_REASON)
        return categories

    def _subsets(self, part: AnomalyDataModule, samples: list[Sample]) -> Iterator[tuple[int, Iterable[Encoded]]]:
        """Yields each subset of a category; without labels and masks, which are of no use here."""
        loading = replace(part.loading, cache_mb=0)  # each image is read once
        order = np.random.default_rng([self.seed, *samples[0].category.encode()]).permutation(len(samples))
        for first in range(self.subsets):
            chosen = (samples[position] for position in sorted(order[first :: self.subsets].tolist()))
            bare = [replace(s, label=UNKNOWN, mask_path=None, mask_known=False) for s in chosen]
            dataset = AnomalyDataset(bare, self.preprocess, loading, store=self.store, skipped=part.skipped)
            in_order = SequentialSampler(dataset)
            loader = make_loader(dataset, part.batch_size, part.num_workers, in_order)
            yield len(bare), self._encoded(loader)

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
        """Returns what the images of a category say of each other.

        Args:
            subsets: Of each, how many images it has at most, and those that can be read, batch by batch.
            name: Of the category, for errors.
            folder: Holds the features meanwhile.
            step: Is told of images that were read, and again of images that were scored at a layer.

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
                    assert encoded.image_embedding is not None  # the spec asks for it
                    embeddings.append(F.normalize(encoded.image_embedding.float(), dim=-1).cpu())
                    samples += read
                    count += len(read)
                    step(len(read))
                _require(name, count, 2, "images are scored by each other")  # files may have been skipped
                maps.append(self._mutual_maps(features[:, :count], Path(place), step))
        _require(name, len(samples), max(self.rscin_windows, default=0), WINDOWS_REASON)
        patch_maps = torch.cat(maps).unflatten(1, self.backbone.grid)
        scores = torch.cat([self.upsampled(one[None]).amax((1, 2)) for one in patch_maps])
        if self.rscin_windows:
            scores = constrain(scores, torch.cat(embeddings), self.rscin_windows)
        return dict(zip(map(_key, samples), map(Scored, patch_maps, scores.tolist()), strict=True))

    def _mutual_maps(self, features: Tensor, place: Path, step: Callable[[int], object]) -> Tensor:
        """Returns the patches' scores `[I, N]` of features `[L, I, N, C]`: the mean over layers and scales.

        Reference: MuSc, MSM.
        """
        _, count, patches, _ = features.shape
        distances = _on_disk(place / "distances", len(self.scales), count, count, patches)  # of image [1] to image [2]
        blocks = [slice(start, min(start + self.block, count)) for start in range(0, count, self.block)]
        total = torch.zeros(count, patches)
        for layer in features:
            for number, rows in enumerate(blocks):
                read = layer[rows].to(self.device)
                queries = [self.at_scale(read, scale) for scale in self.scales]
                for columns in blocks[number:]:
                    references = layer[columns].to(self.device)
                    for scale, a, there in zip(self.scales, queries, distances, strict=True):
                        b = self.at_scale(references, scale)
                        cosines = similarities(a, b)
                        there[rows, columns] = nearest_distances(cosines, a, b).cpu()
                        there[columns, rows] = nearest_distances(cosines.permute(1, 0, 3, 2), b, a).cpu()
                step(rows.stop - rows.start)
            for image in range(count):
                for there in distances:
                    others = torch.cat([there[image, :image], there[image, image + 1 :]])
                    total[image] += lowest_mean(others.to(self.device), self.interval).cpu()
        return total / (len(features) * len(self.scales))


class MuSc2(MutualScoring):
    """MuSc-2: MuSc where each test image is scored by few others of its category, one by default.

    The reference may be anomalous, or like the image where that is. The image score is the largest value of the map,
    which is not constrained by other images' scores.

    Differs: the paper gives the name and the numbers only. Which images form pairs, and that the interval average has
    at least one reference, is ours.

    Args:
        backbone: The frozen CLIP.
        layers: Tapped blocks, counted from 1.
        scales: Windows of the aggregation in patches, odd; 1 is the patch itself.
        interval: Share of the references, those with the lowest distances, that a patch's score is the mean over.
        n_references: Other test images that an image is scored by.
        seed: Seed of their draw.

    Reference: Dual-Image Enhanced CLIP, Table 1; MuSc (Li et al., ICLR 2024).
    """

    def __init__(
        self,
        backbone: ClipBackbone,
        layers: Sequence[int] = (3, 6, 9, 12),
        scales: Sequence[int] = (1, 3, 5),
        interval: float = 0.3,
        n_references: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__(backbone, layers, scales, interval, image_embedding=False)
        if n_references < 1:
            raise ValueError(f"n_references must be at least 1, got {n_references}")
        self.pairing = Pairing(n_references, seed)

    def setup(self, stage: str) -> None:
        """Asks the data module for references.

        Raises:
            DatasetError: A category has too few images.
        """
        datamodule = getattr(self.trainer, "datamodule", None)
        if datamodule is not None:
            datamodule.pair(self.pairing)

    def score(self, features: ClipFeatures, batch: Batch) -> AnomalyPrediction:
        """Returns what their references say of the images.

        Raises:
            RuntimeError: The batch has no references.
        """
        if batch.reference is None or batch.reference_rows is None:
            raise RuntimeError("MuSc2 needs references: call datamodule.pair(model.pairing) before loaders are made")
        layers = features.tokens
        if len(batch.reference):
            beside = self.backbone.encode_image(batch.reference, self.spec)
            beside = self.store.rounded(beside) if self.store else beside
            layers = tuple(torch.cat(pair) for pair in zip(layers, beside.tokens, strict=True))
        total = torch.zeros(len(batch.samples), math.prod(features.grid), device=layers[0].device)
        with torch.autocast(total.device.type, enabled=False):
            for tokens in layers:
                planes = normalise_planes(tokens)
                for scale in self.scales:
                    every = self.at_scale(planes, scale)
                    for row, others in enumerate(batch.reference_rows):
                        a, b = every[row, None], every[others]
                        distances = nearest_distances(similarities(a, b), a, b)
                        total[row] += lowest_mean(distances[0], self.interval)
        maps = (total / (len(features.tokens) * len(self.scales))).unflatten(1, features.grid)
        anomaly_map = self.upsampled(maps)
        return AnomalyPrediction(anomaly_map.amax((1, 2)), anomaly_map)


def _key(sample: Sample) -> Key:
    return sample.dataset, sample.category, sample.image_path


def _require(name: str, count: int, least: int, reason: str) -> None:
    if count < least:
        raise DatasetError(
            f"{name} has {count} test image{'s' if count > 1 else ''}, and MuSc needs at least {least}: {reason}. Add "
            "images, leave the category out, or change that argument."
        )


def _share(costs: Mapping[Any, int], rank: int, processes: int) -> list[Any]:
    """Returns the keys that fall to a process: the dearest first, each to who has least to do."""
    shares: list[list[Any]] = [[] for _ in range(processes)]
    for key in sorted(costs, key=lambda key: -costs[key]):
        min(shares, key=lambda share: sum(costs[mine] for mine in share)).append(key)
    return shares[rank]


def _images_in(block_mb: int, patches: int, channels: int, scales: int) -> int:
    """Returns how many images a block has: the most that two of them can be compared within a memory.

    At once there are the first block as read and at all scales, what becomes of the second (as read, pooled,
    normalised, and what is between), the similarities of all pairs with their best and their distances, and the
    similarities and features of one image's worth of near patches.

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
    """Returns a float32 tensor that lies in a new file: the system writes and drops its pages as memory is needed.

    Raises:
        UserError: The disk has not that much space.
    """
    size = math.prod(shape)
    free = shutil.disk_usage(path.parent).free
    if free < 4 * size:  # a mapped file on a full disk ends the process without a word
        raise UserError(
            f"{path.parent}: {4 * size / 1e9:.3g} GB are needed for features, and {free / 1e9:.3g} GB are free. Set "
            "feature_dir to a folder on a larger disk, or divide the categories: subsets."
        )
    return torch.from_file(str(path), shared=True, size=size, dtype=torch.float32).view(shape)
