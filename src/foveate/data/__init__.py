"""Rows, answers, boxes and images, read in one way (see docs/data.md). Knows no models."""
