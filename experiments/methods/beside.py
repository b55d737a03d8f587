"""Training steps of this tree's methods relative to another tree's, and the differences of their gradients.

    git worktree add ../before <commit>
    python -m experiments.methods.beside ../before --methods AF-CLIP
    python -m experiments.methods.beside ../before --model tiny-8-112 --image_size 112 --rounds 9

Each tree has a process, and they take turns: a ratio is of two steps right after each other, in CPU time of one thread,
so that what else runs on the machine changes both alike. Reported are the median of the ratios, the step over the
backbone's pass with what the method taps, what a second epoch with kept features is of one without (a step over a step
and a pass, nothing read), the operations of both, a multiplication and an addition being two, and by how much the
gradients differ: the norm of the difference over the norm, of the worst parameter. All parameters are moved a little
before: where one begins with zeros, those behind it have no gradient.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

HERE = Path(__file__).parents[2]


def serve(options: argparse.Namespace) -> None:
    """Writes the method's gradients to a file, then answers lines: `seconds` or `operations` of `step` or `pass`."""
    from afclip_lightning.backbones.clip import ClipBackbone
    from experiments.methods.benchmark import METHODS, images, operations

    torch.set_num_threads(1)
    backbone = ClipBackbone(options.model, "random", image_size=options.image_size)
    torch.manual_seed(0)
    method = METHODS[options.methods[0]](backbone)
    batch = images(options.batch, backbone.image_size, "cpu")
    optimizer = method.configure_optimizers()
    assert optimizer is not None
    with torch.no_grad():
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter += 0.01 * torch.randn_like(parameter)
    features = method.extract(batch)

    def backward() -> None:
        optimizer.zero_grad()
        method.loss(features, batch)["total"].backward()

    def step() -> None:
        backward()
        optimizer.step()

    backward()
    torch.save({name: p.grad for name, p in method.named_parameters() if p.grad is not None}, options.serve)
    calls: dict[str, Callable[[], object]] = {"step": step, "pass": lambda: method.extract(batch)}
    print("ready", flush=True)
    for line in sys.stdin:
        what, name = line.split()
        start = time.process_time()
        counted = operations(calls[name]) if what == "operations" else calls[name]()
        print(counted if what == "operations" else time.process_time() - start, flush=True)


class Tree:
    """A process that runs the method of a tree."""

    def __init__(self, root: Path, arguments: list[str], gradients: Path) -> None:
        environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, __file__, str(root), *arguments, "--serve", str(gradients)]
        self.process = subprocess.Popen(
            command, cwd=root, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.to, self.back = self.process.stdin, self.process.stdout
        while "ready" not in (line := self.back.readline()):
            if not line:
                raise SystemExit(f"{root}: the method does not run there")
        self.gradients: dict[str, Tensor] = torch.load(gradients, weights_only=True)

    def ask(self, what: str, name: str) -> float:
        """Returns the CPU `seconds` or the `operations` of a `step` or a `pass`."""
        self.to.write(f"{what} {name}\n")
        self.to.flush()
        return float(self.back.readline())


def main() -> None:
    """Reads the command line, measures and prints a line for each method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path, help="the other tree")
    parser.add_argument("--model", default="ViT-B-16")
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--methods", nargs="+", default=["AF-CLIP", "FAPrompt", "KAnoCLIP"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options)
        return
    for name in options.methods:
        arguments = ["--methods", name, "--batch", str(options.batch)]
        arguments += ["--model", options.model, "--image_size", str(options.image_size)]
        with tempfile.TemporaryDirectory() as folder:
            roots = (options.before.resolve(), HERE)
            before, after = (Tree(root, arguments, Path(folder) / f"{i}.pt") for i, root in enumerate(roots))
            ratios, passes, epochs = [], [], []
            for _ in range(options.rounds):
                first, second = (tree.ask("seconds", "step") for tree in (before, after))
                backbone = after.ask("seconds", "pass")
                ratios.append(second / first)
                passes.append((first / backbone, second / backbone))
                epochs.append((first / (first + backbone), second / (second + backbone)))
            print(f"{name}: a step takes {statistics.median(ratios):.2f} of the other's")
            for what, pairs in (("step over pass", passes), ("second epoch over first", epochs)):
                old, new = (statistics.median(values) for values in zip(*pairs, strict=True))
                print(f"  {what}: {old:.2f} before, {new:.2f} here")
            old, new, backbone = (
                tree.ask("operations", name) / 1e9
                for tree, name in ((before, "step"), (after, "step"), (after, "pass"))
            )
            print(f"  GFLOP of a step: {old:.1f} before, {new:.1f} here; of a pass: {backbone:.1f}")
            print(f"  second epoch over first by operations: {new / (new + backbone):.3f}")
            apart = {
                parameter: float((gradient - before.gradients[parameter]).norm() / before.gradients[parameter].norm())
                for parameter, gradient in after.gradients.items()
            }
            worst = max(apart, key=lambda parameter: apart[parameter])
            print(f"  gradients: {apart[worst]:.1e} apart at most ({worst}), of {len(apart)} parameters")
            for tree in (before, after):
                tree.to.close()
                tree.process.wait()


if __name__ == "__main__":
    main()
