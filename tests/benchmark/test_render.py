"""Tables have the measured and the published values and no others; Markdown, LaTeX and plots have the same cells."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from afclip_lightning.benchmark.matrix import Matrix, Method, Transfer
from afclip_lightning.benchmark.published import Published, check_names, comparable, load_published, members
from afclip_lightning.benchmark.render import (
    BY_DATASET,
    NONE,
    Grid,
    latex,
    markdown,
    measured,
    own_tables,
    paper_tables,
)
from afclip_lightning.benchmark.table import Measurement
from afclip_runtime.errors import UserError

FOLDER = Path(__file__).parents[2] / "experiments/published"
PUBLISHED = load_published(FOLDER)
MATRIX = Matrix(
    methods={
        "mine": Method(configs=[], published=["AF-CLIP", "AF-CLIP+", "V4"]),
        "FAPrompt": Method(configs=[]),
        "new": Method(configs=[]),
    },
    datasets={"mvtec": "", "visa": "", "drawn": ""},
    transfers=[Transfer("visa", ["mvtec", "drawn"]), Transfer("mvtec", ["visa", "drawn"])],
)


def row(value: float, method: str = "mine", dataset: str = "mvtec", **other: object) -> Measurement:
    facts = {"train": "visa", "category": "mean", "shots": 0, "seed": 0, "metric": "image_auroc", "backbone": "CLIP"}
    return Measurement(cell="", method=method, dataset=dataset, value=value, **(facts | other))  # type: ignore[arg-type]


def tables(*rows: Measurement) -> dict[str, Grid]:
    return {grid.title: grid for grid in paper_tables(measured(rows, MATRIX), PUBLISHED)}


def cells(grid: Grid, *names: str) -> dict[str, str]:
    [found] = [cells for cells in grid.rows if cells[: len(names)] == names]
    return dict(zip(grid.header, found, strict=True))


def test_ours_stands_beside_the_printed_with_the_difference() -> None:
    found = tables(row(0.93), row(0.95, seed=1), row(0.90, metric="pixel_pro"), row(0.1, category="bottle"))
    line = cells(found["AF-CLIP, Table 1"], "mvtec", "I-AUROC, I-AP")
    assert line["AF-CLIP"] == "(92.9, 96.8)"
    assert line["mine (ours)"] == "(94.0 ± 1.4, –)"
    assert line["mine (ours − printed)"] == "(+1.1, –)"
    assert cells(found["AF-CLIP, Table 1"], "mvtec", "P-AUROC, P-PRO")["mine (ours − printed)"] == "(–, +4.3)"
    assert cells(found["AF-CLIP, Table 1"], "visa", "I-AUROC, I-AP")["mine (ours)"] == NONE
    assert cells(found["AF-CLIP, Table 4"], "V4")["mvtec I-AUROC"] == "92.9"
    assert cells(found["AF-CLIP, Table 4"], "mine (ours − printed)")["mvtec I-AUROC"] == "+1.1"


def test_shots_are_kept_apart() -> None:
    table = tables(row(0.5), row(0.96, shots=4))["AF-CLIP, Table 2"]
    assert cells(table, "0", "mine (ours)")["mvtec I-AUROC"] == "50.0"
    assert cells(table, "4", "mine (ours)")["mvtec I-AUROC"] == "96.0"
    assert cells(table, "2", "mine (ours)")["mvtec I-AUROC"] == NONE
    printed = next(p for p in PUBLISHED if (p.table, p.label, p.shots) == ("AF-CLIP, Table 2", "AF-CLIP+", "4"))
    assert cells(table, "4", "AF-CLIP+")[f"{printed.dataset} I-AUROC"] == printed.text
    assert "±" in printed.text


def test_sets_that_no_paper_has_follow_without_printed_numbers() -> None:
    found = tables(row(0.7, dataset="drawn"), row(0.8, "new", dataset="drawn"))
    line = cells(found["AF-CLIP, Table 1"], "drawn", "I-AUROC")
    assert line["mine (ours)"] == "70.0"
    assert set(line.values()) == {"drawn", "I-AUROC", "70.0", NONE}
    assert not any("new" in text for grid in found.values() for text in grid.header)


def test_means_over_sets_need_all_of_them_and_are_taken_seed_by_seed() -> None:
    sets = members(PUBLISHED, "medical", "image_auroc")
    assert sets == ("brainmri", "headct", "lag", "br35h")
    assert len(members(PUBLISHED, "industrial", "image_auroc")) == 8
    rows = [
        row(0.8 + 0.01 * i + 0.1 * seed, "FAPrompt", name, seed=seed) for seed in (0, 1) for i, name in enumerate(sets)
    ]
    matrix = Matrix(methods={"FAPrompt": Method(configs=[])}, transfers=[Transfer("visa", list(sets))])

    def medical(rows: list[Measurement]) -> str:
        [table] = [t for t in paper_tables(measured(rows, matrix), PUBLISHED) if t.title == "FAPrompt, Table 5"]
        assert not any(name in text for name in sets for text in table.header)
        return cells(table, "FAPrompt (ours)")["medical I-AUROC"]

    assert medical(rows) == "86.5 ± 7.1"
    assert medical(rows[:-1]) == "81.5"
    assert medical(rows[1:-1]) == NONE


def test_of_several_training_sets_the_first_counts_in_the_papers_tables() -> None:
    rows = [row(0.6, dataset="drawn", train="mvtec"), row(0.7, dataset="drawn", train="visa")]
    assert cells(tables(*rows)["AF-CLIP, Table 1"], "drawn", "I-AUROC")["mine (ours)"] == "70.0"
    [own] = own_tables(rows, MATRIX)
    assert [cells[:5] for cells in own.rows] == [
        ("mine", "mvtec", "0", "1", "60.0"),
        ("mine", "visa", "0", "1", "70.0"),
    ]


def test_a_table_without_measurements_is_as_printed() -> None:
    found = tables()
    assert BY_DATASET - found.keys() == {"KAnoCLIP, Table 1", "KAnoCLIP, Table 2"}  # the matrix has no method of theirs
    for title, grid in found.items():
        printed = [p.text for p in PUBLISHED if p.table == title]
        shown = [text for cells in grid.rows for text in cells[grid.left :] if text != NONE]
        texts = [part for text in shown for part in re.sub(r"[()]", "", text).split(", ") if part != NONE]
        assert sorted(texts) == sorted(printed)


def test_markdown_and_latex_have_the_same_cells() -> None:
    grids = [*tables(row(0.93), row(0.95, seed=1)).values(), Grid("100 % & more_", ("a", "b"), (("~", "±"),), 1)]
    document = latex(grids)
    assert r"100 \% \& more\_" in document
    bodies = re.findall(r"\\begin\{tabular\}\{([lr]+)\}(.*?)\\end\{tabular\}", document, re.DOTALL)
    assert len(bodies) == len(grids)
    for (columns, body), grid in zip(bodies, grids, strict=True):
        lines = [line for line in body.splitlines() if line.endswith(r"\\")]
        assert len(lines) == 1 + len(grid.rows)
        assert {len(re.split(r"(?<!\\)&", line)) for line in lines} == {len(columns)} == {len(grid.header)}
        text = markdown(grid).splitlines()
        assert {line.count("|") for line in text[2:]} == {len(grid.header) + 1}


@pytest.mark.slow
def test_the_latex_compiles(tmp_path: Path) -> None:
    if shutil.which("pdflatex") is None:
        pytest.skip("pdflatex is not installed")
    (tmp_path / "tables.tex").write_text(latex(tables(row(0.9)).values()), encoding="utf-8")
    command = ["pdflatex", "-halt-on-error", "-interaction=nonstopmode", "tables.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


def test_plots_show_each_metric_that_was_measured(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from afclip_lightning.benchmark.plots import plot

    rows = [row(0.93), row(0.95, seed=1), row(0.6, shots=4), row(0.9, metric="pixel_pro")]
    paths = plot(measured(rows, MATRIX), PUBLISHED, tmp_path)
    assert [path.name for path in paths] == ["image_auroc.png", "pixel_pro.png"]
    with Image.open(paths[0]) as picture:
        assert len(picture.convert("RGB").getcolors(1_000_000)) > 10  # not a blank page


TINY = "tiny-8-112 (tiny-8-112.safetensors, 0123abcd), gelu, 112 px, bicubic"
LARGE = "ViT-L-14-336 (openai, 0123abcd), quick_gelu, 518 px, bicubic"


@pytest.mark.parametrize(
    ("backbone", "method", "expected"),
    [
        (LARGE, "AF-CLIP", True),
        (LARGE.replace("336", "336-quickgelu"), "AF-CLIP", True),
        (LARGE.replace("openai", "RANDOM weights"), "AF-CLIP", False),
        (LARGE.replace("openai", "model.pt+random"), "AF-CLIP", False),
        ("ViT-B-16-plus-240 (laion400m_e32, 0123abcd), gelu, 240 px, bicubic", "AF-CLIP", False),
        ("ViT-B-16-plus-240 (laion400m_e32, 0123abcd), gelu, 240 px, bicubic", "WinCLIP", True),
        ("ViT-B-16 (openai, 0123abcd), gelu, 224 px, bicubic", "WinCLIP", False),
        (TINY, "WinCLIP", False),
    ],
)
def test_only_numbers_of_the_papers_backbones_are_compared_with_theirs(
    backbone: str, method: str, expected: bool
) -> None:
    assert comparable(backbone, [method]) is expected


def test_numbers_of_another_backbone_say_so_and_have_no_difference() -> None:
    found = tables(row(0.93, backbone=TINY), row(0.9, "FAPrompt", backbone=LARGE))
    line = cells(found["AF-CLIP, Table 1"], "mvtec", "I-AUROC, I-AP")
    assert line["mine (ours, tiny-8-112)"] == "(93.0, –)"
    assert not any("mine (ours −" in name for name in line)
    [note] = found["AF-CLIP, Table 1"].notes
    assert note.startswith("Not comparable: mine ran on tiny-8-112 (")
    assert note in markdown(found["AF-CLIP, Table 1"])
    assert "Not comparable: mine ran on tiny-8-112" in latex(found.values())
    line = cells(found["FAPrompt, Table 1"], "mvtec", "I-AUROC, I-AP")
    assert line["FAPrompt (ours, ViT-L-14-336)"] == "(90.0, –)"
    assert "FAPrompt (ours − printed)" in line
    assert found["FAPrompt, Table 1"].notes == ()
    own = own_tables([row(0.93, backbone=TINY), row(0.5, backbone=LARGE)], MATRIX)[0]
    assert [cells[-1] for cells in own.rows] == ["tiny-8-112", "ViT-L-14-336"]


def test_a_measured_zero_is_shown() -> None:
    rows = [row(0.0), row(0.9, "FAPrompt")]
    found = tables(rows[0])
    assert cells(found["AF-CLIP, Table 1"], "mvtec", "I-AUROC, I-AP")["mine (ours)"] == "(0.0, –)"
    assert own_tables(rows[:1], MATRIX)[0].rows[0][4] == "0.0"
    pytest.importorskip("matplotlib")
    from afclip_lightning.benchmark.plots import draw

    figure = draw(measured(rows[:2], MATRIX), PUBLISHED, "image_auroc")
    assert [text.get_text() for text in figure.axes[0].texts] == ["0.0"]
    assert "published" in [text.get_text() for text in figure.legends[0].get_texts()]
    tiny = draw(measured([row(0.5, backbone=TINY)], MATRIX), PUBLISHED, "image_auroc")
    assert [text.get_text() for text in tiny.legends[0].get_texts()] == ["mine, tiny-8-112"]


def test_a_bar_of_markdown_in_a_name_makes_no_column() -> None:
    text = markdown(Grid("t", ("a", "b"), (("x|y", "z"),), 1))
    assert r"| x\|y | z |" in text


def test_published_numbers_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER, tmp_path / "published")
    file = tmp_path / "published/afclip.csv"
    file.write_text(file.read_text().replace("91.8", "9l.8", 1))
    with pytest.raises(UserError, match=r"afclip\.csv, line 2"):
        load_published(tmp_path / "published")
    with pytest.raises(UserError, match="`published` names the folder"):
        load_published(tmp_path / "nowhere")


def test_without_the_default_folder_there_are_no_published_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_published(None) == []
    check_names(MATRIX, [])  # names of papers cannot be checked then
    shutil.copytree(FOLDER, "experiments/published")
    assert load_published(None) == PUBLISHED


def test_published_numbers_are_those_of_the_files() -> None:
    assert Published("KAnoCLIP, Table 3", "row 5", "mvtec", "0", "image_auroc", "93.1", 93.1) in PUBLISHED
    assert len({p.table for p in PUBLISHED}) == 16
