"""What was kept of an image or of a video, as a picture."""

from __future__ import annotations

from PIL import Image

from foveate.data.videos import Clip
from foveate.trace.contact import contact_sheet
from foveate.trace.overlay import overlay
from foveate.trace.records import PrefillTrace


def picture(shown: Image.Image | Clip, trace: PrefillTrace, row: int = 0, index: int = 0) -> Image.Image:
    """An image with its tokens tinted, or the frames of a video so.

    Raises:
        InputError: there is no such image or video in the trace.
    """
    if isinstance(shown, Clip):
        frames = [shown.image(number) for number in range(len(shown))]
        return contact_sheet(frames, trace, row, index, shown.seconds)
    return overlay(shown, trace, row, index)
