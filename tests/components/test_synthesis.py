"""Pseudo anomalies: the noise and the blend against loops, published facts of the masks, seeds, textures, errors."""

import importlib.util
import math
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from numpy.random import Generator
from PIL import Image

from afclip_lightning.backbones.preprocess import Preprocess
from afclip_lightning.components.synthesis import (
    AUGMENTATIONS,
    DraemSynthesis,
    FolderTextures,
    ProceduralTextures,
    ReferenceTextures,
    TextureSource,
    generator_of,
    perlin_noise,
)
from afclip_lightning.types import Sample
from afclip_runtime.errors import DatasetError
from tests.support import REPOSITORY

SIZES = [((240, 240), 16), ((518, 518), 14), ((70, 82), 14)]
PLAIN = Preprocess(0, (0, 0, 0), (1, 1, 1))  # unchanged pixels in [0, 1]


def stream(seed: int = 0) -> Generator:
    return np.random.default_rng(seed)


def some_image(shape: tuple[int, int] = (70, 82)) -> torch.Tensor:
    return torch.rand(3, *shape, generator=torch.Generator().manual_seed(0))


def coverage(mask: np.ndarray, patch: int) -> np.ndarray:
    h, w = mask.shape[0] // patch, mask.shape[1] // patch
    return np.array([[mask[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch].mean() for j in range(w)]
                     for i in range(h)])  # fmt: skip


class Fixed(TextureSource):
    def draw(self, shape: tuple[int, int], rng: Generator, reference: np.ndarray | None) -> np.ndarray:
        pixels: np.ndarray = np.arange(shape[0] * shape[1] * 3).reshape(*shape, 3) % 251
        return pixels.astype(np.uint8)


def perlin_with_loops(shape: tuple[int, int], cells: tuple[int, int], angle: np.ndarray) -> np.ndarray:
    def fade(t: float) -> float:
        return 6 * t**5 - 15 * t**4 + 10 * t**3

    noise = np.zeros(shape)
    for i in range(shape[0]):
        for j in range(shape[1]):
            y, x = i * cells[0] / shape[0], j * cells[1] / shape[1]
            row, column = math.floor(y), math.floor(x)
            v, u = y - row, x - column
            dots = [[math.cos(angle[row + a, column + b]) * (v - a) + math.sin(angle[row + a, column + b]) * (u - b)
                     for b in (0, 1)] for a in (0, 1)]  # fmt: skip
            above, below = (left + fade(u) * (right - left) for left, right in dots)
            noise[i, j] = math.sqrt(2) * (above + fade(v) * (below - above))
    return noise


@pytest.mark.parametrize("cells", [(1, 1), (4, 2), (5, 32)])
def test_noise_equals_the_loop_at_sizes_that_no_lattice_divides(cells: tuple[int, int]) -> None:
    angle = stream(3).uniform(0, 2 * np.pi, (cells[0] + 1, cells[1] + 1))
    np.testing.assert_allclose(
        perlin_noise((37, 41), cells, stream(3)), perlin_with_loops((37, 41), cells, angle), rtol=0, atol=1e-12
    )


@pytest.mark.slow
@pytest.mark.parametrize(("size", "patch", "half_covered", "without"), [(240, 16, 0.026, 0.32), (518, 14, 0.043, 0.05)])
def test_masks_have_the_statistics_of_draem(size: int, patch: int, half_covered: float, without: float) -> None:
    """The facts were computed with another Perlin implementation: 600 masks without rotation, mean area 5.4 %."""
    synthesis, rng = DraemSynthesis(rotation=0), stream()
    masks = [synthesis.draw_noise((size, size), rng) > synthesis.threshold for _ in range(400)]
    patches = [coverage(mask, patch) >= 0.5 for mask in masks[:200]]
    assert np.mean([mask.mean() for mask in masks]) == pytest.approx(0.054, abs=0.008)
    assert 0.015 <= np.mean([not mask.any() for mask in masks]) <= 0.08
    assert np.mean(patches) == pytest.approx(half_covered, abs=0.01)
    assert np.mean([not grid.any() for grid in patches]) == pytest.approx(without, abs=0.08)


