"""supervision's ``Detections``, what this wing gives as its result, and supervision itself without its remark."""

import warnings

with warnings.catch_warnings():
    # It says at every import that it draws without OpenCV, which is as it should be.
    warnings.filterwarnings("ignore", "OpenCV", UserWarning)
    import supervision

__all__ = ["Detections", "supervision"]

Detections = supervision.Detections
