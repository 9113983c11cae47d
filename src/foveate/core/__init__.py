"""The engine: three seams, one cache, no knowledge of any method or model family."""
