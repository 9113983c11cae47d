"""What stands in for the large models, accelerators and private files that pages name.

A page is written for the reader's machine; the test has two cores and what ships with the package. So the names below
are replaced before a block runs, and the working directory holds small files of the names that pages use. Nothing else
of a block is changed.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from foveate import scenes, zoo
from tests.clips import write_clip

QWEN, LLAVA = zoo.DEFAULT, "foveate/scenes-llava"
MODELS = {
    "Qwen/Qwen2.5-VL-7B-Instruct": QWEN,
    "Qwen/Qwen2.5-VL-3B-Instruct": QWEN,
    "llava-hf/llava-1.5-7b-hf": LLAVA,
}
MACHINE = {"flash_attention_2": "sdpa", "--device cuda": "--device cpu", 'device="cuda"': 'device="cpu"'}
"""An accelerator's options."""
PORTS = (8000, 7860)
"""What `foveate serve` and `foveate page` listen at by default: the test takes free ones."""


def stand_in(code: str, ports: dict[int, int]) -> str:
    """The code with every name replaced."""
    for name, other in (MODELS | MACHINE).items():
        code = code.replace(name, other)
    for usual, free in ports.items():
        code = code.replace(f"127.0.0.1:{usual}", f"127.0.0.1:{free}")
    code = re.sub(r"^(foveate serve\b)", rf"\1 --port {ports[8000]}", code, flags=re.MULTILINE)
    return re.sub(r"^(foveate page\b)", rf"\1 --port {ports[7860]}", code, flags=re.MULTILINE)


def fill(folder: Path) -> None:
    """The files that pages name: pictures, a video, questions with evidence boxes, a glimpse module."""
    samples = scenes.load("val", 24)
    samples[0].images[0].save(folder / "photo.jpg", quality=95)
    samples[1].images[0].save(folder / "page.png")
    photos = folder / "photos"
    photos.mkdir()
    for number, sample in enumerate(samples[:3]):
        sample.images[0].save(photos / f"{number}.png")
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as rows:
        for number, sample in enumerate(samples):
            sample.images[0].save(folder / f"question-{number}.png")
            row = {"image": f"question-{number}.png", "question": sample.question, "answer": sample.answer}
            rows.write(json.dumps(row | {"boxes": sample.boxes}) + "\n")
    shutil.copytree(Path(zoo.resolve(QWEN)) / "glimpse", folder / "gp-7b")
    write_clip(folder / "clip.mp4", 16, 8, (112, 112))
