"""Cost of FAPrompt's text in tests and in training, compared with a loop as in the official code.

    python -m experiments.faprompt.cost                                        # ViT-B/16 on a CPU
    python -m experiments.faprompt.cost --step                                 # and a step of training, both ways
    python -m experiments.faprompt.cost --model ViT-L-14-336 --device cuda --training

Text: the official code encodes 11 prior-free and 11 prior-enabled prompts of 77 tokens for every image, one image after
the other. Here the prior-free ones are encoded once for all, and the prior-enabled abnormal ones of a batch in one
pass, cut at their end and with their common beginning once. Both run in turns, in the same process, on random weights;
reported is the median of the ratios. The results of both are compared first.

Step: a step of the head, from features to the optimiser, against one whose text is encoded as in that loop, each in a
process of its own, which tells its memory; times are over passes of the backbone taken in turn, medians.

Training: peak memory and time of steps of a batch at the model's paper size, in `bf16-mixed`; on a GPU only.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.methods.faprompt import FAPrompt
from afclip_lightning.prompts.learner import fill_gap
from afclip_lightning.types import Batch, Sample


def padded(backbone: ClipBackbone, prompts: Tensor) -> Tensor:
    """Returns prompts `[K, T, width]` filled with the padding token to the context length."""
    filler = backbone.text.token_embedding.weight[0].expand(len(prompts), backbone.text.context_length, -1)
    return torch.cat([prompts, filler[:, prompts.shape[1] :]], dim=1)


def encode_padded(model: FAPrompt, bias: Tensor) -> Tensor:
    """Returns the embeddings `[1 + K, D]` of the prompts of one image, at full length, its prior `[width]` added."""
    prompts, backbone = model.prompts, model.backbone
    normal = padded(backbone, fill_gap(prompts.normal_words, prompts.normal_tokens))
    shared = prompts.normal_tokens.expand(len(prompts.abnormal_tokens), -1, -1)
    tokens = torch.cat([shared, prompts.abnormal_tokens + bias], dim=1)
    abnormal = padded(backbone, fill_gap(prompts.abnormal_words, tokens))
    embedded: Tensor = backbone.text(torch.cat([normal, abnormal]), prompts.end, prompts.deep())
    return embedded


def image_by_image(model: FAPrompt, prior: Tensor) -> Tensor:
    """Returns the adapted embeddings `[B, K, D]` as in the official code: at full length, without caching."""
    rows = []
    for bias in prior:
        encode_padded(model, torch.zeros_like(bias))
        rows.append(encode_padded(model, bias)[1:])
    return torch.stack(rows)


def as_the_loop(model: FAPrompt, batch: int) -> None:
    """Makes a model encode its text per image at full length, with and without prior, with gradients."""
    none = torch.zeros(model.backbone.text.width, device=model.device)
    model.text_embeddings = lambda: torch.stack([encode_padded(model, none) for _ in range(batch)]).mean(0)  # type: ignore[method-assign]
    model.prompts.adapted = lambda _, prior: torch.stack([encode_padded(model, bias)[1:] for bias in prior])  # type: ignore


def steps(model: FAPrompt, batch: Batch, rounds: int) -> tuple[list[float], list[float], float]:
    """Returns the seconds of alternating steps of the head and passes of the backbone, and the peak memory in MB."""
    optimizer = model.configure_optimizers()
    assert optimizer is not None
    features = model.extract(batch)

    def step() -> None:
        optimizer.zero_grad()
        model.loss(features, batch)["total"].backward()
        optimizer.step()

    taken, passes = [], []
    for _ in range(1 + rounds):
        passes.append(seconds(lambda: model.extract(batch)))
        taken.append(seconds(step))
    return taken[1:], passes[1:], resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def seconds(call: Callable[[], object]) -> float:
    """Returns the time of a call, including the device's work."""
    start = time.perf_counter()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - start


def text_ratios(model: FAPrompt, batch: int, rounds: int) -> list[float]:
    """Returns our time relative to the loop, per round.

    Raises:
        RuntimeError: The two do not give the same embeddings.
    """
    prior = torch.randn(batch, model.backbone.text.width, device=model.device) / 10
    with torch.inference_mode():
        ours, theirs = model.prompts.adapted(model.backbone, prior), image_by_image(model, prior)
        if (ours - theirs).abs().max() > 1e-3 * theirs.abs().max():
            raise RuntimeError("the batched pass and the loop give other embeddings")
        return [
            seconds(lambda: model.prompts.adapted(model.backbone, prior))
            / seconds(lambda: image_by_image(model, prior))
            for _ in range(rounds)
        ]


