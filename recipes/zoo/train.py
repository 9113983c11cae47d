"""Trains a zoo model from a configuration: `python -m recipes.zoo --config qwen2_5_vl.yaml --out DIR`."""

from __future__ import annotations

import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from transformers import Qwen2_5_VLForConditionalGeneration

from foveate.zoo import resolve
from recipes.zoo import llava, qwen
from recipes.zoo.config import ZooConfig, ZooConfigError, load
from recipes.zoo.encoders import Encoder, LlavaEncoder, QwenEncoder, scale_features
from recipes.zoo.export import export
from recipes.zoo.heads import DenseHeads
from recipes.zoo.prompts import Prompts
from recipes.zoo.rearrange import rearrange
from recipes.zoo.stages import LanguageStage, VisionStage
from recipes.zoo.tokenizer import build
from recipes.zoo.trainer import Trainer, load_modules
from recipes.zoo.words import name_words


def train(config_path: str | Path, out: Path) -> Path:
    """Runs both stages in `processes` processes, resuming what `out` holds; returns the model's folder.

    Raises:
        ZooConfigError: the configuration is unusable, starts from a model that was not trained yet, or `out` holds
            a run of another one.
    """
    config = load(config_path)
    for name in filter(None, (config.start, config.teacher)):
        if not (Path(resolve(name)) / "config.json").is_file():
            raise ZooConfigError(f"no trained model in {name}: run the configuration that it comes from first")
    out.mkdir(parents=True, exist_ok=True)
    _claim(config, out)
    if config.processes == 1:
        _worker(0, config, out, 0)
    else:
        mp.spawn(_worker, (config, out, _free_port()), nprocs=config.processes)
    return out / config.name


def _claim(config: ZooConfig, out: Path) -> None:
    """Refuses to continue another model's run."""
    marker = out / "run.txt"
    own = f"{config.name} {config.family} tower={config.tower} text={config.text} seed={config.seed}"
    own += f" start={config.start} teacher={config.teacher} order={config.order}\n"
    if marker.exists() and marker.read_text() != own:
        raise ZooConfigError(f"{out} holds a run of another configuration; choose another --out or empty it")
    marker.write_text(own)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent is gone: a killed run must not go on training in its children."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _worker(rank: int, config: ZooConfig, out: Path, port: int) -> None:
    if config.processes > 1:
        _end_with(os.getppid())
    torch.set_num_threads(1 if config.processes > 1 else torch.get_num_threads())
    if config.processes > 1:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        dist.init_process_group("gloo", rank=rank, world_size=config.processes)
    trainer = Trainer(out, rank, config.processes, config.checkpoint_seconds)
    model, prompts = train_model(config, trainer)
    if rank == 0:
        export(model, prompts.tokenizer, out / config.name, config.family, config.image_size, config.largest_side)
    if dist.is_initialized():
        dist.barrier()
        dist.destroy_process_group()


def _trained(kind: Any, name: str) -> Any:
    """A model trained before: a zoo name or a folder."""
    return kind.from_pretrained(resolve(name), dtype=torch.float32)


def build_model(config: ZooConfig, prompts: Prompts) -> tuple[Any, Encoder, Any]:
    """An untrained model of the configured family, its encoder, and the teacher or `None`."""
    if config.family == "qwen2_5_vl":
        model = qwen.create(config, prompts.tokenizer)
        return model, QwenEncoder(model), None
    teacher = None
    if config.teacher:
        teacher = _trained(Qwen2_5_VLForConditionalGeneration, config.teacher).requires_grad_(False)
    model = llava.create(config, prompts.tokenizer, teacher)
    return model, LlavaEncoder(model, teacher), teacher


def train_model(config: ZooConfig, trainer: Trainer) -> tuple[Any, Prompts]:
    """The recipe: the tower alone, then everything on questions."""
    prompts = Prompts(build())
    model, encoder, teacher = build_model(config, prompts)
    if config.start:
        model.load_state_dict(_trained(type(model), config.start).state_dict())
        rearrange(model.model.language_model, config.order, config.heads, config.silent)
    elif teacher is not None:  # its features are followed from the first step on: begin at their scale
        scale_features(encoder)
    heads = DenseHeads(config.text["hidden_size"])
    for part in range(1, len(config.vision) + 1):
        vision = VisionStage(config, part, encoder, heads)
        trainer.run(vision)
        if dist.is_initialized():
            dist.barrier()
        load_modules(trainer.out / f"{vision.name}.pt", vision.modules())
    torch.manual_seed(config.seed + 1)
    if not config.start:
        if teacher is None:
            scale_features(encoder)
            name_words(model.model.language_model.embed_tokens, heads, prompts.tokenizer)
        else:
            llava.copy_text(model, teacher)
    trainer.run(LanguageStage(config, model, encoder, heads, prompts))
    return model, prompts
