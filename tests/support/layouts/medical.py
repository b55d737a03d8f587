"""The layouts of the medical sets that are only tested on, with their mixed extensions and other files."""

from pathlib import Path

from tests.support.layouts import write_image, write_mask

LABELLED = {  # 2 normal, 3 anomalous, and what must not be read
    "brainmri": ("no/1 no.jpeg", "no/N2.JPG", "yes/Y1.jpg", "yes/Y2.JPG", "yes/Y3.png"),
    "br35h": ("no/no0.jpg", "no/no1.jpg", "yes/y0.jpg", "yes/y1.jpg", "yes/y2.jpg", "pred/pred0.jpg"),
    "lag": (
        *(f"non_glaucoma/{kind}/{i}.jpg" for i in range(2) for kind in ("image", "attention_map")),
        *(f"suspicious_glaucoma/{kind}/{i}.jpg" for i in range(3) for kind in ("image", "attention_map")),
    ),
    "covid19": (
        *(f"NORMAL/NORMAL ({i}).png" for i in range(2)),
        *(f"COVID-19/COVID-19 ({i}).png" for i in range(3)),
        "Viral Pneumonia/Viral Pneumonia (1).png",
    ),
}
SEGMENTED = {  # image and mask, 3 of each
    "isic": (
        "ISBI2016_ISIC_Part1_Test_Data/ISIC_000000{}.jpg",
        "ISBI2016_ISIC_Part1_Test_GroundTruth/ISIC_000000{}_Segmentation.png",
    ),
    "clinicdb": ("images/{}.tif", "masks/{}.tif"),
    "endo": ("images/{}.jpg", "masks/{}.jpg"),
    "tn3k": ("test-image/000{}.jpg", "test-mask/000{}.jpg"),
    **dict.fromkeys(("colondb", "kvasir", "cvc300"), ("images/{}.png", "masks/{}.png")),
}


def write_medical(root: Path, subset: str) -> Path:
    """Writes 3 anomalous images, and 2 normal ones if the set has any, and returns the root."""
    for name in LABELLED.get(subset, ()):
        write_image(root / name)
    for i in range(3) if subset in SEGMENTED else ():
        image, mask = SEGMENTED[subset]
        write_image(root / image.format(i))
        write_mask(root / mask.format(i))
    return root
