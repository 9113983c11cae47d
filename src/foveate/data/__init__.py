"""Rows, images and boxes from files, read in one way. Knows no models."""
