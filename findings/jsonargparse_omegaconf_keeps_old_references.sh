#!/bin/sh
# In jsonargparse's parser mode "omegaconf", a reference in a config file keeps the file's value when an option changes the value.
# `${model.temperature}` is resolved while the file is read, so a later `--model.temperature=0.5` changes only one of the two.
# Mode "omegaconf+" resolves at the end and changes both. No warning is given.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    jsonargparse==4.53.0 omegaconf==2.4.0 pyyaml==6.0.3
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
from importlib.metadata import version

from jsonargparse import ArgumentParser

with open("config.yaml", "w") as file:
    file.write("model:\n  temperature: 0.07\nscore:\n  temperature: ${model.temperature}\n")
print("jsonargparse", version("jsonargparse"))
found = {}
for mode in ("omegaconf", "omegaconf+"):
    parser = ArgumentParser(parser_mode=mode, exit_on_error=False)
    parser.add_argument("--config", action="config")
    parser.add_argument("--model.temperature", type=float)
    parser.add_argument("--score.temperature", type=float)
    config = parser.parse_args(["--config=config.yaml", "--model.temperature=0.5"])
    found[mode] = config.model.temperature, config.score.temperature
    print(f"{mode}: model {found[mode][0]}, score {found[mode][1]}")
assert found == {"omegaconf": (0.5, 0.07), "omegaconf+": (0.5, 0.5)}
PYTHON
