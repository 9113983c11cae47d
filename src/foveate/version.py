"""The version, in the one place that the wheel, reports and `foveate.__version__` read."""

__version__ = "0.2.0"
