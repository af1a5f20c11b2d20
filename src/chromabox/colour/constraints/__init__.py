"""Constraints on colours: allowed, banned and replaced colours, palettes and hints."""
