"""`features build --images`: features of images outside datasets, in folders, archives, Parquet files and URLs.

Features are stored by the content of the image file, so that a dataset that is unpacked later finds them.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning import Trainer

from afclip_lightning.backbones.store import FeatureCache, FeatureStore
from afclip_lightning.backbones.store_files import StorageType, image_digest
from afclip_lightning.data.collate import Collate
from afclip_lightning.data.dataset import Item
from afclip_lightning.data.loading_options import Loading
from afclip_lightning.engine.factory import build, read_model
from afclip_lightning.engine.feature_build import FeatureBuilder
from afclip_lightning.engine.feature_chunks import BUILDS, CHUNK, COMPLETE
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
        self.plan = Plan.read(self.folder) if begun else self._make_plan()
        self.sizes = [shard.images or 0 for shard in self.plan.shards]
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
        problems: list[str] = []
        self.trainer.predict(FeatureBuilder(self.method), self._batches(number, problems), return_predictions=False)
        if problems:
            more = [f"and {len(problems) - TOLD} more images"] if len(problems) > TOLD else []
            raise DatasetError("\n".join([*problems[:TOLD], *more]))

    def _batches(self, number: int, problems: list[str]) -> Iterator[Batch]:
        """Yields the images of a chunk that lack features, in batches; notes images that cannot be read."""
        shard, items = self.plan.shards[number], []
        collate = Collate(self.method.preprocess, store=self.store)
        images = open_archive(shard.archive) if shard.archive else open_files(read_files(self.folder, number))
        with ThreadPoolExecutor(self.options.num_workers) as pool:
            sources = ((file.path, source) for file, source in images if not file.left_out)
            try:
                for found in in_order(pool, self._read, sources, 2 * self.options.num_workers):
                    if isinstance(found, UserError):
                        problems.append(str(found))
                    elif found is not None:
                        items.append(found)
                    if len(items) == self.options.batch_size:
                        yield _batch(collate, items)
                        items = []
            except UserError as error:  # an error of the archive
                problems.append(str(error))
            if items:
                yield _batch(collate, items)

    def _read(self, named: "tuple[str, Source | Fetch]") -> Item | UserError | None:
        """Returns an image at the backbone's size; `None` if its features exist; the error if it cannot be read."""
        name, source = named
        try:
            content = _content(name, source() if callable(source) else source)
            digest = image_digest(content.data)
            if self.store.load(digest) is not None:
                return None
            pixels: np.ndarray = self.method.preprocess.resize(read(content).rgb(None), None, None)[0]
        except UserError as error:
            return error
        return Item(0, pixels, None, Sample("images", "", "test", Path(name), UNKNOWN, mask_known=False), (), digest)


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
