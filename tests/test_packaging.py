"""What the wheel and the source distribution hold."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both, built by the backend that `pyproject.toml` names."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    return out


def test_the_wheel_holds_the_package_alone(built: Path) -> None:
    (file,) = built.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = wheel.namelist()
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"foveate"}
    expected = {p.relative_to(ROOT / "src").as_posix() for p in (ROOT / "src" / "foveate").rglob("*.py")}
    expected |= {"foveate/py.typed", "foveate/zoo/scenes-qwen2_5_vl/model.safetensors"}
    expected |= {"foveate/zoo/scenes-llava/model.safetensors", "foveate/zoo/scenes-qwen2_5_vl/glimpse/config.json"}
    assert expected <= set(names)


def test_the_source_distribution_holds_what_a_checkout_needs(built: Path) -> None:
    (file,) = built.glob("*.tar.gz")
    with tarfile.open(file) as source:
        names = {name.partition("/")[2] for name in source.getnames()}
    expected = {p.relative_to(ROOT).as_posix() for room in ("recipes", "tests") for p in (ROOT / room).rglob("*.py")}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "recipes").rglob("*.yaml")}
    expected |= {p.relative_to(ROOT).as_posix() for p in (ROOT / "docs").glob("*.md")}
    expected |= {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "recipes/README.md", "constraints.txt", "Makefile"}
    assert expected <= names
    assert not any(".venv" in name or "__pycache__" in name for name in names)
