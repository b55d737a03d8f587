#!/bin/sh
# `import openvino` alone creates an identifier for Google Analytics in the home folder (~/intel) and reports the import without asking: its
# dialog is switched off. The package has no variable to prevent it. If openvino_telemetry cannot be imported, no identifier is created.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    openvino==2026.4.1 openvino-telemetry==2025.2.0 numpy==2.4.6
mkdir "$work/plain" "$work/without"
for way in plain without; do
    env -i PATH="$PATH" PYTHONPATH="$work/packages" HOME="$work/$way" python3 -c '
import sys
if sys.argv[1] == "without":
    sys.modules["openvino_telemetry"] = None
import openvino
print("openvino", openvino.__version__)' "$way"
    echo "$way: $(cd "$work/$way" && find . -type f | sort | tr '\n' ' ')"
done
test -s "$work/plain/intel/openvino_ga_cid"
test -z "$(find "$work/without" -type f)"
