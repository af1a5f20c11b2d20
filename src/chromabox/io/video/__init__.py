"""Videos: reading and transcoding with PyAV."""

from chromabox.io.video.source import VideoInfo, iter_frames, probe_video
from chromabox.io.video.target import DEFAULT_CRF, TranscodeResult, check_target, encoder_version
from chromabox.io.video.transcoding import SEGMENT_FRAMES, Resumption, transcode

__all__ = [
    "DEFAULT_CRF",
    "SEGMENT_FRAMES",
    "Resumption",
    "TranscodeResult",
    "VideoInfo",
    "check_target",
    "encoder_version",
    "iter_frames",
    "probe_video",
    "transcode",
]
