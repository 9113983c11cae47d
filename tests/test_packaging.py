"""What the wheel and the source distribution hold."""

from __future__ import annotations

import re
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


def test_the_wheel_is_small_and_holds_every_licence(built: Path) -> None:
    (file,) = built.glob("*.whl")
    assert file.stat().st_size <= 35e6
    with zipfile.ZipFile(file) as wheel:
        names = {name.rpartition("/licenses/")[2] for name in wheel.namelist() if "/licenses/" in name}
        (metadata,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        text = wheel.read(metadata).decode()
    assert names == {"LICENSE", "src/foveate/scenes/fonts/LICENSE_DEJAVU"}
    links = re.findall(r"\]\(([^)]*)\)", text)
    assert links
    assert [link for link in links if not link.startswith(("https://", "#"))] == []


def test_the_source_distribution_builds_the_same_wheel(built: Path, tmp_path: Path) -> None:
    (source,), (wheel,) = built.glob("*.tar.gz"), built.glob("*.whl")
    with tarfile.open(source) as packed:
        packed.extractall(tmp_path, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))  # since 3.11.4
    (folder,) = tmp_path.iterdir()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    (again,) = tmp_path.glob("*.whl")

    def content(file: Path) -> dict[str, int]:
        with zipfile.ZipFile(file) as opened:
            return {info.filename: info.CRC for info in opened.infolist()}

    assert content(again) == content(wheel)


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
