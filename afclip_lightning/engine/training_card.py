"""The card of a trained head: its training sets, its seed and its epochs."""

import os

from afclip_lightning.data.base import AnomalyData
from afclip_lightning.data.training import names_of
from afclip_lightning.heads.card import Card, TrainedOn
from afclip_lightning.heads.pack import dated
from afclip_lightning.methods.base import AnomalyMethod


def training_card(method: AnomalyMethod, data: AnomalyData, epochs: int) -> Card:
    """Returns the card of a head right after its training.

    It contains no results. `head show` finds them in the run's folder, once the head was tested.

    Args:
        method: The method that was trained.
        data: The data of the run.
        epochs: Number of completed epochs; 0 if training ended within the first.
    """
    sets, seed = data.training_sets, os.environ.get("PL_GLOBAL_SEED")
    trained_on = tuple(
        TrainedOn(part.name, tuple(part.selected_categories()), len(part.samples(part.train_split)), part.licence)
        for part in sets
    )
    title = f"{type(method).__name__} trained on {names_of(sets)}"
    return dated(
        Card(title=title, trained_on=trained_on, seeds=() if seed is None else (int(seed),), epochs=epochs or None)
    )
