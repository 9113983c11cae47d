"""The tiny model, table and settings that training tests share."""

from .plus import module, run  # noqa: F401 - fixtures
from .runs import base, data, settings  # noqa: F401 - fixtures
