#!/bin/sh
# jsonargparse reads `--model.inner.name=null` as the text "None" if it is an argument of a class that is itself an argument of a class.
# The value is read as YAML at the first level, written with `str` into an option of the second, and read again there. One level
# down, and in a config file, null is null. Lists are changed in the same way: `[a, null]` becomes ['a', 'None'].
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    jsonargparse==4.53.0 pyyaml==6.0.3
cd "$work"
cat > model.py <<'PYTHON'
class Inner:
    def __init__(self, name: str | None = "x", parts: list[str | None] | None = None): ...


class Model:
    def __init__(self, inner: Inner, name: str | None = "x"): ...
PYTHON
PYTHONPATH="$work/packages:$work" python3 - <<'PYTHON'
from importlib.metadata import version

from jsonargparse import ArgumentParser
from model import Model

print("jsonargparse", version("jsonargparse"))
parser = ArgumentParser(exit_on_error=False)
parser.add_subclass_arguments(Model, "model")
base = ["--model=model.Model", "--model.inner=model.Inner"]
options = ["--model.name=null", "--model.inner.name=null", "--model.inner.parts=[a, null]"]
init = parser.parse_args([*base, *options]).model.init_args
section = parser.parse_args([*base, "--model={inner: {name: null, parts: [a, null]}}"]).model.init_args
print("one level down:", repr(init.name))
print("two levels down:", repr(init.inner.init_args.name), init.inner.init_args.parts)
print("as a section:", repr(section.inner.init_args.name), section.inner.init_args.parts)
assert init.name is None
assert (init.inner.init_args.name, init.inner.init_args.parts) == ("None", ["a", "None"])
assert (section.inner.init_args.name, section.inner.init_args.parts) == (None, ["a", None])
PYTHON
