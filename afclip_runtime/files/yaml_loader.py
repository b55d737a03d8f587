"""YAML as plain values of a limited size. PyYAML comes with afclip_lightning; the runtime alone does not use it."""

import re
from typing import Any

import yaml
from yaml import YAMLError

__all__ = ["YAMLError", "load"]

VALUES_LIMIT = 2**20  # values of a YAML file, aliases expanded


def load(text: str, depth: int) -> Any:
    """Returns the plain values of a YAML text.

    Args:
        text: The text.
        depth: Maximum number of nested lists and mappings.

    Raises:
        YAMLError: The text is not YAML, or exceeds the limits.
        Exception: A value is invalid for its tag.
    """
    loader = _Loader(text, depth)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


class _Loader(yaml.SafeLoader):
    """Loader of plain values of a limited size, since aliases let a short text describe a huge value."""

    def __init__(self, text: str, limit: int) -> None:
        super().__init__(text)
        self.limit = limit
        self.depth = 0
        self.sizes: dict[yaml.Node, int] = {}  # values below each finished node, aliases expanded

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        is_alias = self.check_event(yaml.AliasEvent)
        mark = self.peek_event().start_mark
        self.depth += 1
        if self.depth > self.limit:
            raise yaml.composer.ComposerError(None, None, f"nested more than {self.limit} deep", mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        if not is_alias:
            parts = [] if isinstance(node, yaml.ScalarNode) else node.value
            flat = [part for pair in parts for part in pair] if isinstance(node, yaml.MappingNode) else parts
            self.sizes[node] = 1 + sum(self.sizes[part] for part in flat)
        elif node not in self.sizes:
            raise yaml.composer.ComposerError(None, None, "a value contains itself", mark)
        if self.sizes[node] > VALUES_LIMIT:
            raise yaml.composer.ComposerError(None, None, f"more than {VALUES_LIMIT:,} values", mark)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key is a list or a mapping", key.start_mark)
            if (key.tag, key.value) in seen and key.tag != "tag:yaml.org,2002:merge":
                raise yaml.constructor.ConstructorError(None, None, f"{key.value!r} occurs twice", key.start_mark)
            seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


# In YAML 1.1, 1e-3 is text. In YAML 1.2, and as users expect, it is a number.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"), list("-+.0123456789")
)
