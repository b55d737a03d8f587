"""Tests for `discovery`: the classes that are found."""

from afclip_lightning.discovery import descendants
from afclip_lightning.methods.afclip import AFCLIP
from afclip_lightning.methods.base import AnomalyMethod


def test_a_class_that_bears_the_name_of_another_is_not_found() -> None:
    """Like a class that `torch.export` leaves for the traced module."""
    proxy = type("AFCLIP", (AFCLIP,), {"__module__": AFCLIP.__module__, "__qualname__": AFCLIP.__qualname__})
    assert proxy in AFCLIP.__subclasses__()
    assert [cls for cls in descendants(AnomalyMethod) if cls.__name__ == "AFCLIP"] == [AFCLIP]


def test_a_class_within_a_function_is_found_and_its_children_too() -> None:
    class Own(AFCLIP):
        pass

    class Inner(Own):
        pass

    found = descendants(AFCLIP)
    assert found.index(Own) < found.index(Inner)