def test_rotation_turns_about_the_centre() -> None:
    straight, turned = (DraemSynthesis(octaves=1, rotation=angle) for angle in (0.0, 90.0))
    before, after = (synthesis.draw_noise((101, 101), stream(1)) for synthesis in (straight, turned))
    assert np.abs(before - after).max() > 0.1
    assert before[50, 50] == pytest.approx(after[50, 50], abs=1e-6)


def test_pixels_rotated_in_from_outside_are_normal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("afclip_lightning.components.synthesis.perlin_noise", lambda shape, cells, rng: np.ones(shape))
    turned = np.stack([DraemSynthesis().draw_noise((60, 80), stream(seed)) for seed in range(20)])
    assert (turned[:, 25:35, 25:55] == 1).all()
    assert (turned[:, [0, 0, -1, -1], [0, -1, 0, -1]] == 0).all(axis=1).mean() > 0.8


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_a_mask_always_covers_the_wanted_patches(shape: tuple[int, int], patch: int) -> None:
    for synthesis in (DraemSynthesis(), DraemSynthesis(min_coverage=0.9, min_patches=1)):
        masks = [synthesis.draw_mask(shape, stream(seed), patch) for seed in range(30)]
        assert all((coverage(mask, patch) >= synthesis.min_coverage).sum() >= synthesis.min_patches for mask in masks)
        assert all(0 < mask.mean() < 0.6 for mask in masks)


def test_if_no_try_covers_the_nearest_is_cut_lower_just_enough() -> None:
    synthesis = DraemSynthesis(threshold=0.99, min_coverage=0.25, min_patches=3, max_tries=3)
    for seed in range(10):
        mask, rng = synthesis.draw_mask((240, 240), stream(seed), 16), stream(seed)
        noises = [synthesis.draw_noise((240, 240), rng) for _ in range(3)]
        cuts = [noise[mask].min() for noise in noises]
        (chosen,) = (i for i, cut in enumerate(cuts) if np.array_equal(mask, noises[i] >= cut))
        assert (coverage(mask, 16) >= 0.25).sum() == 3
        for i, noise in enumerate(noises):  # no other covers so much when cut there, nor this one if cut any higher
            assert (coverage(noise > cuts[chosen], 16) >= 0.25).sum() < 3, i


def test_redrawing_keeps_the_first_mask_that_does() -> None:
    synthesis, once = DraemSynthesis(), DraemSynthesis(max_tries=1)
    kept = 0
    for seed in range(20):
        first = once.draw_noise((240, 240), stream(seed)) > 0.5
        if (coverage(first, 16) >= 0.25).sum() >= 3:
            assert np.array_equal(synthesis.draw_mask((240, 240), stream(seed), 16), first)
            kept += 1
    assert 10 <= kept < 20


@pytest.mark.parametrize(("shape", "patch"), SIZES)
def test_outside_the_mask_the_image_is_untouched(shape: tuple[int, int], patch: int) -> None:
    image = torch.randn(3, *shape)
    given = image.clone()
    changed, mask = DraemSynthesis().synthesise(image, stream(), patch, Preprocess(shape[0]))
    assert changed.shape == image.shape
    assert mask.shape == shape
    assert changed.dtype == torch.float32
    assert mask.dtype == torch.bool
    torch.testing.assert_close(changed[:, ~mask], image[:, ~mask], rtol=0, atol=0)
    assert (changed[:, mask] != image[:, mask]).float().mean() > 0.9
    torch.testing.assert_close(image, given, rtol=0, atol=0)


