"""Videos: reading and transcoding with PyAV."""

from chromabox.io.video.decode import iter_frames
from chromabox.io.video.source import VIDEO_SUFFIXES, WRITABLE_VIDEO_SUFFIXES, VideoInfo, is_video, probe_video
from chromabox.io.video.target import DEFAULT_CRF, TranscodeResult, check_target, encoder_version, video_target
from chromabox.io.video.transcoding import SEGMENT_FRAMES, Resumption, transcode

__all__ = [
    "DEFAULT_CRF",
    "SEGMENT_FRAMES",
    "VIDEO_SUFFIXES",
    "WRITABLE_VIDEO_SUFFIXES",
    "Resumption",
    "TranscodeResult",
    "VideoInfo",
    "check_target",
    "encoder_version",
    "is_video",
    "iter_frames",
    "probe_video",
    "transcode",
    "video_target",
]
