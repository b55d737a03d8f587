"""Samples in arrays equal the samples, and their transfer to a loader process is small."""

import pickle
from pathlib import Path

import pytest

from afclip_lightning.data.sample_array import SampleArray
from afclip_lightning.types import UNKNOWN, Sample, Saturation, Saturations
from afclip_runtime.views.roi import Roi

ROI = Roi((8, 8), include=(((1.0, 1.0), (6.0, 1.0), (6.0, 6.0)),))
SATURATIONS = Saturations(Path("d/defects.json"), (Saturation(255, 0.5, True),))
SAMPLES = [
    Sample("mvtec", "bottle", "test", Path("d/bottle/good/0.png"), 0),
    Sample("mvtec", "bottle", "test", Path("d/bottle/crack/0.png"), 1, Path("d/gt/0_mask.png"), defect_type="crack"),
    Sample("mvtec", "bottle", "test", Path("d/bottle/crack/1.png"), 1, None, mask_known=False, defect_type="crack"),
    Sample(
        "mvtec", "nuß", "train", Path("d/nuß/\udcff.png"), UNKNOWN, mask_known=False, class_name="nut", group="a\n7"
    ),
    Sample("loco", "box", "test", Path("/e/0.dcm"), 1, Path("/e/gt/0"), white=4095, saturations=SATURATIONS, roi=ROI),
    Sample("loco", "box", "test", Path("/e/1.dcm"), 0, mask_threshold=127, roi=ROI),
]


@pytest.mark.parametrize("sent", [False, True])
def test_they_are_the_samples(sent):
    array = SampleArray(SAMPLES)
    if sent:
        array = pickle.loads(pickle.dumps(array))
    assert len(array) == len(SAMPLES)
    assert list(array) == SAMPLES
    assert array[-1] == SAMPLES[-1]
    assert array[1:4] == SAMPLES[1:4]
    for outside in (6, -7):
        with pytest.raises(IndexError):
            array[outside]
    assert list(SampleArray([])) == []


def test_a_process_is_sent_little_more_than_the_paths():
    def sent(count):
        paths = [Path(f"/data/set/category/test/scratch/{i:08}.png") for i in range(count)]
        array = SampleArray(Sample("set", "category", "test", p, 1, p.with_suffix(".gt.png")) for p in paths)
        return len(pickle.dumps(array)), sum(len(str(path)) + len(str(path.with_suffix(".gt.png"))) for path in paths)

    (few, paths_of_few), (many, paths_of_many) = sent(100), sent(1100)
    assert many - few - (paths_of_many - paths_of_few) <= 1000 * (4 + 3 * 8) + 100
    assert few < 20_000
