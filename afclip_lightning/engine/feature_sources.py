"""`features build --images`: features of images outside datasets, in folders, archives, Parquet files and URLs.

Features are stored by the content of the image file, so that a dataset that is unpacked later finds them.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from lightning import Trainer

from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.backbones.store_files import StorageType, image_digest
from afclip_lightning.data.collate import Collate
from afclip_lightning.data.dataset import Item
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.engine.factory import build, read_model
from afclip_lightning.engine.feature_build import FeatureBuilder
from afclip_lightning.engine.feature_chunks import BUILDS, CHUNK, COMPLETE, described
from afclip_lightning.engine.run_parts import keep_features
from afclip_lightning.methods.base import AnomalyMethod
from afclip_lightning.types import MAIN_HEAD, UNKNOWN, Batch, Sample
from afclip_runtime.bulk.parts import numbered
from afclip_runtime.bulk.plan import FOLDER, PLAN, Plan, make_plan, read_files
from afclip_runtime.bulk.reading import open_archive, open_files
from afclip_runtime.bulk.sources import Listing
from afclip_runtime.errors import DatasetError, UserError
from afclip_runtime.files import open_regular
from afclip_runtime.images.reader import Content, read
from afclip_runtime.views.decoding import in_order

if TYPE_CHECKING:
    from afclip_runtime.views.decoding import Fetch, Source

TOLD = 20  # maximum number of images of a chunk in a message


@dataclass(frozen=True)
class SourceOptions:
    """Options of `features build --images`.

    Attributes:
        sources: Folders, globs, files, tar archives, Parquet files and URLs.
        config: A config of `fit`, which names the method and its backbone.
        cache: Folder of the store.
        dtype: Type of the stored features.
        precision: Precision of the trainer.
        accelerator: Accelerator of the trainer.
        batch_size: Images per batch.
        num_workers: Threads that read and decode.
        image_column: Column of the images in Parquet files; found by its type by default.
    """

    sources: Sequence[str]
    config: Path
    cache: Path
    dtype: StorageType = "float16"
    precision: str = "32-true"
    accelerator: str = "auto"
    batch_size: int = 8
    num_workers: int = 2
    image_column: str | None = None


class SourceImages:
    """The images of sources; see `feature_chunks.Images`. The list of images is fixed when a build begins.

    Args:
        method: Method whose features are computed. It must have a store.
        options: The options.
        begun: Whether the build has begun, so that its list of images exists.

    Raises:
        UserError: There are no images.
    """

    def __init__(self, method: AnomalyMethod, options: SourceOptions, begun: bool) -> None:
        assert method.store is not None
        self.store: FeatureStore = method.store
        self.method, self.options = method, options
        self.gpu = options.accelerator != "cpu"
        named = json.dumps([list(options.sources), str(Path.cwd()), self.store.key, self.store.spec.taps])
        self.digest = f"images-{hashlib.blake2b(named.encode(), digest_size=8).hexdigest()}"
        self.folder = (self.store.folder.parent / BUILDS / self.digest).absolute()
        self.plan = Plan.wait_for(self.folder, 0) if begun else self._make_plan()
        self.sizes = [shard.images or 0 for shard in self.plan.shards]
        self.files: Callable[[int], str] = partial(files_of_shard, self.folder)
        self.trainer = Trainer(
            accelerator=options.accelerator,
            devices=1,
            precision=options.precision,  # type: ignore[arg-type]
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )

    def _make_plan(self) -> Plan:
        if (self.folder / COMPLETE).exists():
            shutil.rmtree(self.folder)
        there = (self.folder / FOLDER / PLAN).exists()
        before = Plan.read(self.folder).shards if there else []
        listing = Listing(
            self.options.sources,
            self.store.folder.parent.absolute(),
            image_column=self.options.image_column,
            shard_images=CHUNK,
        )
        plan = make_plan(self.folder, listing, "", CHUNK)
        for number, (old, new) in enumerate(zip(before, plan.shards, strict=False)):
            if old.digest != new.digest:  # a file was replaced
                numbered(self.folder / "done", number, ".json").unlink(missing_ok=True)
        return plan

    def compute(self, number: int) -> None:
        """Computes the missing features of a chunk. If an image cannot be read, those of the others are computed.

        Raises:
            DatasetError: Images cannot be read. The message names them.
            UserError: The store cannot be written.
            StoppedError: A signal asks this process to stop.
        """
        if number >= len(self.plan.shards):
            self.plan = Plan.wait_for(self.folder, number)
        problems: list[str] = []
        self.trainer.predict(FeatureBuilder(self.method), self._batches(number, problems), return_predictions=False)
        if problems:
            more = [f"and {len(problems) - TOLD} more images"] if len(problems) > TOLD else []
            raise DatasetError("\n".join([*problems[:TOLD], *more]))

    def _batches(self, number: int, problems: list[str]) -> Iterator[Batch]:
        """Yields the batches of a chunk in which features are missing; notes images that cannot be read.

        Such a batch is whole: the last bits of features depend on the number of images that are computed together.
        """
        shard, group = self.plan.shards[number], []
        collate = Collate(self.method.preprocess, store=self.store)
        images = open_archive(shard.archive) if shard.archive else open_files(read_files(self.folder, number))
        with ThreadPoolExecutor(self.options.num_workers) as pool:
            sources = ((file.path, source) for file, source in images if not file.left_out)
            try:
                for found in in_order(pool, self._read, sources, 2 * self.options.num_workers):
                    if isinstance(found, UserError):
                        problems.append(str(found))
                    else:
                        group.append(found)
                    if len(group) == self.options.batch_size:
                        yield from self._missing(collate, group)
                        group = []
            except UserError as error:  # an error of the archive
                problems.append(str(error))
            yield from self._missing(collate, group)

    def _missing(self, collate: Collate, group: "Sequence[_Found]") -> Iterator[Batch]:
        """Yields a batch, unless the features of all its images exist."""
        if any(found.item for found in group):
            yield _batch(collate, [found.item or self._item(found.content, found.digest) for found in group])

    def _read(self, named: "tuple[str, Source | Fetch]") -> "_Found | UserError":
        """Returns an image, or the error if it cannot be read."""
        name, source = named
        try:
            content = _content(name, source() if callable(source) else source)
            digest = image_digest(content.data)
            item = self._item(content, digest) if self.store.load(digest) is None else None
        except UserError as error:
            return error
        return _Found(content, digest, item)

    def _item(self, content: Content, digest: str) -> Item:
        """Returns an image at the backbone's size."""
        pixels: np.ndarray = self.method.preprocess.resize(read(content).rgb(None), None, None)[0]
        sample = Sample("images", "", "test", Path(content.name), UNKNOWN, mask_known=False)
        return Item(0, pixels, None, sample, (), digest)