def test_the_blend_equals_the_loop() -> None:
    synthesis, image = DraemSynthesis(Fixed(), transparency=(0.3, 0.3), augmentations=0), some_image()
    changed, mask = synthesis.synthesise(image, stream(), 14, PLAIN)
    texture, beta = Fixed().draw((70, 82), stream(), None) / 255, 0.3
    expected = np.zeros((3, 70, 82))
    for c in range(3):
        for i in range(70):
            for j in range(82):
                m, original = float(mask[i, j]), float(image[c, i, j])
                expected[c, i, j] = (1 - m) * original + (1 - beta) * m * texture[i, j, c] + beta * m * original
    torch.testing.assert_close(changed.double(), torch.from_numpy(expected), rtol=0, atol=1e-6)


def test_blending_normalised_images_equals_blending_pixels() -> None:
    preprocess, image, reference = Preprocess(70), some_image(), some_image((40, 60)).flip(0)
    mean, std = (torch.tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    for textures in (ProceduralTextures(), ReferenceTextures()):
        synthesis = DraemSynthesis(textures)
        plain, mask = synthesis.synthesise(image, stream(5), 14, PLAIN, reference)
        normalised, same = synthesis.synthesise(
            (image - mean) / std, stream(5), 14, preprocess, (reference - mean) / std
        )
        assert torch.equal(mask, same)
        torch.testing.assert_close(normalised, (plain - mean) / std, rtol=0, atol=1e-5)


def test_half_precision_stays() -> None:
    changed, _ = DraemSynthesis().synthesise(some_image().half(), stream(), 14, PLAIN)
    assert changed.dtype == torch.float16


def test_transparency_is_drawn_over_its_whole_range() -> None:
    class White(TextureSource):
        def draw(self, shape: tuple[int, int], rng: Generator, reference: np.ndarray | None) -> np.ndarray:
            return np.full((*shape, 3), 255, np.uint8)

    synthesis, image = DraemSynthesis(White(), augmentations=0), torch.zeros(3, 28, 28)
    weights = [synthesis.synthesise(image, stream(seed), 14, PLAIN)[0].max().item() for seed in range(200)]
    assert 0.2 <= min(weights) < 0.25
    assert 0.95 < max(weights) <= 1
    assert np.mean(weights) == pytest.approx(0.6, abs=0.05)


@pytest.mark.parametrize("augmentation", range(len(AUGMENTATIONS)))
def test_every_augmentation_changes_textures_and_only_by_its_stream(augmentation: int) -> None:
    changed = []
    for seed in range(8):
        texture = ProceduralTextures().draw((60, 50), stream(100 + seed), None)
        twice = []
        for _ in range(2):
            transform = AUGMENTATIONS[augmentation]()
            transform.set_random_state(stream(seed), random.Random(seed))
            twice.append(transform(image=texture)["image"])
        assert twice[0].shape == (60, 50, 3)
        assert twice[0].dtype == np.uint8
        assert np.array_equal(*twice)
        changed.append(not np.array_equal(twice[0], texture))
    assert any(changed)


def test_the_wanted_number_of_different_augmentations_is_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    class Note:
        def __init__(self, number: int) -> None:
            self.number = number

        def set_random_state(self, *args: object) -> None: ...

        def __call__(self, image: np.ndarray) -> dict[str, np.ndarray]:
            applied.append(self.number)
            return {"image": image}

    applied: list[int] = []
    notes = tuple(lambda number=number: Note(number) for number in range(10))
    monkeypatch.setattr("afclip_lightning.components.synthesis.AUGMENTATIONS", notes)
    seen = []
    for seed in range(40):
        applied.clear()
        DraemSynthesis().draw_texture((20, 20), stream(seed), None)
        assert len(set(applied)) == len(applied) == 3
        seen.append(tuple(applied))
    assert {number for order in seen for number in order} == set(range(10))
    assert any(list(order) != sorted(order) for order in seen)


@pytest.mark.parametrize("textures", [None, ReferenceTextures()])
def test_an_anomaly_depends_on_its_own_stream_alone(textures: TextureSource | None) -> None:
    synthesis, image, reference = DraemSynthesis(textures), some_image(), some_image((50, 50))

    def result(seed: int) -> torch.Tensor:
        return synthesis.synthesise(image, stream(seed), 14, PLAIN, reference)[0]

    first = [result(seed) for seed in range(6)]
    for module in (random, np.random):
        module.seed(1)
    torch.manual_seed(1)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    backwards = [result(seed) for seed in reversed(range(6))][::-1]
    assert states[0] == random.getstate()
    assert states[1] == np.random.get_state()[1].tolist()
    assert torch.equal(states[2], torch.get_rng_state())
    for one, other in zip(first, backwards, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
    assert len({one.numpy().tobytes() for one in first}) == 6


def test_masks_do_not_depend_on_the_source_of_textures() -> None:
    reference = some_image((50, 50))
    sources = (None, ReferenceTextures(), Fixed())
    masks = [DraemSynthesis(s).synthesise(some_image(), stream(7), 14, PLAIN, reference)[1] for s in sources]
    assert torch.equal(masks[0], masks[1])
    assert torch.equal(masks[0], masks[2])


def test_an_image_keeps_its_stream_wherever_the_dataset_lies() -> None:
    def numbers(path: str, category: str = "nut", seed: int = 0) -> list[float]:
        return list(generator_of(Sample("mvtec", category, "test", Path(path), 1), seed).random(3))

    here = numbers("/here/mvtec/nut/test/bent/000.png")
    assert here == numbers("elsewhere/nut/test/bent/000.png")
    others = [
        numbers("/here/mvtec/nut/test/bent/001.png"),
        numbers("/here/mvtec/nut/test/good/000.png"),
        numbers("/here/mvtec/nut/test/bent/000.png", category="bolt"),
        numbers("/here/mvtec/nut/test/bent/000.png", seed=1),
    ]
    assert here not in others
    assert len({tuple(other) for other in others}) == 4


@pytest.mark.parametrize("shape", [(240, 240), (31, 50)])
def test_drawn_textures_vary(shape: tuple[int, int]) -> None:
    textures = [ProceduralTextures().draw(shape, stream(seed), None) for seed in range(30)]
    assert all(texture.shape == (*shape, 3) and texture.dtype == np.uint8 for texture in textures)
    assert all(texture.std(axis=(0, 1)).max() > 2 for texture in textures)
    assert np.std([texture.mean() for texture in textures]) > 20


def test_textures_of_a_folder_are_squashed_and_do_not_depend_on_its_place(tmp_path: Path) -> None:
    for place in ("a", "b/c"):
        for i, colour in enumerate(((200, 0, 0), (0, 200, 0), (0, 0, 200))):
            file = tmp_path / place / f"kind{i % 2}" / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (30 + i, 20), colour).save(file)
    first, second = FolderTextures(tmp_path / "a"), FolderTextures(str(tmp_path / "b"))
    drawn = [first.draw((40, 50), stream(seed), None) for seed in range(20)]
    assert {texture.shape for texture in drawn} == {(40, 50, 3)}
    assert {tuple(texture[0, 0].tolist()) for texture in drawn} == {(200, 0, 0), (0, 200, 0), (0, 0, 200)}
    for seed, texture in enumerate(drawn):
        assert np.array_equal(texture, second.draw((40, 50), stream(seed), None))
    changed, mask = DraemSynthesis(first).synthesise(some_image(), stream(), 14, PLAIN)
    assert not torch.equal(changed[:, mask], some_image()[:, mask])


def test_a_folder_without_textures_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere is not a folder.*Set `folder`"):
        FolderTextures(tmp_path / "nowhere")
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DatasetError, match=r"holds no image.*leave `textures` out"):
        FolderTextures(tmp_path)


