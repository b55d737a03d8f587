"""Additions of the site to the page of a method: its arguments and configs, from the class."""

from experiments.docs_site import facts

PART = """

## Arguments of `{name}`

::: {module}.{name}
    options: {{members: false}}

Configs: {configs}.
"""


def arguments(source: str) -> str:
    """Returns the addition to a page of docs/methods/; empty for all other pages.

    Args:
        source: The page's file, from the repository's root.
    """
    shown = [cls for cls in facts.method_classes() if source == f"docs/methods/{facts.page_name(cls)}.md"]
    return "".join(
        PART.format(
            name=cls.__name__,
            module=cls.__module__,
            configs=", ".join(f"`{path}`" for path in facts.configs_of(cls)),
        )
        for cls in shown
    )
