"""The page itself, with Gradio: for this machine's browser only, and nothing of it goes anywhere else."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from PIL import Image

from foveate import scenes
from foveate.data.images import open_image
from foveate.engine.attach import prune
from foveate.errors import FoveateError, InputError, OutputError
from foveate.inference.answer import Asker
from foveate.page.bars import CSS, WAITING, bars
from foveate.page.comparing import Side, choices, compare
from foveate.specs.settings import BUDGETS, Setting, setting
from foveate.trace.overlay import overlays

EXAMPLES = (9, 0, 4, 6, 15)
"""Numbers of scenes of the test split, of different questions."""
_LARGEST_UPLOAD = "50mb"
_MOST_WAITING = 16
_LONGEST = 4000
"""Characters of a question: one question is answered at a time, and a book would keep the others waiting."""
_A_DAY = (86400, 86400)
"""Seconds between looks for uploads to delete, and their age; the rest go when the page ends."""
_LAYOUT = """
footer {display: none !important;}
.gradio-container {max-width: 1280px !important; margin: 0 auto !important;}
#about p {opacity: .8; margin: 2px 0 0;}
#ask {min-height: 44px;}
#stock textarea, #pruned textarea {font-size: 20px; font-weight: 600;}
#stages .grid-wrap {max-height: none !important; height: auto !important; overflow: visible;}
#stages .thumbnail-lg {aspect-ratio: auto !important;}
"""
_ABOUT = (
    "# foveate\nOne question, asked of the stock model and of the same model while visual tokens are dropped. "
    "Model: `{model}`."
)
_SCENES_ONLY = (
    " It is a small model that was trained on rendered scenes and **answers about such scenes only**, like the "
    "examples; start the page with `--model` for photographs."
)
Outputs = tuple[str, str, str, Any, Any]
"""Both answers, the bars, the pictures by stage, the trace."""
NOTHING: Outputs = ("", "", WAITING, None, None)


class Page:
    """What the page does, without Gradio.

    Args:
        asker: answers.
        model: the name it was loaded by.
        first: the method that is chosen at first, with its parameters.

    Raises:
        ConfigurationError: the model cannot be asked under that method.
    """

    def __init__(self, asker: Asker, model: str, first: Setting) -> None:
        self.asker, self.model, self.first = asker, model, first.without_keep()
        given = next((first.parameters[name] for name in BUDGETS if name in first.parameters), None)
        self.keep = given if isinstance(given, float) else 0.11
        """Where the slider stands at first."""
        with prune(asker.model, self.first.with_keep(self.keep).make()):
            self.methods = list(dict.fromkeys([self.first.name, *choices(asker, model)]))

    def about(self) -> str:
        """Markdown at the head."""
        shown = _ABOUT.format(model=self.model.replace("`", "'"))
        return shown + (_SCENES_ONLY if self.model.startswith("foveate/") else "")

    def ask(self, picture: str | None, question: str, method: str, keep: float) -> Iterator[Outputs]:
        """Both answers so far, and at the end the bars, the pictures by stage and the trace.

        Raises:
            FoveateError: what was given cannot be asked.
        """
        if not picture:
            raise InputError("Give a picture first: drop one on the page, or choose an example.")
        if len(question) > _LONGEST:
            raise InputError(f"The question has {len(question):,} letters; the page takes at most {_LONGEST:,}.")
        image = open_image(picture)
        own = self.first if method == self.first.name else setting(method, model=self.model)
        chosen = own.with_keep(keep).make()
        if chosen is None:
            raise InputError("Choose a method that prunes.")
        for stock, pruned in compare(self.asker, image, question, chosen):
            yield self._show(image, stock, pruned)

    def _show(self, image: Image.Image, stock: Side, pruned: Side) -> Outputs:
        if pruned.answer is None or not pruned.readings:
            return stock.text, pruned.text, *NOTHING[2:]
        whole = (stock, stock.answer), (pruned, pruned.answer)
        trace = {side.name: answer.prefill.to_dict() for side, answer in whole if answer is not None}
        pictures = [image, *overlays(image, pruned.answer.prefill)]
        return stock.text, pruned.text, bars(stock, pruned), pictures, trace


def build(page: Page, folder: Path) -> Any:
    """The Gradio blocks; the examples' pictures are written into the folder."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when it is imported
    import gradio as gr

    def ask(*given: Any) -> Iterator[Outputs]:
        yield NOTHING
        try:
            yield from page.ask(*given)
        except FoveateError as error:
            raise gr.Error(escape(str(error)), print_exception=False) from error

    with gr.Blocks(title="foveate", analytics_enabled=False, fill_width=True, delete_cache=_A_DAY) as blocks:
        gr.Markdown(page.about(), elem_id="about")
        with gr.Row(equal_height=False):
            with gr.Column(scale=4, min_width=320):
                inputs = _inputs(gr, page)
                button = gr.Button("Ask", variant="primary", elem_id="ask")
                gr.Examples(_examples(folder), inputs[:2], label="Rendered scenes", cache_examples=False)
            with gr.Column(scale=7, min_width=420):
                outputs = _outputs(gr)
        for event, shown in ((button.click, "public"), (inputs[1].submit, "private")):
            event(
                ask, inputs, outputs, show_progress="minimal", show_progress_on=outputs[2], api_name="ask",
                api_visibility=shown, concurrency_limit=1, concurrency_id="model",
            )  # fmt: skip
    return blocks


