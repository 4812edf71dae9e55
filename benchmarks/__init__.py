"""Measurements of speed and memory; README.md says what each script answers. No part of the package imports them."""