def images_of(count: int, size: int) -> Batch:
    """Returns noise, half of it anomalous."""
    mask = torch.zeros(count, size, size, dtype=torch.uint8)
    mask[::2, : size // 4, : size // 3] = 1
    samples = [Sample("benchmark", "noise", "test", Path(f"{i}.png"), 1 - i % 2) for i in range(count)]
    labels, known = torch.tensor([s.label for s in samples]), torch.ones(count, dtype=torch.bool)
    return Batch(torch.randn(count, 3, size, size), mask, labels, known, samples)


def train(model: FAPrompt, batch: int, steps: int) -> tuple[float, float]:
    """Returns the peak memory in GiB and the median seconds of a step, `bf16-mixed`, with the backbone's pass."""
    optimizer, images = model.configure_optimizers(), images_of(batch, model.backbone.image_size).to(model.device)

    def step() -> None:
        with torch.autocast("cuda", dtype=torch.bfloat16):
            total = model.loss(model.extract(images), images)["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        if not torch.isfinite(total):
            raise RuntimeError("the loss is not finite")

    step()
    torch.cuda.reset_peak_memory_stats()
    times = [seconds(step) for _ in range(steps)]
    return torch.cuda.max_memory_allocated() / 2**30, statistics.median(times)


def main() -> None:
    """Reads the command line, measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="ViT-B-16", help="open_clip's name (%(default)s)")
    parser.add_argument("--image_size", type=int, help="the model's own by default; 518 is the paper's for ViT-L/14")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--training", action="store_true", help="also steps of training, on a GPU")
    parser.add_argument("--step", action="store_true", help="also steps of the head, against the loop")
    parser.add_argument("--one", choices=["ours", "loop"], help="steps of one way, here; prints JSON")
    arguments = parser.parse_args()
    backbone = ClipBackbone(arguments.model, "random", image_size=arguments.image_size)
    depth = backbone.vision.depth
    model = FAPrompt(backbone, layer=depth, vv_from=max(1, depth - 18)).to(arguments.device)
    if arguments.one:
        if arguments.one == "loop":
            as_the_loop(model, arguments.batch)
        batch = images_of(arguments.batch, backbone.image_size).to(model.device)
        print(json.dumps(steps(model, batch, arguments.rounds)))
        return
    ratios = text_ratios(model, arguments.batch, arguments.rounds)
    shared = 1 + model.prompts.normal_tokens.shape[1]  # with which all the abnormal prompts begin
    tokens = shared + arguments.batch * (model.prompts.end[1:] + 1 - shared).sum().item()
    loop = 2 * len(model.prompts.end) * backbone.text.context_length * arguments.batch
    print(f"{arguments.model} on {arguments.device}, {torch.get_num_threads()} threads, batch {arguments.batch}:")
    print(f"text tokens {tokens} instead of {loop}: {tokens / loop:.3f}")
    print(f"text time, ours over the loop: {statistics.median(ratios):.3f} (of {sorted(round(r, 3) for r in ratios)})")
    if arguments.step:
        times, memory = {}, {}
        for way in ("ours", "loop"):
            command = [sys.executable, "-m", "experiments.faprompt.cost", *sys.argv[1:], "--one", way]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            taken, passes, memory[way] = json.loads(done.stdout.splitlines()[-1])
            times[way] = statistics.median(t / p for t, p in zip(taken, passes, strict=True))
            print(f"step, {way}: {times[way]:.2f} passes of the backbone, peak {memory[way]:.0f} MB")
        ratio = times["ours"] / times["loop"]
        print(f"step, ours over the loop: time {ratio:.3f}, memory {memory['ours'] / memory['loop']:.3f}")
    if arguments.training:
        memory, time_a_step = train(model, arguments.batch, arguments.rounds)
        print(f"training, bf16-mixed: peak {memory:.1f} GiB, {time_a_step:.3f} s a step")


if __name__ == "__main__":
    main()
