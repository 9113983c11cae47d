"""The report a person looks at: one HTML file with plots, tables and pictures of what was kept inside."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from foveate.data.rows import Rows
from foveate.errors import DataError, MissingExtraError
from foveate.evals.summary import Answers
from foveate.inference.answer import Asker
from foveate.inference.pictures import picture
from foveate.specs.settings import Setting

CASES = 3


def groups(
    asker: Asker, task: Rows, settings: Sequence[Setting], answers: Sequence[Answers], most: int = CASES
) -> list[dict[str, Any]]:
    """Pictures of cases: lost to pruning (worst), won by it, and right with the fewest tokens (best).

    The chosen few are asked again, because overlays need the trace.
    """
    reference, *others = answers
    found = []
    for title, better in (("Worst: right unpruned, wrong pruned", 1), ("Best: wrong unpruned, right pruned", -1)):
        cases = []
        for setting, one in zip(settings[1:], others, strict=True):
            loss = better * (reference.scores - one.scores)
            order = sorted((i for i in range(len(loss)) if loss[i] >= 0.5), key=lambda i: -loss[i])
            cases += [c for i in order[:most] if (c := _case(asker, task, setting, reference, one, i))]
        found.append({"title": title, "cases": cases})
    frugal = []
    for setting, one in zip(settings[1:], others, strict=True):
        right = sorted((i for i in range(len(one.scores)) if one.scores[i] >= 0.5), key=lambda i: _share(one, i))
        frugal += [c for i in right[:1] if (c := _case(asker, task, setting, reference, one, i))]
    found.append({"title": "Examples: right with the smallest share of tokens", "cases": frugal})
    if not any(group["cases"] for group in found):  # nothing was answered: what was kept is worth a look all the same
        first = [
            _case(asker, task, setting, reference, one, 0) for setting, one in zip(settings[1:], others, strict=True)
        ]
        found.append({"title": "Examples: none was right", "cases": [case for case in first if case]})
    return [group for group in found if group["cases"]]


def _share(one: Answers, index: int) -> float:
    record = one.records[index]
    return float(record["kept_tokens"] / max(record["visual_tokens"], 1))


def _case(
    asker: Asker, task: Rows, setting: Setting, reference: Answers, one: Answers, index: int
) -> dict[str, Any] | None:
    record = one.records[index]
    sample = task[task.ids.index(record["sample"])]
    try:
        images = sample.load_media()
    except DataError:  # was readable when it was answered; a picture less is no reason to lose the report
        return None
    inputs = asker.questions([(images, sample.question)])
    trace = asker.answer(inputs, setting.make(), max_new_tokens=1)[0].prefill
    return record | {
        "picture": _encode(picture(images[0], trace).convert("RGB"), "JPEG"),
        "alt": f"The picture of {record['sample']}, and what {setting.name} kept of it: {record['kept_tokens']:.1f} of "
        f"{record['visual_tokens']} visual tokens per layer",
        "setting": setting.name,
        "score": float(one.scores[index]),
        "reference": reference.records[index]["prediction"],
        "reference_score": float(reference.scores[index]),
    }


def _encode(picture: Any, kind: str) -> str:
    buffer = io.BytesIO()
    picture.thumbnail((480, 480))
    picture.save(buffer, kind, quality=82)
    return base64.b64encode(buffer.getvalue()).decode()


def _plot_text(rows: Sequence[dict[str, Any]], metric: str) -> str:
    """What the plot shows, for who does not see it."""
    points = "; ".join(f"{row['setting']}: {row['score']:.1%} with {row['kept']:.1%}" for row in rows)
    return f"{metric.replace('_', ' ')} against visual tokens kept and time to first token. {points} of the tokens."


def render(found: dict[str, Any], plot: Any, cases: Sequence[dict[str, Any]]) -> str:
    """The page as text.

    Args:
        found: the summary as `evaluate` writes it.
        plot: a matplotlib figure.
        cases: of `groups`.

    Raises:
        MissingExtraError: jinja2 is not installed.
    """
    try:
        from jinja2 import Environment
    except ImportError as error:
        raise MissingExtraError("The report needs jinja2: pip install 'foveate[eval]'.") from error
    source = (Path(__file__).parent / "templates" / "report.html.j2").read_text(encoding="utf-8")
    picture = io.BytesIO()
    plot.savefig(picture, format="png", dpi=120)
    rows = found["results"]
    details = {key: value for key, value in found.items() if key not in ("results", "skipped")}
    page = Environment(autoescape=True, trim_blocks=True).from_string(source)
    return page.render(
        title=f"{found['run']['model']} on {found['run']['data']}",
        metric=found["metric"].replace("_", " "),
        rows=rows,
        types=list(rows[0]["by_type"]),
        groups=cases,
        skipped=found["skipped"],
        facts=found["environment"],
        batch=found["batch"],
        plot_text=_plot_text(rows, found["metric"]),
        plot=base64.b64encode(picture.getvalue()).decode(),
        details=json.dumps(details, indent=1, ensure_ascii=False),
        pct=lambda value: "-" if value is None else f"{100 * value:.1f}",
    )