class _Found(NamedTuple):
    """An image that was read.

    Attributes:
        content: The bytes of its file.
        digest: Its digest.
        item: The image at the backbone's size; `None` if its features exist.
    """

    content: Content
    digest: str
    item: Item | None


def files_of_shard(folder: Path, number: int) -> str:
    """Returns a description of the files of a chunk for a message.

    Args:
        folder: Folder of the build.
        number: Number of the chunk.

    Raises:
        UserError: The list of files cannot be read.
    """
    shard = Plan.read(folder).shards[number]
    if shard.archive is not None:
        return shard.archive.path
    files = read_files(folder, number)
    return described(files[0].path, files[-1].path, len(files))


def _content(name: str, source: "Source") -> Content:
    """Returns the bytes of an image. They are read once, for its digest and for its pixels."""
    if isinstance(source, Content):
        return source
    assert isinstance(source, Path)
    with open_regular(source) as file:
        return Content(name, file.read())


def _batch(collate: Collate, items: Sequence[Item]) -> Batch:
    batch, _ = collate([item._replace(position=row) for row, item in enumerate(items)])
    assert isinstance(batch, Batch)
    return batch


def images_of_sources(options: SourceOptions, arguments: Mapping[str, Any], begun: bool) -> SourceImages:
    """Returns the images of sources, with the method that computes their features.

    Args:
        options: The options.
        arguments: Constructor arguments of the method that replace those of the config.
        begun: See `SourceImages`.

    Raises:
        UserError: The config cannot be read, an argument is wrong, or the method's features cannot be stored.
    """
    method = build(read_model(options.config, arguments), arguments)
    keep_features({MAIN_HEAD: method}, FeatureCache(options.cache, dtype=options.dtype), Loading(), options.precision)
    return SourceImages(method, options, begun)
