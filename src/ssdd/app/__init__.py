"""A page in the browser that answers: how do several autoencoders reconstruct this picture?"""

MOST_STEPS, MOST_SEED = 16, 99
"""The ends of the page's sliders."""

DEFAULT_PIXELS = 1 << 20
"""What larger pictures are reduced to."""
