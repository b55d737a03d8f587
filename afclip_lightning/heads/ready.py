"""Ready models: heads that come with the package, by name."""

from pathlib import Path

from afclip_lightning.heads.file import SUFFIX, read_head_card
from afclip_runtime.errors import PROGRAM, UserError

FIRST = "real"  # model of `serve` if none is named
MODELS = Path(__file__).parent / "models"


def names() -> list[str]:
    """Returns the names of the ready models."""
    return sorted(path.stem for path in MODELS.glob("*" + SUFFIX))


def path_of(name: str) -> Path:
    """Returns the head file of a ready model.

    Raises:
        UserError: No ready model has this name. The message lists the names.
    """
    if name not in names():
        raise UserError(f"there is no ready model {name!r}. {offer()}")
    return MODELS / (name + SUFFIX)


def is_ready(path: str | Path) -> bool:
    """Returns whether a file is the head of a ready model.

    Its folder belongs to the package and is never written to.
    """
    return Path(path).parent == MODELS


def offer() -> str:
    """Returns a text that lists the ready models, one line each, and how to name one."""
    if not (found := names()):
        return "No model comes ready with this version."
    width = max(map(len, found))
    lines = [f"  --model {name:{width}}  {read_head_card(path_of(name)).title}".rstrip() for name in found]
    return "\n".join(["These come ready:", *lines, f"{PROGRAM} head show {found[0]} says more."])
