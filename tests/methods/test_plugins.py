"""Methods of other packages, found by entry points."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

import foveate.methods
from foveate import scenes
from foveate.cli.app import app
from foveate.errors import ConfigurationError
from foveate.methods import find, make, registry
from foveate.specs.settings import grid
from tests.cli.run import foveate as run

METHOD = '''
from dataclasses import dataclass

from foveate import Score
from foveate.methods import FastV  # a plugin may use ours while the registry is being made


@dataclass(frozen=True)
class {name}(Score):
    """Keeps the tokens with the largest features.

    Args:
        keep: average visual tokens per decoder layer.
        power: of the features.
    """

    power: float = 2.0

    def score(self, view):
        return view.hidden.abs().pow(self.power).sum(-1)
'''


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    registry.cache_clear()
    yield
    registry.cache_clear()


class Site:
    """A folder on the path into which small packages are installed, as pip leaves them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        monkeypatch.syspath_prepend(str(folder))

    def install(self, package: str, source: str, *classes: str) -> None:
        module = package.replace("-", "_")
        sys.modules.pop(module, None)
        (self.folder / f"{module}.py").write_text(source, encoding="utf-8")
        info = self.folder / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n", encoding="utf-8")
        lines = "".join(f"{name} = {module}:{name}\n" for name in classes)
        (info / "entry_points.txt").write_text(f"[foveate.methods]\n{lines}", encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    return Site(tmp_path, monkeypatch)


def test_an_installed_method_is_one_of_ours(site: Site) -> None:
    site.install("acme-pruning", METHOD.format(name="LargestFeatures"), "LargestFeatures")
    assert find("largest_features").__module__ == "acme_pruning"
    assert find("largest") is foveate.methods.LargestFeatures
    assert str(make("largest_features", keep=0.25, power=1.0)) == "largest_features(keep=0.25, power=1.0)"
    settings = grid(["largest_features:power=3"], [0.5, 64])
    assert [s.name for s in settings[1:]] == ["largest_features 1/2 power=3", "largest_features 64 power=3"]
    shown = CliRunner().invoke(app, ["methods"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0, shown.output
    assert "largest_features" in shown.output
    one = CliRunner().invoke(app, ["methods", "largest_features"])
    assert "Keeps the tokens with the largest features" in one.output


def test_one_that_is_broken_is_left_out_with_its_name(site: Site) -> None:
    site.install("acme-pruning", METHOD.format(name="LargestFeatures"), "LargestFeatures")
    site.install("broken-pruning", "raise RuntimeError('no licence')", "Broken")
    site.install("empty-pruning", "", "Missing")
    site.install("other-pruning", "Thing = 3", "Thing")
    with pytest.warns(UserWarning, match="is left out") as seen:
        names = list(registry())
    assert "largest_features" in names
    assert "fastv" in names
    told = [str(warning.message) for warning in seen]
    for package, why in (("broken-pruning", "no licence"), ("empty-pruning", "Missing"), ("other-pruning", "subclass")):
        assert any(package in text and why in text for text in told), package


def test_two_methods_of_one_name_are_an_error_that_names_both_packages(site: Site) -> None:
    site.install("acme-pruning", METHOD.format(name="LargestFeatures"), "LargestFeatures")
    site.install("rival-pruning", METHOD.format(name="LargestFeatures"), "LargestFeatures")
    with pytest.raises(ConfigurationError, match=r"acme-pruning and rival-pruning|rival-pruning and acme-pruning"):
        registry()


def test_a_name_of_ours_cannot_be_taken(site: Site) -> None:
    site.install("acme-pruning", METHOD.format(name="Random"), "Random")
    with pytest.raises(ConfigurationError, match="foveate and acme-pruning both have a method 'random'"):
        find("random")


def test_what_is_missing_or_unknown_is_said() -> None:
    with pytest.raises(ConfigurationError, match="needs module"):
        make("glimpse_prune")
    with pytest.raises(ConfigurationError, match="no parameter keep"):
        make("glimpse_prune", keep=0.5)
    with pytest.raises(ConfigurationError, match="no parameter blocks; it has keep, "):
        make("fastervlm", blocks=3)
    with pytest.raises(ConfigurationError, match="There are .*vitcop"):
        make("vitcopp")


def test_a_plugin_is_known_to_every_command(site: Site, tmp_path: Path) -> None:
    """`methods`, `ask`, `eval` and `bench`, with its own parameter and budget."""
    site.install("norm-plugin", METHOD.format(name="FeatureNorm"), "FeatureNorm")
    picture = tmp_path / "picture.png"
    scenes.load("test", 1)[0].image.save(picture)
    commands = {
        "methods": ["methods", "feature_norm"],
        "ask": ["ask", picture, "What is this?", "--method", "feature_norm", "--keep", "1/2", "--max-new-tokens", "2"],
        "eval": [
            "eval", "--limit", "1", "--method", "feature_norm:power=1", "--keep", "1/2", "--out", tmp_path / "eval",
            "--no-report",
        ],
        "bench": [
            "bench", "--model", "mid-llava", "--tokens", "16", "--method", "feature_norm", "--keep", "1/2",
            "--no-memory", "--repeats", "1", "--warmup", "0", "--new-tokens", "2",
        ],
    }  # fmt: skip
    for name, arguments in commands.items():
        done = run(*arguments)
        assert done.returncode == 0, (name, done.stderr)
        assert "feature_norm" in done.stdout if name != "ask" else "50.0%" in done.stdout, (name, done.stdout)
