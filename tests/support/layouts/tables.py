"""The layouts of the sets whose labels are a table: ELPV and HeadCT."""

from pathlib import Path

from tests.support.layouts import write_image


def write_elpv(root: Path, normal: int = 8, anomalous: int = 3) -> Path:
    """Writes cells of probability 0, of 1 and one of each in between, and returns the root."""
    probabilities = [0.0] * normal + [1.0] * anomalous + [0.3333333333333333, 0.6666666666666666]
    lines = []
    for i, probability in enumerate(probabilities, 1):
        write_image(root / f"images/cell{i:04}.png")
        lines.append(f"images/cell{i:04}.png  {probability}   {'mono' if i % 2 else 'poly'}")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root


def write_headct(root: Path, folder: str = "head_ct", normal: int = 8, anomalous: int = 3) -> Path:
    """Writes haemorrhages first, then normal slices, and returns the root."""
    for i in range(anomalous + normal):
        write_image(root / folder / f"{i:03}.png")
    lines = ["id, hemorrhage", *(f"{i},{int(i < anomalous)}" for i in range(anomalous + normal))]
    (root / "labels.csv").write_text("\n".join(lines) + "\n")
    return root
