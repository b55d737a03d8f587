"""Facts that the classes of methods and datasets declare, for tables and pages."""

import inspect
from collections.abc import Iterator
from functools import cache
from itertools import chain
from pathlib import Path
from urllib.parse import urlsplit

import afclip_lightning.datasets
import afclip_lightning.methods
from afclip_lightning.data.base import AnomalyDataModule
from afclip_lightning.data.published import Published
from afclip_lightning.datasets.catalogue import dataset_classes
from afclip_lightning.datasets.tiled_layout import TiledLayout
from afclip_lightning.discovery import descendants, import_submodules
from afclip_lightning.methods.base import AnomalyMethod
from experiments.docs_site.references import Paper, papers
from experiments.docs_site.repository import ROOT


@cache
def method_classes() -> list[type[AnomalyMethod]]:
    """Returns the methods of the package, those with a paper first, each group by title."""
    import_submodules(afclip_lightning.methods)
    found = [cls for cls in descendants(AnomalyMethod) if cls.__module__.startswith(afclip_lightning.methods.__name__)]
    return sorted((cls for cls in found if cls.title), key=lambda cls: (not cls.paper, cls.title.lower()))


def page_name(cls: type[AnomalyMethod]) -> str:
    """Returns the name of a method's page: that of its file."""
    return cls.__module__.rpartition(".")[2]


def paper_of(cls: type[AnomalyMethod] | Published) -> Paper | None:
    """Returns the paper of a method or a dataset; `None` without one."""
    return papers()[cls.paper] if cls.paper else None


def trains(cls: type[AnomalyMethod]) -> bool:
    """Returns whether a method has a loss."""
    return cls.loss is not AnomalyMethod.loss


def normal_images(cls: type[AnomalyMethod]) -> str:
    """Returns the number of normal images that a method needs, and whether it uses other test images."""
    if cls.uses_test_set == "always":
        return "none; compares all test images"
    if cls.needs_references:
        return "none; compares test images"
    if not cls.takes_few_shot:
        return "none"
    if inspect.signature(cls.__init__).parameters["k_shot"].default == 0:
        return "none or a few"
    return "a few; or compares all test images" if cls.uses_test_set == "without few-shot images" else "a few"


def datasets() -> list[AnomalyDataModule]:
    """Returns every published dataset and the drawn one, each subset by itself, by title."""
    return sorted(chain.from_iterable(map(_variants, dataset_classes())), key=lambda data: data.title.lower())


def _variants(cls: type[AnomalyDataModule]) -> Iterator[AnomalyDataModule]:
    if not inspect.isabstract(cls) and cls.__module__.startswith(afclip_lightning.datasets.__name__):
        found = [cls(raw="raw")] if issubclass(cls, TiledLayout) else cls.variants(Path("data"))
        yield from (data for data in found if data.title)


def class_of(data: AnomalyDataModule) -> str:
    """Returns the name of a dataset on the command line: its class, and its subset if it has one."""
    variants = type(data).variants(Path("data"))
    return type(data).__name__ + (f"`, `{data.name.rpartition('_')[2]}" if len(variants) > 1 else "")


def test_images(data: AnomalyDataModule) -> str:
    """Returns the published normal and anomalous test images; empty if they are not published."""
    _, normal, anomalous = data.published_total
    if anomalous is None and data.published_counts:
        normal, anomalous = (sum(counts[i] or 0 for counts in data.published_counts.values()) for i in (1, 2))
    return "" if anomalous is None else f"{normal or 0:,} / {anomalous:,}"


def where(data: AnomalyDataModule) -> str:
    """Returns the source of a dataset, as Markdown."""
    if data.url:
        parts = urlsplit(data.url)
        return f"[{parts.netloc.removeprefix('www.')}{parts.path.rstrip('/')}]({data.url})"
    return " ".join(data.source.split()).rstrip(".")


def configs_of(cls: type) -> list[str]:
    """Returns the configs, from the repository's root, that name a class."""
    found = sorted((ROOT / "configs").rglob("*.yaml"))
    line = f"class_path: {cls.__name__}\n"
    return [str(path.relative_to(ROOT)) for path in found if line in path.read_text(encoding="utf-8") + "\n"]
