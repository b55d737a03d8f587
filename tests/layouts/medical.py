"""The layouts of the six medical sets, with their mixed extensions."""

from pathlib import Path

from tests.layouts import write_image, write_mask


def write_medical(root: Path, subset: str) -> Path:
    """Writes 3 anomalous images, and 2 normal ones where the set has any, and returns the root."""
    if subset in ("brainmri", "br35h"):
        for name in ("no/1 no.jpeg", "no/N2.JPG", "yes/Y1.jpg", "yes/Y2.JPG", "yes/Y3.png"):
            write_image(root / name)
        if subset == "br35h":
            write_image(root / "pred/pred0.jpg")
    for i in range(3):
        if subset == "isic":
            write_image(root / f"ISBI2016_ISIC_Part1_Test_Data/ISIC_000000{i}.jpg")
            write_mask(root / f"ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_000000{i}_Segmentation.png")
        if subset in ("colondb", "clinicdb", "kvasir"):
            write_image(root / f"images/{i}.png")
            write_mask(root / f"masks/{i}.png")
    return root
