"""AutoVI: six tasks of a car factory's final inspection."""

from collections.abc import Mapping

from afclip_lightning.data.published import Counts
from afclip_lightning.datasets.saturated_layout import SaturatedLayout


class AutoVI(SaturatedLayout):
    """AutoVI (Automotive Visual Inspection): 6 categories of images from a production line, with masks.

    In MVTec LOCO AD's layout, with a folder of masks per image and `defects_config.json` per category. Layout and
    numbers of training images are from public loaders; they were not compared with the archives themselves.

    Reference: Carvalho et al., The Automotive Visual Inspection Dataset (AutoVI), 2024, doi 10.5281/zenodo.10459003.
    """

    name = "autovi"
    published_counts: Mapping[str, Counts] = {
        "engine_wiring": (285, None, None),
        "pipe_clip": (195, None, None),
        "pipe_staple": (191, None, None),
        "tank_screw": (318, None, None),
        "underbody_pipes": (161, None, None),
        "underbody_screw": (373, None, None),
    }
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
