"""Files and network: images, video, downloads, weight files."""
