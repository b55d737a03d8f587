"""One name for each thing: the others stand in no code, message, help text, page or guide. See docs/glossary.md."""

import re

import pytest

from tests.support import REPOSITORY

TEXTS = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *(path for kind in ("py", "html", "js") for path in REPOSITORY.glob(f"afclip_*/**/*.{kind}")),
    *(REPOSITORY / "configs").rglob("*.yaml"),
]
OTHER_NAMES = {  # and the name of the thing
    r"good (image|picture|one)s?\b": "normal image",
    r"good examples?\b": "few-shot image",
    r"\benlarg(e|ed|ement)\b": "upsample",
    r"\bPixelMetrics\b": "AnomalyMetrics",
    r"\bFewShotMemory\b": "MemoryBank",
    r"\bcategory_word\b": "class_name_of",
    r"\b(remember|forget)(s|ed)?\b": "fit and reset, keep and drop",
    r"\b(one|line|sentences|images|views) an? (batch|category|image)\b": "per",
}


@pytest.mark.parametrize("other", OTHER_NAMES)
def test_a_thing_has_one_name(other: str) -> None:
    found = [
        f"{path.relative_to(REPOSITORY)}:{number}: {line.strip()}"
        for path in TEXTS
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(other, line, re.IGNORECASE)
    ]
    assert not found, f"say {OTHER_NAMES[other]}: " + "\n".join(found)


def test_the_glossary_is_a_table_of_terms_in_which_each_stands_once() -> None:
    rows = re.findall(r"^\| (.+?) \|", (REPOSITORY / "docs/glossary.md").read_text(encoding="utf-8"), re.MULTILINE)[1:]
    assert len(rows) == len(set(rows)) > 20
