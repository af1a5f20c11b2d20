"""The second wing: a picture in, boxes out."""
