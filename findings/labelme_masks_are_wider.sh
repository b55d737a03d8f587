#!/bin/sh
# labelme's shape_to_mask marks more than what was drawn: a box of 5×4 pixels gets 6×5, and a line is 10 pixels wide.
# The tool's coordinates lie between pixels, but shape_to_mask draws them as pixels and includes the last ones. A line on
# the canvas has no width. The 10 pixels are a default of the function, and `shapes_to_label` has no option to change it.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" \
    --no-deps labelme==6.3.1 numpy==2.4.6 pillow==13.0.0
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import importlib.util
import sys
from importlib.metadata import version
from types import ModuleType

# The one module, without the package's own dependencies (Qt); of the file format it needs the name of a type alone
for name in ("labelme", "labelme._label_file"):
    sys.modules[name] = ModuleType(name)
sys.modules["labelme._label_file"].ShapeDict = dict
spec = importlib.util.spec_from_file_location("shape", "packages/labelme/utils/shape.py")
shape = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shape)

box = shape.shape_to_mask((20, 30), [[3.0, 2.0], [8.0, 6.0]], "rectangle")
circle = shape.shape_to_mask((20, 30), [[15.0, 10.0], [20.0, 10.0]], "circle")
shapes = [{"label": "crack", "points": [[5.0, 10.0], [25.0, 10.0]], "shape_type": "line"}]
line, _ = shape.shapes_to_label((20, 30), shapes, {"crack": 1})
rows = int((line > 0).any(1).sum())
print("labelme", version("labelme"))
print(f"box of 5x4 = 20 pixels: {box.sum()}; circle of radius 5, 78.5 pixels: {circle.sum()}; line: {rows} rows")
assert box.sum() == 30
assert circle.sum() == 97
assert rows == 10
PYTHON
