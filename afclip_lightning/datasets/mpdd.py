"""MPDD: six kinds of painted metal parts."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.mvtec_layout import MVTecLayout


class MPDD(MVTecLayout):
    """MPDD: 6 categories, 176 normal and 282 anomalous test images, with masks.

    Incomplete copies are in circulation, so compare the counts.
    """

    title = "MPDD"
    paper = "jezek2021mpdd"
    url = "https://github.com/stepanje/MPDD"
    name = "mpdd"
    published_counts: Mapping[str, Counts] = {
        "bracket_black": (None, 32, 47),
        "bracket_brown": (None, 26, 51),
        "bracket_white": (None, 30, 30),
        "connector": (None, 30, 14),
        "metal_plate": (None, 26, 71),
        "tubes": (None, 32, 69),
    }
    published_total = (888, 176, 282)
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {
        "bracket_black": "black metal bracket",
        "bracket_brown": "brown metal bracket",
        "bracket_white": "white metal bracket",
        "tubes": "metal tubes",
    }
    required = ("test", "ground_truth")
    source = "MPDD, by hand from the page that github.com/stepanje/MPDD links to, unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"