def test_reference_textures_are_crops_of_the_reference() -> None:
    reference = np.zeros((60, 90, 3), np.uint8)
    reference[..., 0], reference[..., 1] = np.arange(60)[:, None] * 4, np.arange(90)[None] * 2
    for seed in range(20):
        crop = ReferenceTextures(share=(0.2, 0.6)).draw((40, 50), stream(seed), reference)
        assert crop.shape == (40, 50, 3)
        down, across = np.ptp(crop[..., 0]) / 4 + 1, np.ptp(crop[..., 1]) / 2 + 1  # rows and columns of the crop
        assert 12 <= down <= 36.5
        assert 18 <= across <= 54.5
        assert crop[..., 2].max() == 0
    with pytest.raises(ValueError, match="need the reference"):
        DraemSynthesis(ReferenceTextures()).synthesise(some_image(), stream(), 14, PLAIN)
    with pytest.raises(ValueError, match=r"share must rise within 0 to 1, got \(0.5, 0.2\)"):
        ReferenceTextures((0.5, 0.2))


@pytest.mark.parametrize(("arguments", "message"), [
    ({"octaves": 0}, "octaves must be 1 to 10, got 0"),
    ({"rotation": -1.0}, "rotation must be 0 to 180 degrees, got -1.0"),
    ({"threshold": 1.0}, "threshold must be at least 0 and below 1, got 1.0"),
    ({"transparency": (0.8, 0.2)}, "transparency must rise"),
    ({"transparency": (0.0, 1.0)}, "transparency must rise"),
    ({"augmentations": 11}, "augmentations must be 0 to 10, got 11"),
    ({"min_coverage": 0.0}, "min_coverage must be above 0 and at most 1, got 0.0"),
    ({"min_patches": 0}, "min_patches and max_tries must be at least 1, got 0 and 20"),
    ({"max_tries": 0}, "min_patches and max_tries must be at least 1, got 3 and 0"),
])  # fmt: skip
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DraemSynthesis(**arguments)  # type: ignore[arg-type]


