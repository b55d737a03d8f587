"""AutoVI: six tasks of a car factory's final inspection."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.saturated_layout import SaturatedLayout


class AutoVI(SaturatedLayout):
    """AutoVI (Automotive Visual Inspection): 6 categories, 1521 normal and 878 anomalous test images, with masks.

    The layout is that of MVTec LOCO AD, with a folder of masks per image and `defects_config.json` per category. Layout
    and counts are taken from public loaders and users' lists. They were not compared with the archives themselves.

    Differs: The authors' evaluation is said to resize images to 400 x 400 or 1000 x 750 pixels, depending on the
    category. Here the saturations count pixels of the mask files. If they refer to the resized images, sPRO differs
    from the authors'.

    Reference: Carvalho et al., The Automotive Visual Inspection Dataset (AutoVI), 2024, doi 10.5281/zenodo.10459003.
    """

    title = "AutoVI"
    paper = "carvalho2024autovi"
    url = "https://zenodo.org/records/10459003"
    labels = "image, pixel, per defect"
    name = "autovi"
    published_counts: Mapping[str, Counts] = {
        "engine_wiring": (285, 285, 322),
        "pipe_clip": (195, 195, 142),
        "pipe_staple": (191, 188, 117),
        "tank_screw": (318, 318, 95),
        "underbody_pipes": (161, 161, 184),
        "underbody_screw": (373, 374, 18),
    }
    published_total = (1523, 1521, 878)
    published = tuple(published_counts)
    class_names: Mapping[str, str] = {"underbody_pipes": "pipes of a car underbody", "underbody_screw": "screw"}
    layout = """
engine_wiring/train/good/*.png                   normal images (for few-shot)
engine_wiring/test/{good,<defect>}/0000.png      normal and anomalous images
engine_wiring/ground_truth/<defect>/0000/0000.png, 0001.png …   one mask per defect
engine_wiring/defects_config.json                how much of each kind of defect has to be found
pipe_clip/ … underbody_screw/                    6 categories; fewer: name them in `categories`
"""
    source = "AutoVI from zenodo.org, record 10459003: an archive per category, unpacked into this folder."
    licence = "CC BY-NC-SA 4.0"
