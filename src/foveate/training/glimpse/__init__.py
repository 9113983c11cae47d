"""Training of the glimpse module on a frozen stock model (extra: `foveate[train]`)."""

from importlib.util import find_spec

from foveate.errors import MissingExtraError

if _missing := [name for name in ("accelerate", "datasets", "rich") if find_spec(name) is None]:
    raise MissingExtraError(f"training needs {', '.join(_missing)}: pip install 'foveate[train]'")
