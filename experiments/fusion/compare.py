"""Fusions against their heads on kept features of real sets: AUROC of images and pixels, with intervals.

    python -m experiments.fusion.compare --features REAL --pairs DRAWN.safetensors --normal HELD_OUT.safetensors \
        --heads seed-0.ckpt seed-1.ckpt seed-2.ckpt --out results.json

REAL is what `experiments.adapt.extract` wrote; DRAWN and HELD_OUT are chunks of `experiments.real_head.extract`; the
heads are PatchLogit of `experiments.real_head.train`, one per seed. Beside each stand UniADet, trained here on DRAWN
with the seed, and PatchRarity, which trains nothing. Fusions take their scales from the flawless pictures of HELD_OUT
(`drawn`), or from the set's own normal training images (`own`); `none` is the mean of the heads as they are.

Intervals are of 95 %, from a paired bootstrap over the test images; of each resample the mean over the seeds counts.
The best head is that with the highest value on the test set itself, in hindsight: no user can choose so well.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afclip_lightning.backbones.clip import ClipBackbone
from afclip_lightning.engine.checkpoint import read_checkpoint
from afclip_lightning.methods.fusion import Fusion
from afclip_lightning.types import UNKNOWN, Batch, ClipFeatures, Sample
from experiments.adapt.compare import SIDE, _area, auroc
from experiments.real_head.pictures import ANOMALOUS
from experiments.real_head.train import Pairs, read_pairs

LAYERS = (5, 7, 9)
HEADS = ("PatchLogit", "UniADet", "PatchRarity")
SETS = ("mvtec_leather_subset", "hazelnut_toy", "magnetic_tile", "brain_mri_yes_no")
RESAMPLES, BINS, BATCH = 300, 200, 16
SAMPLE = Sample("set", "object", "test", Path("image"), UNKNOWN, class_name="object")
HeadOutputs = tuple[Tensor, Tensor]  # by head: scores [heads, T], and maps [heads, T, SIDE, SIDE]


def batch_of(count: int, mask: Tensor | None = None) -> Batch:
    """Returns a batch for stored features; with a mask, a training batch."""
    none = torch.empty(0)
    if mask is None:
        return Batch(none, none, none, none, [SAMPLE] * count)
    known = torch.ones(count, dtype=torch.bool)
    return Batch(none, mask, mask.flatten(1).amax(dim=1).long(), known, [SAMPLE] * count)


def fusion_of(backbone: ClipBackbone, checkpoint: Path, pairs: Pairs, seed: int, steps: int) -> Fusion:
    """Returns an unfitted fusion of the three heads of a seed."""
    torch.manual_seed(seed)
    given = {"PatchLogit": {}, "UniADet": {"image_score": "patches"}, "PatchRarity": {}}
    fusion = Fusion(
        backbone, [{"method": name, "arguments": {"layers": list(LAYERS), **given[name]}} for name in HEADS]
    )
    logit, trained, _ = fusion.members
    logit.load_state_dict(read_checkpoint(checkpoint)["state_dict"], strict=False)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam([p for p in trained.parameters() if p.requires_grad], 1e-3, betas=(0.5, 0.999))
    for _ in range(steps):
        index = torch.randint(len(pairs.label), (BATCH,), generator=generator)
        mask = (pairs.target[index] == ANOMALOUS).byte()
        total = trained.loss(pairs.features(index, backbone.grid), batch_of(BATCH, mask))["total"]
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return fusion.eval()


@torch.inference_mode()
def outputs_of(fusion: Fusion, tokens: Sequence[Tensor]) -> tuple[HeadOutputs, Tensor]:
    """Returns the outputs of each head for images, and their summary by `Fusion.statistics_of`."""
    scores, maps, kept = [], [], []
    for start in range(0, len(tokens[0]), BATCH):
        layers = tuple(layer[start : start + BATCH].float() for layer in tokens)
        features, batch = ClipFeatures(layers, fusion.backbone.grid), batch_of(len(layers[0]))
        found = [head.predict_from(features, fusion.spec, batch) for head in fusion.members]
        pixels = torch.stack([one.anomaly_map for one in found])
        scores.append(torch.stack([one.pred_score for one in found]))
        maps.append(F.avg_pool2d(pixels, pixels.shape[-1] // SIDE))
        moments = [scores[-1].double(), pixels.double().mean(dim=(2, 3)), pixels.double().square().mean(dim=(2, 3))]
        kept.append(torch.stack(moments, dim=-1).transpose(0, 1))
    return (torch.cat(scores, dim=1), torch.cat(maps, dim=1)), torch.cat(kept)


def rules_of(fusion: Fusion, said: HeadOutputs, normal: dict[str, list[Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
    """Returns scores and maps of each head and of each fusion; a fusion is linear in the outputs of its heads."""
    scores, maps = said
    rules = {name: (scores[i], maps[i]) for i, name in enumerate(HEADS)}
    rules["fusion, none"] = scores.mean(dim=0), maps.mean(dim=0)
    for name, groups in normal.items():
        fusion.take_normal(groups)
        of_score, of_map = fusion.scale.unbind(dim=1)
        rules[f"fusion, {name}"] = (scores / of_score[:, None]).mean(0), (maps / of_map[:, None, None, None]).mean(0)
        if name == "drawn":
            for i, left in enumerate(HEADS):
                rest = [j for j in range(len(HEADS)) if j != i]
                two = (
                    (scores[rest] / of_score[rest, None]).mean(0),
                    (maps[rest] / of_map[rest, None, None, None]).mean(0),
                )
                rules[f"fusion, {name}, without {left}"] = two
    return rules


def counts_of(maps: Tensor, mask: np.ndarray) -> np.ndarray:
    """Returns per image the histogram of the values of both kinds of pixels, anomalous first, `[T, 2, BINS]`."""
    values = maps.numpy()
    place = np.digitize(values, np.quantile(values, np.linspace(0, 1, BINS + 1)[1:-1]))
    of = [[np.bincount(p[kind], minlength=BINS) for kind in (m, ~m)] for p, m in zip(place, mask, strict=True)]
    return np.array(of)


def compare(
    fusions: Sequence[Fusion], drawn: Sequence[list[Tensor]], folder: Path, name: str
) -> dict[str, dict[str, list[float]]]:
    """Returns the AUROCs per rule, and their differences to the best head, with intervals."""
    images = json.loads((folder / f"{name}.json").read_text())
    test, own = ([i for i, row in enumerate(images) if row["split"] == split] for split in ("test", "train"))
    files = [np.load(folder / f"{name}.L{layer}.npy", mmap_mode="r") for layer in LAYERS]
    label = np.array([images[i]["label"] for i in test])
    masks = torch.from_numpy(np.load(folder / f"{name}.masks.npy", mmap_mode="r")[test])
    small = (F.interpolate(masks[:, None].float(), (SIDE, SIDE), mode="area")[:, 0] > 0.5).numpy()
    has_masks = any(images[i].get("mask") for i in test)
    found: list[dict[str, tuple[Tensor, Tensor]]] = []
    for fusion, aux in zip(fusions, drawn, strict=True):
        normal = {"drawn": aux}
        if own:
            normal["own"] = [outputs_of(fusion, [torch.from_numpy(file[own]) for file in files])[1]]
        found.append(rules_of(fusion, outputs_of(fusion, [torch.from_numpy(file[test]) for file in files])[0], normal))
    rng = np.random.default_rng(0)
    kinds = [np.flatnonzero(label == kind) for kind in (0, 1)]
    weights = [np.ones(len(label))]
    for _ in range(RESAMPLES):
        chosen = np.concatenate([rng.choice(kind, len(kind)) for kind in kinds])
        weights.append(np.bincount(chosen, minlength=len(label)).astype(float))
    values: dict[str, dict[str, np.ndarray]] = {"image": {}, "pixel": {}}
    for rule in found[0]:
        seeds = [one[rule] for one in found]
        of = np.array([[auroc(scores.numpy(), label, weight) for weight in weights] for scores, _ in seeds])
        values["image"][rule] = of.mean(axis=0)
        if has_masks:
            counts = [counts_of(maps, small) for _, maps in seeds]
            of = np.array([[_area(*np.tensordot(weight, one, axes=1)) for weight in weights] for one in counts])
            values["pixel"][rule] = of.mean(axis=0)
    results: dict[str, dict[str, list[float]]] = {}
    for metric, rules in values.items():
        best = max(HEADS, key=lambda head, rules=rules: rules[head][0]) if rules else ""
        for rule, value in rules.items():
            for key, numbers in ((metric, value), (f"{metric} above {best}", value - rules[best])):
                low, high = np.quantile(numbers[1:], [0.025, 0.975])
                results.setdefault(rule, {})[key] = [100 * float(v) for v in (numbers[0], low, high)]
    return results


def main() -> None:
    """Runs the comparison; prints a table of each set, and writes all numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--features", type=Path, required=True)
    parser.add_argument("--pairs", type=Path, nargs="+", required=True)
    parser.add_argument("--normal", type=Path, nargs="+", required=True)
    parser.add_argument("--heads", type=Path, nargs="+", required=True)
    parser.add_argument("--steps", type=int, default=100, help="of UniADet's training")
    parser.add_argument("--sets", nargs="+", default=SETS)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    backbone = ClipBackbone("dinov2-vits14", "random", 252, "bicubic_antialias")  # its features are there already
    pairs, held = read_pairs(options.pairs, LAYERS), read_pairs(options.normal, LAYERS)
    fusions = [fusion_of(backbone, head, pairs, seed, options.steps) for seed, head in enumerate(options.heads)]
    kinds = [source.split("/")[0] for source in held.source]
    drawn = []
    for fusion in fusions:
        rows = {kind: [i for i, one in enumerate(kinds) if one == kind and not held.label[i]] for kind in set(kinds)}
        drawn.append([outputs_of(fusion, [layer[rows[kind]] for layer in held.tokens])[1] for kind in sorted(rows)])
        fusion.take_normal(drawn[-1])
        print("scale of scores and maps:", [[round(v, 4) for v in row] for row in fusion.scale.tolist()], flush=True)
    results = {}
    for name in options.sets:
        results[name] = compare(fusions, drawn, options.features, name)
        for rule, of in results[name].items():
            cells = [f"{key} {v:.1f} [{low:.1f}, {high:.1f}]" for key, (v, low, high) in of.items()]
            print(f"{name} | {rule} | {' | '.join(cells)}", flush=True)
    options.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
