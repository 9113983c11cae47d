"""Machines together: a Ray cluster, found or started."""
