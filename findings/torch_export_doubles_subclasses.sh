#!/bin/sh
# torch.export leaves classes behind. If a module occurs twice in the exported one, its class has subclasses afterwards that have its own
# module and name, until the garbage collector removes them. A registry that walks __subclasses__() can take one of them for the class,
# but their constructor has other arguments.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m pip install --quiet --disable-pip-version-check --root-user-action ignore --target "$work/packages" torch==2.15.0
cd "$work"
PYTHONPATH="$work/packages" python3 - <<'PYTHON'
import gc
import inspect

import torch


class Layer(torch.nn.Module):
    def __init__(self, width=2):
        super().__init__()
        self.linear = torch.nn.Linear(width, width)

    def forward(self, x):
        return self.linear(x)


class Twice(torch.nn.Module):
    def __init__(self, first, second):
        super().__init__()
        self.first, self.second = first, second

    def forward(self, x):
        return self.second(self.first(x))


def left_behind(model):
    torch.export.export(model.eval(), (torch.ones(1, 2),))
    return Layer.__subclasses__()


print("torch", torch.__version__)
apart = left_behind(Twice(Layer(), Layer()))
print("two layers:", len(apart), "subclasses")
shared = Layer()
twins = left_behind(Twice(shared, shared))
print("one layer twice:", len(twins), "subclasses,", {(cls.__module__, cls.__qualname__) for cls in twins})
print("constructor of Layer", inspect.signature(Layer.__init__), "and of one of them", inspect.signature(twins[0].__init__))
assert not apart
assert twins and all((cls.__module__, cls.__qualname__) == (Layer.__module__, Layer.__qualname__) for cls in twins)
assert all(cls is not Layer for cls in twins) and "path" in inspect.signature(twins[0].__init__).parameters
del twins
gc.collect()
print("after a collection:", len(Layer.__subclasses__()))
assert not Layer.__subclasses__()
PYTHON
