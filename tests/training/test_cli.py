"""`foveate train glimpse` and `foveate convert glimpse`."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer import Typer
from typer.testing import CliRunner

from foveate.cli import convert as convert_cli
from foveate.cli import train_glimpse as cli
from foveate.errors import ConfigurationError
from foveate.glimpse import GlimpseModule
from foveate.training.glimpse.run import GlimpseSettings
from tests.golden_files import golden_path

from .runs import FAST, command


def app(command: object) -> Typer:
    out = Typer()
    out.command()(command)
    return out


def test_command_line(settings: GlimpseSettings) -> None:
    options = command(replace(settings, arguments=FAST | {"max_steps": 1}))
    options += ["--objective", "both", "--keep-target", "0.2", "--loss", "bce=0.5", "--module", "selected_layers=[1]"]
    options += ["--module", "reduce_layer=1", "--limit", "4", "--eval-data", settings.data, "--eval-limit", "2"]
    result = CliRunner().invoke(app(cli.glimpse), options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert "kept" in result.output
    summary = json.loads((settings.out / "training.json").read_text())
    assert summary["settings"]["objective"]["keep_target"] == 0.2
    assert summary["settings"]["objective"]["distillation"] == 1.0
    assert GlimpseModule.from_pretrained(settings.out).config.selected_layers == (1,)
    assert summary["settings"]["objective"]["bce"] == 0.5
    with pytest.raises(ConfigurationError, match="no bcee"):
        CliRunner().invoke(app(cli.glimpse), [*options, "--loss", "bcee=1"], catch_exceptions=False)
    with pytest.raises(ConfigurationError, match="NAME=VALUE"):
        CliRunner().invoke(app(cli.glimpse), [*options, "--set", "bf16"], catch_exceptions=False)


def test_convert_command(tmp_path: Path) -> None:
    source = golden_path("gp_qwen/new_modules")
    result = CliRunner().invoke(app(convert_cli.glimpse), [str(source), str(tmp_path / "ours")])
    assert result.exit_code == 0, result.output
    assert GlimpseModule.from_pretrained(tmp_path / "ours").config.family == "qwen2_5_vl"
