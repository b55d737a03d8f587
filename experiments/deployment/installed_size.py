"""Bytes on disk of packages with all their requirements, in the environment of the running interpreter.

    ENV/bin/python experiments/deployment/installed_size.py NAME …

It needs nothing but the standard library, so that every environment can run it.
"""

import json
import re
import sys
from importlib.metadata import Distribution, PackageNotFoundError, distribution


def required(names: list[str]) -> dict[str, Distribution]:
    """Returns the packages of these names, as `name` or `name[extra,extra]`, and all their requirements, by name."""
    found: dict[str, Distribution] = {}
    seen: set[tuple[str, str]] = set()
    left = list(names)
    while left:
        name, extras = re.fullmatch(r"\s*([\w.-]+)\s*(?:\[(.*?)\])?.*", left.pop()).groups()  # type: ignore[union-attr]
        name = re.sub(r"[-_.]+", "-", name).lower()
        for extra in ["", *(extras or "").split(",")]:
            if (name, extra.strip()) in seen:
                continue
            seen.add((name, extra.strip()))
            try:
                found[name] = distribution(name)
            except PackageNotFoundError:
                continue  # of another platform, or of an older Python
            for line in found[name].requires or ():
                wanted = re.search(r"extra == ['\"]([^'\"]+)", line)
                if (wanted.group(1) if wanted else "") == extra.strip():
                    left.append(line)
    return found


def size(package: Distribution) -> int:
    """Returns the bytes of the files that a package installed."""
    paths = [package.locate_file(file) for file in package.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file())  # type: ignore[attr-defined]


if __name__ == "__main__":
    print(json.dumps({name: size(package) for name, package in required(sys.argv[1:]).items()}))
