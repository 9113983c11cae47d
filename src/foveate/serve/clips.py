"""Videos of requests: as few frames of as small a file as the operator allows, decoded within a time."""

from __future__ import annotations

from collections.abc import Sequence

from foveate.data.decoding import DecodingLimits
from foveate.data.videos import Clip, FrameSampling, open_video
from foveate.errors import ConfigurationError, MissingExtraError, VideoError
from foveate.inference.chats import Samplers
from foveate.serve.options import MediaOptions
from foveate.serve.pictures import MediaReader


class ClipReader(MediaReader):
    """Reads the videos of requests.

    Args:
        options: where from, how large, how many frames.
        samplers: which frames the model takes; None: it takes no videos.
    """

    def __init__(self, options: MediaOptions, samplers: Samplers | None) -> None:
        super().__init__(options, "video", "data:video/mp4;base64,...")
        self._samplers = samplers
        self._limits = DecodingLimits(options.most_pixels, options.seconds)

    def open(self, source: str | bytes, wish: FrameSampling | None = None) -> Clip:
        """Frames of a video. Blocks: call it in a worker thread.

        Args:
            source: as `read` takes.
            wish: frames or frames per second that the request asks for.

        Raises:
            RequestError: not allowed, too large, too slow to decode, more frames than allowed, or no video.
        """
        if self._samplers is None:
            raise self._refused("this model takes no videos")
        samplers, most = self._samplers, self.options.frames

        def sample(total: int, fps: float) -> Sequence[int]:
            found = samplers(wish)(total, fps)
            if len(found) <= most:
                return found
            if wish is not None:
                raise ConfigurationError(f"{len(found)} frames were asked for, this server takes at most {most}")
            return samplers(FrameSampling(most))(total, fps)

        try:
            return open_video(self.read(source), sample, limits=self._limits)
        except MissingExtraError as error:
            raise self._refused("this server takes no videos") from error
        except (ConfigurationError, VideoError) as error:
            raise self._refused(str(error)) from error
