"""The exceptions that users meet. Each message says what is wrong, where, and the remedy."""

from __future__ import annotations


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose.

    Remedy: read the message; catch this class to catch all of them.
    """


class BudgetError(FoveateError, ValueError):
    """A keep ratio, count or threshold that makes no sense.

    Remedy: write a ratio with a point (`0.11`, `1/9`), a number of tokens without one (`64`), or one kind in
    `Keep(...)`.
    """


class ConfigurationError(FoveateError, ValueError):
    """A method was given parameters that contradict each other or the model.

    Remedy: `foveate methods NAME` lists a method's parameters and what they may be.
    """


class UnsupportedModelError(FoveateError, TypeError):
    """The model's family is unknown, or the model lacks a part that its family should have.

    Remedy: `foveate doctor --model M` says what was found of a model and what not; a part that lies elsewhere is
    named by an adapter (docs/adding_family.md). Of a compiled model give the one that was compiled.
    """


class MissingTapError(FoveateError, TypeError):
    """A method needs something of the vision tower that this family cannot give.

    Remedy: choose a method that reads something else (column *reads* of docs/methods.md); `foveate doctor --model M`
    lists those that cannot run.
    """


class UnsupportedCacheError(FoveateError, TypeError):
    """The KV cache cannot be compacted (static, quantised, offloaded or compiled).

    Remedy: pass no `cache_implementation` and no `past_key_values`, so that `generate` makes a dynamic cache, or use
    `method=None`.
    """


class CacheStateError(FoveateError, RuntimeError):
    """A pruned KV cache was used where its shortened layers would be misread.

    Remedy: continue a pruned cache inside `with foveate.prune(model, method):`; `None` as method prunes nothing new.
    """


class InputError(FoveateError, ValueError):
    """The model's inputs cannot be pruned as they are (padding side, placeholders, masks).

    Remedy: pad on the left (`processor.tokenizer.padding_side = "left"`), and pass what the processor returned as it
    is.
    """


class SessionError(FoveateError, RuntimeError):
    """It is unclear which pruning applies: several are active and none belongs to this thread.

    Remedy: open `with foveate.prune(...)` in the thread that calls the model, or start it by
    `contextvars.copy_context().run`; `foveate.detach` before attaching again.
    """


class ImageError(FoveateError, ValueError):
    """An image that cannot be used: missing, unreadable, of a kind that is not read, or far too large.

    Remedy: give a complete PNG, JPEG, WebP, GIF, TIFF or BMP of at most 64 megapixels; resize larger ones first.
    """


class DataError(FoveateError, ValueError):
    """Rows that cannot be used; the message names file and row.

    Remedy: mend the rows that are named, or leave them out with `--skip-bad`; docs/data.md says what a row holds.
    """


class CheckpointError(FoveateError, ValueError):
    """A checkpoint that cannot be read.

    Remedy: give a folder with `config.json` and safetensors weights, a Hub id, or a model of `foveate.zoo.names()`;
    without a network it must be in the cache.
    """


class DeviceError(FoveateError, ValueError):
    """A device that is not there, or too small for what was put on it.

    Remedy: `device="cpu"`, `device="auto"` for several devices, `dtype="bfloat16"`, or a smaller model.
    """


class ClusterError(FoveateError, RuntimeError):
    """A Ray cluster that does not answer or lacks room, or something that failed on it.

    Remedy: look at the cluster (`ray status`), ask for fewer `--actors`, `--cpus` or `--gpus`, and give the command
    again.
    """


class SchemaError(FoveateError, ValueError):
    """A JSON schema that cannot be read, or that answers cannot be made to follow.

    Remedy: mend or simplify the schema where the message says; `pip install 'foveate[json]'` brings what follows it.
    """


class OutputError(FoveateError, OSError):
    """A file or folder that cannot be written.

    Remedy: choose another place; it is checked before a long run begins.
    """


class MissingExtraError(FoveateError, ImportError):
    """An optional dependency is not installed.

    Remedy: `pip install 'foveate[EXTRA]'` with the extra that the message names.
    """


class TunedElsewhereWarning(UserWarning):
    """A foveate.json is used on a model that it was not measured on.

    Remedy: measure again on this model with `foveate tune`, or accept the setting knowingly.
    """


class VideoError(FoveateError, ValueError):
    """A video that cannot be opened or decoded.

    Remedy: give a complete file with one video stream, of at most a day; `pip install 'foveate[video]'` brings the
    decoder.
    """
