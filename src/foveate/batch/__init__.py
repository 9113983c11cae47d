"""A prompt asked of many images: parts that are computed once each, whatever stops the process in between."""
