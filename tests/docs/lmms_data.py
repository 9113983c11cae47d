"""A few rows of every data set that docs/reproduce.md names, in the columns that lmms-eval's tasks read (0.7.3).

Data sets are folders of the same names beside the reader's working directory, where `datasets` looks first. Pictures
are rendered scenes; what is asked is made to fit the columns, not the pictures.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from foveate import scenes

Columns = list[dict[str, Any]]
HUB = "lmms-lab-encoder"
CAPTIONS = ["two shapes on a plain ground", "a red star beside a panel"]
CHOICES = {"A": "a star", "B": "a circle", "C": "a page", "D": "nothing"}
QUESTION = "What is in the picture?"
COT = ("cub", "docvqa", "dude", "flickr30k", "gqa", "infographicsvqa", "openimages", "sroie", "textcap", "textvqa",
       "visual7w", "vsr")  # fmt: skip


def write_sets(folder: Path) -> None:
    """Everything below `folder`."""
    pictures = [sample.image for sample in scenes.load("val", 2)]
    for name, parts in rows(pictures).items():
        for (config, split), columns in parts.items():
            _write(folder / name, config, split, columns)
        _card(folder / name, list(parts))


def rows(pictures: list[Any]) -> dict[str, dict[tuple[str, str], Columns]]:
    """Rows by data set, configuration and split."""
    each = list(enumerate(pictures))
    people = [{"answer": "star", "answer_confidence": "yes", "answer_id": number} for number in range(1, 11)]
    yes_no = ("yes", "no")
    mmbench = [
        {"index": i, "question": QUESTION, "hint": "nan", "answer": "A", **CHOICES, "category": "object_localization",
         "L2-category": "perception", "source": "scenes", "split": "dev", "comment": "nan", "image": image}
        for i, image in each
    ]  # fmt: skip
    short = [
        {"question_id": str(i), "image": image, "question": QUESTION, "answers": ["star"] * 10, "category": "other",
         "question_type": "what", "answer_type": "other"}
        for i, image in each
    ]  # fmt: skip
    return {
        f"{HUB}/COCO-Caption2017": {("default", "val"): [
            {"question_id": f"{i:012}.jpg", "image": image, "question": "", "answer": CAPTIONS, "id": i}
            for i, image in each
        ]},
        f"{HUB}/flickr30k": {("default", "test"): [
            {"img_id": str(i), "image": image, "caption": CAPTIONS, "sentids": ["0", "1"], "filename": f"{i}.jpg"}
            for i, image in each
        ]},
        f"{HUB}/GQA": {
            ("testdev_balanced_images", "testdev"): [{"id": f"n{i}", "image": image} for i, image in each],
            ("testdev_balanced_instructions", "testdev"): [
                {"id": str(i), "imageId": f"n{i}", "question": QUESTION, "answer": "star"} for i, _ in each
            ],
        },
        f"{HUB}/MMBench": {
            ("en", "dev"): mmbench, ("en", "test"): mmbench, ("cn", "dev"): mmbench, ("cn", "test"): mmbench,
        },
        f"{HUB}/MME": {("default", "test"): [
            {"question_id": f"count/{i}.png", "image": image, "question": f"Is there a star? {answer}",
             "answer": answer.capitalize(), "category": category}
            for category in ("count", "code_reasoning") for i, image in each for answer in yes_no
        ]},
        f"{HUB}/NoCaps": {("default", "validation"): [
            {"image_id": i, "image": image, "annotations_captions": CAPTIONS, "annotations_ids": [0, 1]}
            for i, image in each
        ]},
        f"{HUB}/OK-VQA": {("default", "val2014"): short},
        f"{HUB}/VizWiz-VQA": {("default", "val"): short},
        f"{HUB}/POPE": {("default", "test"): [
            {"id": str(i), "question_id": str(i), "question": "Is there a star?", "answer": yes_no[i % 2],
             "image_source": str(i), "image": image, "category": "random"}
            for i, image in each
        ]},
        "q-future/Q-Bench-HF": {("default", "dev"): [
            {"id": i, "image": image, "question": QUESTION, "option0": "a star", "option1": "a circle",
             "option2": "N/A", "option3": "N/A", "question_type": 2, "question_concern": 3, "correct_choice": "A"}
            for i, image in each
        ]},
        f"{HUB}/ScienceQA": {("ScienceQA-IMG", "test"): [
            {"image": image, "question": QUESTION, "choices": list(CHOICES.values()), "answer": 0, "hint": ""}
            for _, image in each
        ]},
        f"{HUB}/LMMs-Eval-Lite": {("vqav2_val", "lite"): [
            {"question_id": i, "image_id": i, "image": image, "question": QUESTION, "question_type": "what is",
             "multiple_choice_answer": "star", "answers": people, "answer_type": "other"}
            for i, image in each
        ]},
        f"{HUB}/SEED-Bench": {("default", "test"): [
            {"question_id": f"{kind}{i}", "question": QUESTION, "answer": "A", "data_id": str(i), "data_type": kind,
             "image": [image], **{f"choice_{letter.lower()}": text for letter, text in CHOICES.items()}}
            for kind in ("image", "video") for i, image in each
        ]},
        f"{HUB}/vstar-bench": {("default", "test"): [
            {"question_id": str(i), "image": image, "text": f"{QUESTION} (A) a star (B) a circle", "label": "A",
             "category": category}
            for (i, image), category in zip(each, ("direct_attributes", "relative_position"), strict=True)
        ]},
    }  # fmt: skip


def _write(folder: Path, config: str, split: str, columns: Columns) -> None:
    import datasets

    (folder / config).mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(columns).to_parquet(str(folder / config / f"{split}-00000-of-00001.parquet"))


def _card(folder: Path, parts: list[tuple[str, str]]) -> None:
    """The head of the data set's card: which file is which configuration and split."""
    configs = [
        {"config_name": config, "data_files": [
            {"split": split, "path": f"{config}/{split}-*"} for other, split in parts if other == config
        ]}
        for config in dict.fromkeys(config for config, _ in parts)
    ]  # fmt: skip
    (folder / "README.md").write_text(f"---\n{json.dumps({'configs': configs})}\n---\n", encoding="utf-8")


def write_cot(folder: Path, per_set: int = 2) -> None:
    """Visual-CoT's subsets, exported as the page says: JSON lines with `image`, `question`, `answer`."""
    folder.mkdir()
    samples = iter(scenes.load("val", per_set * len(COT)))
    for name in COT:
        lines = []
        for number in range(per_set):
            sample = next(samples)
            sample.image.save(folder / f"{name}-{number}.png")
            row = {"image": f"{name}-{number}.png", "question": sample.question, "answer": sample.answer}
            lines.append(json.dumps(row))
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
