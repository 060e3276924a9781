"""Files of single formats for which Pillow alone would return other pixels than theirs, or none."""


class UnfitFileError(ValueError):
    """A file that cannot be read right. The message says what was expected and what was found."""