def test_an_image_with_too_few_patches_is_refused() -> None:
    with pytest.raises(ValueError, match="min_patches is 3, but an image of 28 × 20 pixels has 2 patches of 14 pixels"):
        DraemSynthesis().synthesise(torch.zeros(3, 28, 20), stream(), 14, PLAIN)


def test_it_is_built_from_a_config(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "t.png")
    parser = ArgumentParser()
    parser.add_argument("--synthesis", type=DraemSynthesis)
    module = "afclip_lightning.components.synthesis"
    textures = {"class_path": f"{module}.FolderTextures", "init_args": {"folder": str(tmp_path)}}
    settings = {"textures": textures, "transparency": [0.1, 0.4]}
    config = {"class_path": f"{module}.DraemSynthesis", "init_args": settings}
    parsed = parser.parse_object({"synthesis": config})
    built = parser.instantiate_classes(parsed).synthesis
    assert built.transparency == (0.1, 0.4)
    assert built.textures.images == [tmp_path / "t.png"]
    assert "FolderTextures" in parser.dump(parsed)


@pytest.mark.parametrize("textures", ["procedural", "reference", "folder"])
def test_the_sheet_is_drawn(textures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = REPOSITORY / "experiments/synthesis/sheet.py"
    spec = importlib.util.spec_from_file_location("synthesis_sheet", script)
    assert spec
    assert spec.loader
    sheet = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(sheet)
    arguments = [str(tmp_path / "sheet.png"), "--count=2", "--size=64", "--patch=8"]
    if textures == "folder":
        for i in range(2):
            Image.effect_noise((50, 70), 60).save(tmp_path / f"{i}.png")
        arguments += [f"--textures={tmp_path}", f"--images={tmp_path}"]
    else:
        arguments += [f"--textures={textures}"]
    sheet.main(arguments)
    assert "sheet.png: 2 images" in capsys.readouterr().out
    pixels = np.asarray(Image.open(tmp_path / "sheet.png"))
    assert pixels.shape == (3 * 64 + 8, 2 * 64 + 4, 3)
    changed = (pixels[:64] != pixels[68:132]).any(axis=-1)
    marked = pixels[136:, :, 0] == 255
    assert changed[:, :64].any()
    assert not (changed[:, :64] & ~marked[:, :64]).any()