def _inputs(gr: Any, page: Page) -> list[Any]:
    picture = gr.Image(type="filepath", label="Picture", sources=["upload", "clipboard"], height=300, elem_id="picture")
    question = gr.Textbox(
        label="Question", placeholder="What letter is on the red square?", lines=1, elem_id="question"
    )
    kind = gr.Dropdown(page.methods, value=page.first.name, label="Method", elem_id="method")
    keep = gr.Slider(
        0.02, 1, value=page.keep, step=0.01, label="Keep", elem_id="keep",
        info="Average share of visual tokens per decoder layer; for adaptive methods the most they may keep.",
    )  # fmt: skip
    return [picture, question, kind, keep]


def _outputs(gr: Any) -> list[Any]:
    with gr.Row():
        stock = gr.Textbox(label="Unpruned", lines=2, interactive=False, elem_id="stock")
        pruned = gr.Textbox(label="Pruned", lines=2, interactive=False, elem_id="pruned")
    saved = gr.HTML(WAITING, elem_id="saved")
    gr.HTML("<h3>What was dropped where, stage by stage</h3>", elem_classes="heading")
    stages = gr.Gallery(
        show_label=False, columns=2, object_fit="contain", height="auto", format="png", elem_id="stages",
        buttons=["download", "fullscreen"],
    )  # fmt: skip
    with gr.Accordion("Trace as JSON", open=False, elem_id="trace"):
        trace = gr.JSON(label="Of both prompts' readings", max_height=420)
    return [stock, pruned, saved, stages, trace]


def _examples(folder: Path) -> list[list[str]]:
    found = []
    for number in EXAMPLES:
        sample = scenes.load("test", 1, number)[0]
        file = folder / f"scene-{number}.png"
        sample.images[0].save(file)
        found.append([str(file), sample.question])
    return found


def launch(page: Page, port: int) -> Any:
    """Serve the page to browsers of this machine; returns at once.

    Args:
        port: 0 chooses a free one.

    Returns:
        The running blocks: `local_url` is where, `block_thread()` waits, `close()` ends it.

    Raises:
        OutputError: the port is taken.
    """
    folder = tempfile.TemporaryDirectory(prefix="foveate-page-")
    blocks = build(page, Path(folder.name))
    blocks.folder_until_then = folder
    import gradio as gr
    from starlette.middleware import Middleware
    from starlette.middleware.trustedhost import TrustedHostMiddleware

    # a web page may let any name point here; its browser then sends that name
    own_names = Middleware(TrustedHostMiddleware, allowed_hosts=["127.0.0.1", "localhost"])
    try:
        blocks.queue(max_size=_MOST_WAITING).launch(
            server_name="127.0.0.1", server_port=port or _free_port(), share=False, max_file_size=_LARGEST_UPLOAD,
            ssr_mode=False, footer_links=[], css=CSS + _LAYOUT, prevent_thread_lock=True, quiet=True, mcp_server=False,
            app_kwargs={"middleware": [own_names]},
            theme=gr.themes.Soft(font="system-ui", font_mono="ui-monospace"), enable_monitoring=False,
        )  # fmt: skip
    except OSError as error:
        raise OutputError(
            f"Port {port} cannot be used: something listens there already? Choose another --port, or 0 for a free one."
        ) from error
    return blocks


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
