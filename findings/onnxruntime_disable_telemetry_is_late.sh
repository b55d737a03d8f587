#!/bin/sh
# onnxruntime's disable_telemetry_events() comes too late even as the first call: the import has already put an identifier of the machine and
# a queue of events into the home folder. The variable ORT_DISABLE_TELEMETRY=1, set before the import, prevents both.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    onnxruntime==1.32.0 numpy==2.4.6
mkdir "$work/by_function" "$work/by_variable"
export PYTHONPATH="$work/packages"
for way in by_function by_variable; do
    variable=$([ "$way" = by_variable ] && echo 1 || echo 0)
    env -i PATH="$PATH" PYTHONPATH="$PYTHONPATH" HOME="$work/$way" ORT_DISABLE_TELEMETRY="$variable" python3 -c '
import onnxruntime
onnxruntime.disable_telemetry_events()
print("onnxruntime", onnxruntime.__version__)'
    echo "$way: $(cd "$work/$way" && find . -type f | sort | tr '\n' ' ')"
done
test -s "$work/by_function/.cache/Microsoft/DeveloperTools/.onnxruntime/deviceid"
test -z "$(find "$work/by_variable" -type f)"
