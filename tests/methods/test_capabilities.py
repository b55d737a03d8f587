"""Declared abilities of methods: they are true, and no other code inspects the internals of a method."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import afclip_lightning
from afclip_lightning.engine.factory import Backbones, build, methods
from afclip_lightning.methods.base import AnomalyMethod
from tests.support.cases import CASES
from tests.support.methods import batch_of, score
from tests.support.small_models import SIZE, write_head

PACKAGE = Path(afclip_lightning.__file__).parent
SMALL = {name: case.head for name, case in CASES.items()}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, AnomalyMethod]:
    """All methods of the package, on one small backbone."""
    folder, backbones = tmp_path_factory.mktemp("clip"), Backbones()
    write_head(folder, "CLIP")
    backbone = {"model": str(folder / "two-blocks.json"), "weights": "random", "image_size": SIZE}
    torch.manual_seed(0)
    return {
        name: build({"class_path": name, "init_args": {"backbone": backbone, **arguments}}, backbones=backbones)
        for name, arguments in SMALL.items()
    }


@pytest.mark.slow
def test_each_method_has_what_it_declares(built: dict[str, AnomalyMethod]) -> None:
    assert set(built) == set(methods())  # a method that is added is checked here too
    for name, method in built.items():
        cls = type(method)
        assert cls.takes_few_shot == ("k_shot" in inspect.signature(cls).parameters), name
        assert cls.takes_few_shot == (method.memory is not None), name
        if not cls.takes_few_shot:
            with pytest.raises(TypeError, match="takes no few-shot images"):
                method.fit_memory(("d", "a"), batch_of(1, SIZE).image)
        assert cls.needs_references == (method.pairing is not None), name
        for hook in ("observe", "take_observed"):
            assert (cls.uses_test_set != "never") == (getattr(cls, hook) is not getattr(AnomalyMethod, hook)), name
    assert {name for name, method in built.items() if method.needs_test_set} == {"MuSc"}
    assert {name for name, method in built.items() if method.adapts} == {"AnoVL", "DualImageCLIP"}
    april, steady = built["APRILGAN"], built["AnoVL"]
    april.k_shot = 1
    assert april.needs_test_set
    april.k_shot = 0
    steady.adapter.steps = 0  # type: ignore[union-attr]
    assert not steady.adapts


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(SMALL.keys() - {"MuSc"}))  # which has no score of a batch alone
def test_a_class_name_matters_where_it_is_declared(built: dict[str, AnomalyMethod], name: str) -> None:
    method, found = built[name], []
    batch = batch_of(2, SIZE)
    batch.reference, batch.reference_rows = batch.image[:0], torch.tensor([[1], [0]])
    for word in ("metal nut", "zipper"):
        named = [replace(sample, category=word, class_name=word) for sample in batch.samples]
        if method.k_shot:
            method.fit_memory(("d", word), batch_of(1, SIZE, seed=7).image)
        found.append(score(method, replace(batch, samples=named)))
    same = all(torch.equal(*pair) for pair in zip(*found, strict=True))
    assert same != type(method).needs_class_name


@pytest.mark.slow
def test_nothing_outside_knows_a_single_method_or_looks_for_its_attributes() -> None:
    asking = {"hasattr", "getattr", "isinstance", "issubclass"}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path.parent == PACKAGE / "methods":
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            where = f"{path.relative_to(PACKAGE)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.ImportFrom) and node.module:
                room, _, module = node.module.removeprefix("afclip_lightning.").partition(".")
                assert room != "methods" or module == "base", f"{where} imports {node.module}"
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in asking:
                asked = ast.unparse(node.args[0]).rpartition(".")[2]
                assert asked not in {"method", "head"}, f"{where}: {ast.unparse(node)}"
