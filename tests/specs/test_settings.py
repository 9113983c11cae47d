"""What texts, files and budgets come to, for every method that there is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate import zoo
from foveate.core.budget import Keep
from foveate.core.method import Method
from foveate.errors import ConfigurationError, FoveateError
from foveate.glimpse import GlimpseModule
from foveate.methods import make, parameters_of, registry
from foveate.specs.choose import choose_method
from foveate.specs.settings import Setting, grid, one_setting, setting
from foveate.specs.tuned import Tuned, TunedFileError
from tests.tiny import Tiny, make_tiny

BUDGETS = {"1/2": 0.5, "0.5": 0.5, "50%": 0.5, "8": 8, "1": 1, "1.0": 1.0}
WITHOUT = {"pixel_prune"}
"""Methods that no budget can limit."""


@pytest.fixture(scope="module")
def llava() -> Tiny:
    return make_tiny("llava")


@pytest.fixture(scope="module")
def module(llava: Tiny, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("module")
    GlimpseModule.for_model(llava.model).save_pretrained(folder)
    return str(folder)


def text_of(name: str, module: str) -> str:
    """A text of the method that needs no model beside it."""
    return {"compose": "fastervlm + fastv", "glimpse_prune": f"glimpse_prune:module={module},min_keep=1"}.get(
        name, name
    )


def budget_of(method: Method) -> Keep | float | int | None:
    return method.budget.cap if "max_keep" in parameters_of(type(method)) else method.keep


@pytest.mark.parametrize("name", list(registry()))
def test_every_method_understands_every_way_to_write_a_budget(name: str, module: str) -> None:
    text = text_of(name, module)
    for written, value in BUDGETS.items():
        if name in WITHOUT:
            with pytest.raises(ConfigurationError, match="leave keep out"):
                one_setting(text, written)
            continue
        method = one_setting(text, written).make()
        assert method is not None
        found = budget_of(method)
        found = found.plain if isinstance(found, Keep) else found
        assert (found, type(found)) == (value, type(value))
    if name not in WITHOUT | {"compose", "glimpse_prune"}:
        assert str(setting(f"{text}:keep=50%").make()) == str(make(name, keep=0.5))


@pytest.mark.parametrize("name", sorted(set(registry()) - WITHOUT))
def test_a_count_keeps_what_the_same_share_keeps(name: str, module: str, llava: Tiny) -> None:
    inputs = llava.batch([[3, (4, 4), 5]])  # sixteen visual tokens
    kept = []
    for keep in ("12", "3/4"):
        with foveate.prune(llava.model, one_setting(text_of(name, module), keep).make()) as trace:
            llava.model(**inputs)
        kept.append(trace.last.alive_per_layer())
    assert kept[0] == kept[1]
    assert sum(kept[0]) / len(kept[0]) < 16


def test_a_grid_is_of_texts_and_budgets() -> None:
    found = grid(["vitcop", "random:keep=25%,seed=3", "fastervlm + fastv", "(fastervlm + knorm):keep=1/2"], [1 / 9, 64])
    assert [one.name for one in found] == [
        "unpruned", "vitcop 1/9", "vitcop 64", "random 1/4 seed=3", "fastervlm + fastv 1/9", "fastervlm + fastv 64",
        "fastervlm + knorm 1/2",
    ]  # fmt: skip
    assert str(found[4].make()) == str(foveate.methods.Compose(make("fastervlm"), make("fastv"), keep=1 / 9))
    assert "methods=['fastervlm', 'fastv']" in found[4].describe()


def test_a_composition_is_tuned_and_read_again(tmp_path: Path) -> None:
    one = setting("(fastervlm:keep=1/3 + fastv):keep=1/4")
    (tmp_path / "foveate.json").write_text(Tuned(one.kind, one.parameters).to_json())
    assert str(choose_method(str(tmp_path / "foveate.json"))) == str(one.make())
    assert grid([str(tmp_path / "foveate.json")], [0.5])[1].parameters == one.parameters
    (tmp_path / "foveate.json").write_text(Tuned("compose", {"methods": "fastv"}).to_json())
    with pytest.raises(TunedFileError, match="methods in a row"):
        setting(str(tmp_path / "foveate.json"))


def test_modules_beside_the_model_reach_the_members_of_a_composition() -> None:
    found: Any = setting("tower_filter + glimpse", model=zoo.DEFAULT).make()
    alone: Any = choose_method("glimpse", model=zoo.DEFAULT)
    assert found.methods[1].parameters() == alone.parameters()


@pytest.mark.parametrize(
    ("text", "more", "words"),
    [
        ("vitcop:keep=1/9", {"keep": 0.5}, "already says what to keep"),
        ("vitcop:deep_layer=20", {"deep_layer": 3}, "given twice"),
        ("vitcop", {"module": "/a"}, "has no module"),
        ("none", {"keep": 0.5}, "prunes nothing"),
        ("pixel_prune", {"keep": 0.5}, "by the picture alone"),
        ("fastervlm + nothing_such", {}, "no method 'nothing_such'"),
        ("(fastervlm + fastv):deep=3", {}, "compose has no parameter deep"),
        ("compose:keep=1/3", {}, "methods in a row"),
        ("fastervlm:kep=3 + fastv", {}, "no parameter kep"),
    ],
)
def test_contradictions(text: str, more: dict[str, Any], words: str) -> None:
    with pytest.raises(FoveateError, match=words):
        setting(text, **more).make()


def test_a_setting_gets_another_budget_and_keeps_the_rest() -> None:
    one = setting("vitcop:deep_layer=20", 1 / 9)
    assert one.with_keep(32).parameters == {"keep": 32, "deep_layer": 20}
    assert one.without_keep() == Setting("vitcop deep_layer=20", "vitcop", {"deep_layer": 20})


def test_one_setting() -> None:
    assert one_setting("none", None).kind == "unpruned"
    assert one_setting("fastv:layer=1", "1/4").parameters == {"keep": 0.25, "layer": 1}
    for method, keep in (("vitcop", "1/4,1/2"), ("none", "1/4"), ("vitcop:keep=0.5", "1/4")):
        with pytest.raises(ConfigurationError, match="keep"):
            one_setting(method, keep)
