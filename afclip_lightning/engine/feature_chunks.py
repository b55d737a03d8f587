"""`features build --launcher`: chunks of images are the launcher's units, and each worker loads the backbone once.

Finished chunks are noted in the folder of the build, `STORE/.build/ID`, until the build is complete. The next build
checks every image again, because feature files may have been removed meanwhile.
"""

import hashlib
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from afclip_lightning.backbones.store import FeatureStore
from afclip_lightning.engine.feature_build import FeatureBuildCLI, FeatureBuilder, Part, only_compute, parts_of
from afclip_lightning.engine.flows import Run
from afclip_lightning.engine.quiet import quiet_worker
from afclip_lightning.types import Sample
from afclip_runtime.bulk.parts import numbered
from afclip_runtime.errors import DatasetError, UserError, counted, message_of
from afclip_runtime.files import read_json, refresh, take_lock, write_json
from afclip_runtime.launch import NumberedJob, Outcome, Unit, Where, launch
from afclip_runtime.launch.here import run_here
from afclip_runtime.launch.signals import StoppedError

CHUNK = 500  # images
BUILDS, COMPLETE = ".build", "complete"
ONE_DEVICE = ("--trainer.devices=1", "--trainer.num_nodes=1", "--trainer.strategy=auto")
REMEDY = "Remove it and start again."
CONTINUES = "The same command goes on from here."


class RunOnlyCLI(FeatureBuildCLI):
    """Builds all parts of a run, on one device, and computes nothing.

    Args:
        args: Arguments of `fit`.
    """

    def __init__(self, args: Sequence[str]) -> None:
        super().__init__([*args, *ONE_DEVICE])

    def fit(self, **_: Any) -> None:
        """Leaves the computing to `FeatureChunks`."""
        self.run.data.prepare_data()
        only_compute(self.run)
        self.run.trainer.callbacks.clear()  # type: ignore[attr-defined]  # the bar is that of all chunks


class WorkerCLI(RunOnlyCLI):
    """`RunOnlyCLI` in a worker. The command has checked the space, of which other workers have used a part since."""

    checks_space = False


class Images(Protocol):
    """Images, in chunks, whose features are computed.

    Attributes:
        digest: Identifies these images and features.
        sizes: Number of images of each chunk; 0 if it is known only after reading.
        files: Function that describes the files of a chunk for a message; see `described`. It keeps no backbone alive.
        store: Folder of the feature store.
        gpu: Whether a GPU is used if there is one.
    """

    digest: str
    sizes: list[int]
    files: Callable[[int], str]
    store: FeatureStore
    gpu: bool

    def compute(self, number: int) -> None:
        """Computes the missing features of a chunk.

        Raises:
            DatasetError: An image cannot be read.
            UserError: The store cannot be written.
            StoppedError: A signal asks this process to stop.
        """


