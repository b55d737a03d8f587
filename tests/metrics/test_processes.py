"""1, 2 and 3 processes give the same bits, for the metric alone and with the evaluation loaders."""

import multiprocessing
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing
from PIL import Image
from torch import distributed

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.datasets.folder import Folder
from afclip_lightning.distributed import gathered
from afclip_lightning.metrics import AnomalyMetrics, label_regions
from afclip_lightning.metrics.image_counts import ImageRecord
from afclip_lightning.metrics.image_records import write_records
from afclip_lightning.metrics.intervals import Settings, intervals_of
from afclip_lightning.results import MEAN
from tests.support.metric_stream import stream

SHARES = {
    1: ([list(range(12))],),
    2: ([[0, 1, 2, 3, 4, 5, 6], [7], [8]], [[9, 10], [11]]),
    3: ([[3, 4]], [], [[0, 1, 2], [5, 6, 7, 8, 9], [10, 11]]),  # one has seen nothing
}
IMAGES = 11


def write_images(root):
    """Writes an odd number of images. All but three have a defect."""
    rng = np.random.default_rng(0)
    for name in ("good", "bad", "masks"):
        (root / name).mkdir(parents=True)
    for i in range(IMAGES):
        mask = np.zeros((16, 16), np.uint8)
        mask[i : i + 4, 2:9] = 255
        pixels = rng.integers(0, 200, (16, 16)) + (mask // 5 if i > 2 else 0)
        Image.fromarray(pixels.astype(np.uint8)).save(root / ("bad" if i > 2 else "good") / f"{i:02}.png")
        if i > 2:
            Image.fromarray(mask).save(root / f"masks/{i:02}.png")


def of_shares(batches, exact, finer=()):
    """Returns the result of a process whose batches hold these images; those in `finer` are in float64."""
    metrics = AnomalyMetrics(exact=exact)
    for batch in batches:
        maps, *others = (part[batch] for part in stream())
        if set(batch) & set(finer):
            maps = maps.double()
            for row, image in enumerate(batch):
                maps[row] *= 1 + 1e-12 * (image in finer)
        metrics.update(maps, *others)
    state = metrics.lowest.clone(), metrics.counts.shape
    values = [metrics.compute()]
    with metrics.sync_context():
        values.append(metrics.result())
    assert (metrics.lowest, metrics.counts.shape) == state  # local again, ready for more
    assert AnomalyMetrics(exact=exact).compute() == {}  # nobody has seen anything
    return values


def of_loader(root):
    data = Folder(root, normal_dir="good", abnormal_dir="bad", mask_dir="masks", batch_size=2, num_workers=0)
    data.connect(Preprocess(16))
    metrics = AnomalyMetrics()
    for batch in data.test_dataloader():
        maps = batch.image[:, 0]
        metrics.update(maps, batch.mask, maps.amax((1, 2)), batch.label, batch.mask_known, batch.region_area)
    with metrics.sync_context():
        return metrics.result()


def of_images(batches):
    """Returns intervals and the file of records, of the images of all processes."""
    maps, masks, scores, labels = stream(count=24)
    shown = [i for batch in batches for i in (2 * batch[0], *range(2 * batch[0] + 1, 2 * batch[-1] + 2))]
    own = [
        ImageRecord.of(f"{i:02}", int(labels[i]), float(scores[i]), maps[i], label_regions(masks[i : i + 1])[0])
        for i in shown
    ]
    records = {("stream", "all"): [record for part in gathered(own) for record in part]}
    assert len(records["stream", "all"]) == 24
    return intervals_of(records, Settings(100)), records


def process(rank, folder):
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # compute() without update() is tested, and few pixels have large bounds
    for world, shares in sorted(SHARES.items(), reverse=True):
        if rank >= world:
            return
        distributed.init_process_group("gloo", f"file://{folder}/store{world}", rank=rank, world_size=world)
        values = [x for exact in (True, False) for x in of_shares(shares[rank], exact)]
        values += [x for exact in (True, False) for x in of_shares(shares[rank], exact, finer=(7, 10))]
        values.append(of_loader(folder / "images"))
        intervals, records = of_images(shares[rank])
        write_records(folder / f"{world}-{rank}.npz", records)
        values.append((intervals.by_row, (folder / f"{world}-{rank}.npz").read_bytes()))
        torch.save(values, folder / f"{world}-{rank}.pt")
        distributed.destroy_process_group()


@pytest.fixture(scope="module")
def values(tmp_path_factory) -> dict[tuple[int, int], list]:
    """The results of each process, for each number of processes."""
    folder: Path = tmp_path_factory.mktemp("processes")
    write_images(folder / "images")
    multiprocessing.set_forkserver_preload([__name__])  # imported once for all three
    torch.multiprocessing.start_processes(process, (folder,), nprocs=3, start_method="forkserver")
    ranks = [(world, rank) for world in SHARES for rank in range(world)]
    return {key: torch.load(folder / f"{key[0]}-{key[1]}.pt", weights_only=False) for key in ranks}


@pytest.mark.slow
def test_the_metric_gives_the_same_bits(values):
    expected = values[1, 0][:-2]
    assert expected[0].keys() == {f"{a}_{b}" for a in ("image", "pixel") for b in ("auroc", "ap", "f1_max")} | {
        "pixel_pro",
        "pixel_pro_05",
    }
    for key, found in values.items():
        assert found[:-2] == expected, key


@pytest.mark.slow
def test_the_loaders_repeat_nothing_and_leave_nothing_out(values):
    expected = values[1, 0][-2]
    assert (expected.normal, expected.anomalous) == (3, IMAGES - 3)
    assert 0.3 < expected.metrics["pixel_pro"] < 1
    for key, found in values.items():
        assert found[-2] == expected, key


@pytest.mark.slow
def test_intervals_are_the_same_bits(values):
    intervals, kept = values[1, 0][-1]
    assert len(intervals["stream", MEAN]) == 8
    for key, found in values.items():
        assert found[-1] == (intervals, kept), key
