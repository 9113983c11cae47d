"""A method as an object, a name, a file or None."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest

import foveate
from foveate import zoo
from foveate.errors import ConfigurationError, TunedElsewhereWarning
from foveate.inference.pruning import resolve
from foveate.inference.weights import fingerprint
from foveate.methods import Random
from foveate.specs.choose import choose_method
from foveate.specs.grammar import one_budget
from foveate.specs.tuned import Tuned, TunedFileError
from tests.tiny import Tiny

PARTS = [[3, (4, 4), 5]]


def kept(model: Any, batch: dict[str, Any], *args: Any, **more: Any) -> float:
    with foveate.prune(model, *args, **more) as trace:
        model.generate(**batch, max_new_tokens=1)
    return trace.keep_ratio


def test_all_ways_to_say_the_same(tiny: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "foveate.json"
    file.write_text(Tuned("random", {"keep": 0.5}).to_json())
    batch = tiny.batch(PARTS)
    for given in (Random(keep=0.5), file, str(file)):
        assert kept(tiny.model, batch, given) == 0.5
    assert kept(tiny.model, batch, "random", keep=0.5) == 0.5
    assert kept(tiny.model, batch, "random", keep=8, seed=3) == 0.5
    assert kept(tiny.model, batch, None) == kept(tiny.model, batch, "none") == 1.0
    assert resolve(tiny.model, "random", 0.5, seed=3) == Random(keep=0.5, seed=3)


def test_attach_takes_the_same(tiny: Tiny) -> None:
    attached = foveate.attach(tiny.model, "random", keep=0.25)
    try:
        tiny.model.generate(**tiny.batch(PARTS), max_new_tokens=1)
        assert attached.trace.keep_ratio == 0.25
    finally:
        foveate.detach(tiny.model)


@pytest.mark.parametrize(
    ("method", "parameters", "message"),
    [
        ("vitcap", {}, "no method 'vitcap'.*vitcop"),
        ("random", {"kep": 0.5}, "no parameter kep.*keep"),
        (Random(), {"keep": 0.5}, "keep: parameters belong to a method given by name"),
        (None, {"keep": 0.5}, "keep: parameters belong"),
        ("none", {"keep": 0.5}, "prunes nothing"),
        ("{file}", {"keep": 0.5}, "says what to keep"),
        ("random", {"module": "somewhere"}, "has no module"),
        ("glimpse_prune", {}, "needs a trained module"),
        (0.5, {}, "got float"),
    ],
)
def test_what_makes_no_method(
    method: Any, parameters: dict[str, Any], message: str, tiny: Tiny, tmp_path: Path
) -> None:
    file = tmp_path / "foveate.json"
    file.write_text(Tuned("random", {"keep": 0.5}).to_json())
    given = str(file) if method == "{file}" else method
    with pytest.raises(ConfigurationError, match=message), foveate.prune(tiny.model, given, **parameters):
        pass


def test_unusable_files(tiny: Tiny, tmp_path: Path) -> None:
    for content in ("{", "{}", json.dumps({"format": "foveate.tuned/1", "method": "nothing", "parameters": {}})):
        (tmp_path / "foveate.json").write_text(content)
        with pytest.raises(TunedFileError), foveate.prune(tiny.model, tmp_path / "foveate.json"):
            pass
    with pytest.raises(TunedFileError, match="Cannot read"), foveate.prune(tiny.model, tmp_path / "nowhere.json"):
        pass


def test_a_module_is_found_beside_the_model() -> None:
    beside = Path(zoo.resolve(zoo.DEFAULT)) / "glimpse"
    by_name: Any = choose_method("glimpse", model=zoo.DEFAULT, keep=0.5)
    assert by_name.max_keep == 0.5
    assert by_name.parameters()["module"] == choose_method("glimpse_prune", module=beside).parameters()["module"]
    model, _ = foveate.load(zoo.DEFAULT)
    assert type(resolve(model, "glimpse_prune")) is type(by_name)


def test_a_tuned_file_warns_on_another_model(tiny: Tiny, tiny_llava: Tiny, tmp_path: Path) -> None:
    file = tmp_path / "foveate.json"
    run = {"model": "some/model", "weights": fingerprint(tiny_llava.model), "dtype": "float32"}
    file.write_text(Tuned("random", {"keep": 0.5}, {"run": run}).to_json())
    if tiny.family == "llava":
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            resolve(tiny.model, file)
    else:
        with pytest.warns(TunedElsewhereWarning, match="tuned on some/model"):
            resolve(tiny.model, file)


def test_numbers_of_another_dtype_leave_it_to_the_name(tmp_path: Path) -> None:
    model, _ = foveate.load(zoo.DEFAULT)
    file = tmp_path / "foveate.json"
    for name, warns in ((zoo.DEFAULT, False), ("some/model", True)):
        run = {"model": name, "weights": "of other numbers", "dtype": "bfloat16"}
        file.write_text(Tuned("random", {"keep": 0.5}, {"run": run}).to_json())
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            resolve(model, file)
        assert [w.category for w in found] == [TunedElsewhereWarning] * warns


def test_one_budget() -> None:
    assert (one_budget("1/4"), one_budget("64"), one_budget("1")) == (0.25, 64, 1.0)
    with pytest.raises(ConfigurationError, match="one budget"):
        one_budget("1/3,1/9")
