"""Afterimage: does a diffusion model still hold its training images, and which published remedy helps?"""

__version__ = "0.1.0"
