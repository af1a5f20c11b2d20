"""supervision's ``Detections``, the result type of detection, and supervision imported without its OpenCV warning."""

import warnings

with warnings.catch_warnings():
    # supervision warns at import that OpenCV is missing. Chromabox draws without OpenCV.
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision

__all__ = ["Detections", "supervision"]

Detections = supervision.Detections
