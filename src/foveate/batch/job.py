"""One batch: what is asked of which model, run to its end or from where it stopped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from foveate.batch.answering import Answering
from foveate.batch.manifest import Manifest
from foveate.batch.parts import BatchFolder
from foveate.engine import attach as engine
from foveate.files.outputs import check_folder
from foveate.inference.answer import Asker
from foveate.inference.schemas import SchemaCompiler, read_schema
from foveate.inference.weights import fingerprint, warn_if_tuned_elsewhere
from foveate.specs.settings import Setting


@dataclass(frozen=True)
class BatchJob:
    """What to ask, as names and numbers; it can be sent to another machine that sees the same files.

    Attributes:
        source: table, saved dataset or folder of pictures.
        out: folder of the parts.
        prompt: `{question}` stands for the question of the row.
        setting: what prunes.
        batch: rows a batch.
        part: rows a part: what a killed process loses at most.
        limit: the first so many rows only.
        schema: JSON schema that every answer follows.
    """

    model: str
    source: Path
    out: Path
    prompt: str
    setting: Setting
    batch: int = 8
    part: int = 256
    max_new_tokens: int = 64
    limit: int | None = None
    dtype: str | None = None
    device: str | None = None
    attention: str | None = None
    schema: str | None = None

    def manifest(self) -> Manifest:
        """The rows, read anew.

        Raises:
            DataError, MissingExtraError: see `Manifest.open`.
        """
        return Manifest.open(self.source, self.prompt, self.limit)

    def absolute(self) -> BatchJob:
        """The same job for a process with another working directory."""
        model = str(Path(self.model).resolve()) if Path(self.model).is_dir() else self.model
        return replace(self, model=model, source=self.source.resolve(), out=self.out.resolve())

    def load(self) -> Asker:
        """The model; a method that does not fit it is refused here, before any row.

        Raises:
            CheckpointError, UnsupportedModelError, DeviceError, ConfigurationError, MissingTapError.
        """
        asker = Asker.load(
            self.model, self.max_new_tokens, dtype=self.dtype, device=self.device, attn_implementation=self.attention
        )
        warn_if_tuned_elsewhere(self.setting.name, self.setting.evidence, asker.model)
        with engine.prune(asker.model, self.setting.make()):
            pass
        return asker

    def answering(self, asker: Asker) -> Answering:
        """What answers the rows.

        Raises:
            SchemaError, MissingExtraError: a schema that cannot be followed, or nothing to follow it with.
        """
        schema = None
        if self.schema is not None:
            schema = SchemaCompiler.of(asker.model, asker.processor.tokenizer).compile(read_schema(self.schema))
        return Answering(asker, self.setting.make(), self.batch, schema)

    def parts(self, manifest: Manifest, asker: Asker) -> BatchFolder:
        """The folder, with all that answers depend on."""
        model = asker.model
        spec: dict[str, Any] = {
            "model": self.model,
            "weights": fingerprint(model),
            "dtype": str(model.dtype).removeprefix("torch."),
            "attention": model.config._attn_implementation,
            "method": self.setting.describe(),
            "prompt": self.prompt,
            "max_new_tokens": self.max_new_tokens,
            "manifest": manifest.digest(),
            "rows": len(manifest),
            "batch": self.batch,
            "part": self.part,
        } | ({} if self.schema is None else {"schema": self.schema})
        return BatchFolder(self.out, spec, len(manifest), self.part)


@dataclass(frozen=True)
class BatchDone:
    """What a finished batch holds, and how many of its rows this call computed."""

    parts: BatchFolder
    computed: int
    errors: int


def run(
    job: BatchJob,
    retry_errors: bool = False,
    on_start: Callable[[int, int], None] = lambda total, done: None,
    on_rows: Callable[[int], None] = lambda n: None,
) -> BatchDone:
    """Answer what the folder does not hold yet, in this process.

    Args:
        retry_errors: parts in which a row has an error are computed again.
        on_start: told the number of rows, and how many of them are there already, once the model is loaded.
        on_rows: told how many more rows are done.

    Raises:
        DataError, BatchError: see `Manifest.open`, `BatchFolder.held` and `Answering.answer`.
        FoveateError: what `BatchJob.load` raises.
    """
    check_folder(job.out)
    manifest = job.manifest()
    asker = job.load()
    parts, answering = job.parts(manifest, asker), job.answering(asker)
    with parts.held():
        missing = parts.missing(retry_errors)
        computed = sum(len(parts.range(part)) for part in missing)
        on_start(len(manifest), len(manifest) - computed)
        for part in missing:
            parts.commit(part, answering.answer(manifest, parts.range(part), on_rows))
        return BatchDone(parts, computed, parts.errors())