class RunImages:
    """The images of the datasets that a run reads; see `Images`.

    A chunk is a whole number of batches, so that each image is computed in the same batch as in a single process.

    Args:
        run: The run.

    Attributes:
        chunks: Part, first image and end (exclusive) of each chunk.
    """

    def __init__(self, run: Run) -> None:
        assert run.method.store is not None
        self.store = run.method.store
        self.run = run
        self.parts = parts_of(run)
        self.reader: Any = None  # method or heads that the data is connected to
        facts = hashlib.blake2b(digest_size=8)
        self.samples: list[list[Sample]] = []
        files: list[str] = []
        self.chunks: list[tuple[int, int, int]] = []
        for number, part in enumerate(self.parts):
            self._read_for(part)
            samples = part.dataset.samples(part.split)
            assert part.reader.store is not None
            size = max(1, CHUNK // part.dataset.batch_size) * part.dataset.batch_size
            facts.update(repr((part.reader.store.key, part.reader.store.spec.taps, size)).encode())
            for sample in samples:
                seen = f"{sample.image_path}\0{sample.white}\0{sample.roi.fingerprint if sample.roi else ''}\n"
                facts.update(seen.encode("utf-8", "surrogateescape"))
            self.samples.append(samples)
            for first in range(0, len(samples), size):
                end = min(first + size, len(samples))
                self.chunks.append((number, first, end))
                files.append(described(samples[first].image_path, samples[end - 1].image_path, end - first))
        self.files: Callable[[int], str] = files.__getitem__
        self.digest = facts.hexdigest()
        self.gpu = run.config.trainer.accelerator != "cpu"
        self.sizes = [end - first for _, first, end in self.chunks]

    def _read_for(self, part: Part) -> None:
        if self.reader is not part.reader:
            self.reader = part.reader
            self.run.read_for(part.reader)

    def compute(self, number: int) -> None:
        """See `Images.compute`."""
        position, first, end = self.chunks[number]
        part = self.parts[position]
        self._read_for(part)
        loader = part.dataset.image_loader(self.samples[position][first:end])
        self.run.trainer.predict(FeatureBuilder(part.reader), loader, return_predictions=False)


def described(first: object, last: object, count: int) -> str:
    """Returns a description of the files of a chunk: `a/000.png to a/499.png (500 images)`."""
    return str(first) if count == 1 else f"{first} to {last} ({counted(count, 'image')})"


class FeatureChunks(NumberedJob):
    """Chunks of images for the launcher's workers.

    Args:
        load: Loads the backbone and lists the images. Its argument is whether the build has begun. Each worker calls
            it, so it must be a `functools.partial` of a module's function.
        images: Images that it has listed in this process.
    """

    noun = "chunk"
    steps = "batches"

    def __init__(self, load: Callable[[bool], Images], images: Images) -> None:
        super().__init__(range(len(images.sizes)))
        self.load = load
        self.gpu = images.gpu
        self.digest = images.digest
        self.folder = (images.store.folder.parent / BUILDS / images.digest).absolute()
        self.sizes = images.sizes
        self.files = images.files
        self.images: Images | None = images

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "images": None, "files": None}  # a worker has its own

    def todo(self) -> list[int]:
        """Returns the chunks that are still to be computed."""
        return [number for number in range(len(self.sizes)) if not self.is_finished(number)]

    def start(self) -> None:
        """Loads the backbone and lists the images.

        Raises:
            UserError: The images have changed since the build began.
        """
        quiet_worker()
        self.images = self.load(True)
        self.files = self.images.files
        if self.images.digest != self.digest:
            raise UserError("The images have changed since the build began. Start it again.")

    def run(self, unit: Unit) -> None:
        """Computes a chunk."""
        assert self.images is not None
        number: int = unit.content
        refresh(self._note("done", number).parent)  # the last holder of the lock may just have written it
        if self.is_done(number):
            return
        try:
            self.images.compute(number)
            self._write("done", number, {})
        except DatasetError as error:  # it names the images
            self._write("failed", number, {"error": message_of(error)})
            raise
        except UserError as error:  # a fault of the disk or the backbone: all other chunks would fail too
            self.error = str(error)
            raise

    def fail(self, name: str, error: str) -> None:
        """Notes why a chunk failed, unless its run has done so."""
        if not self.failure(int(name)):
            self._write("failed", int(name), {"error": f"{self.files(int(name))}: {error}"})

    def is_finished(self, number: int) -> bool:
        """Returns whether a chunk is done or has failed."""
        return self.is_done(number) or bool(self.failure(number))

    def lock_path(self, number: int) -> Path:
        """Returns the lock file of a chunk."""
        return numbered(self.folder / "locks", number, ".lock")

    def is_done(self, number: int) -> bool:
        """Returns whether the features of a chunk are computed."""
        return self._note("done", number).exists() or self.is_complete

    @property
    def is_complete(self) -> bool:
        """Whether all chunks were done. Their notes are removed then."""
        return (self.folder / COMPLETE).exists()

    def failure(self, number: int) -> str:
        """Returns the error of a chunk; empty if it has not failed."""
        path = self._note("failed", number)
        return read_json(path, dict[str, str], remedy=REMEDY)["error"] if path.exists() else ""

    def failures(self) -> list[str]:
        """Returns the errors of the chunks that have failed."""
        return [error for number in range(len(self.sizes)) if (error := self.failure(number))]

    def prepare(self) -> None:
        """Clears failures and attempts, and the notes of an earlier build if it was complete."""
        shutil.rmtree(self.folder if self.is_complete else self.folder / "failed", ignore_errors=True)
        for number in range(len(self.sizes)):
            path = self.lock_path(number)
            if path.exists() and not self.is_done(number) and (lock := take_lock(path)) is not None:
                with lock:
                    lock.attempts = 0

    def conclude(self) -> None:
        """Notes that the build is complete, and removes the notes of chunks."""
        write_json(self.folder / COMPLETE, {})
        for name in ("done", "locks", "failed"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def look_again(self) -> None:
        """Refreshes the folders of notes, in which workers on other machines may just have written."""
        numbers = range(len(self.sizes))
        for folder in {self._note(kind, number).parent for kind in ("done", "failed") for number in numbers}:
            refresh(folder)

    def _note(self, kind: str, number: int) -> Path:
        return numbered(self.folder / kind, number, ".json")

    def _write(self, kind: str, number: int, content: dict[str, str]) -> None:
        write_json(self._note(kind, number), content)


def build_chunks(load: Callable[[bool], Images], where: Where, task: bool) -> None:
    """Computes features in workers.

    Args:
        load: See `FeatureChunks`.
        where: Launcher of the workers. A single local worker is this process.
        task: Whether this process is one worker of a build that another process has begun.

    Raises:
        UserError: A worker cannot start, the store cannot be written, or an image cannot be read.
        StoppedError: A signal has ended the build, or another build has some of the chunks.
        KeyboardInterrupt: Ctrl-C.
    """
    images = load(task)
    job, store = FeatureChunks(load, images), images.store.folder
    if not task:
        job.prepare()
    alone = where.launcher == "local" and where.jobs == 1
    if not alone:
        del images
        job.images = None  # its backbone takes memory that the workers may need
    silent = where.launcher == "slurm" or not sys.stderr.isatty()  # for SLURM, the launcher counts chunks
    with tqdm(total=sum(job.sizes), unit="image", disable=silent) as bar:

        def report(name: str, outcome: Outcome) -> None:
            if outcome.status == "done":
                bar.update(job.sizes[int(name)])

        bar.update(sum(size for number, size in enumerate(job.sizes) if job.is_done(number)))
        ended = run_here(job, report) if alone else launch(job, where, job.folder, report)
    if not alone:
        job.look_again()
    if ended.signal == signal.SIGINT:
        raise KeyboardInterrupt(f"Stopped. {CONTINUES}")
    if ended.signal is not None:
        raise StoppedError(CONTINUES)
    if failures := job.failures():
        raise DatasetError("\n".join([*failures, "The other images are done. The same command tries these again."]))
    left = job.left()
    if left and not task:
        raise StoppedError(
            f"{left:,} of {counted(len(job.sizes), 'chunk')} are not computed yet: another build has them, or their "
            "processes have ended. Start the same command again to check."
        )
    if not task:
        job.conclude()
        print(f"Features: {store}")


def images_of_run(args: Sequence[str], begun: bool) -> RunImages:
    """Returns the images that `fit` reads with these options, whether or not the build has begun."""
    return RunImages((WorkerCLI if begun else RunOnlyCLI)(args).run)
