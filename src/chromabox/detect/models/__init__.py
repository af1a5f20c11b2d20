"""Detector architectures, the network, and decoding of its outputs."""
