"""The exceptions that users meet. Each message says what is wrong, where, and the remedy."""

from __future__ import annotations


class FoveateError(Exception):
    """Base of every error that foveate raises on purpose."""


class BudgetError(FoveateError, ValueError):
    """A keep ratio, count or threshold that makes no sense."""


class ConfigurationError(FoveateError, ValueError):
    """A method was given parameters that contradict each other or the model."""


class UnsupportedModelError(FoveateError, TypeError):
    """The model's family is unknown, or the model lacks a part that its family should have."""


class MissingTapError(FoveateError, TypeError):
    """A method needs something of the vision tower that this family cannot give."""


class UnsupportedCacheError(FoveateError, TypeError):
    """The KV cache cannot be compacted (static, quantised, offloaded or compiled)."""


class CacheStateError(FoveateError, RuntimeError):
    """A pruned KV cache was used where its shortened layers would be misread."""


class InputError(FoveateError, ValueError):
    """The model's inputs cannot be pruned as they are (padding side, placeholders, masks)."""


class SessionError(FoveateError, RuntimeError):
    """It is unclear which pruning applies: several are active and none belongs to this thread."""


class ImageError(FoveateError, ValueError):
    """An image that cannot be used: missing, unreadable, of a kind that is not read, or far too large."""


class DataError(FoveateError, ValueError):
    """Rows that cannot be used; the message names file and row."""


class CheckpointError(FoveateError, ValueError):
    """A checkpoint that cannot be read."""


class DeviceError(FoveateError, ValueError):
    """A device that is not there, or too small for what was put on it."""


class ClusterError(FoveateError, RuntimeError):
    """A Ray cluster that does not answer or lacks room, or something that failed on it."""


class OutputError(FoveateError, OSError):
    """A file or folder that cannot be written."""


class MissingExtraError(FoveateError, ImportError):
    """An optional dependency is not installed."""


class TunedElsewhereWarning(UserWarning):
    """A foveate.json is used on a model that it was not measured on."""


class VideoError(FoveateError, ValueError):
    """A video that cannot be opened or decoded."""
