"""JPEG files whose pixels all come from the file.

libjpeg fills what is missing with gray and counts a warning, which Pillow does not pass on. So Pillow's decoder is fed
by hand here, scan after scan: it has to need the last bytes of each, and nothing behind them. Nothing is decoded twice.
"""

import re

from PIL import Image
from PIL import ImageFile as PilFile

from . import UnfitFileError

_SOF0, _SOF1, _SOF2, _DHT, _JPG, _DAC, _EOI, _SOS, _DRI = 0xC0, 0xC1, 0xC2, 0xC4, 0xC8, 0xCC, 0xD9, 0xDA, 0xDD
_FRAMES = set(range(0xC0, 0xD0)) - {_DHT, _JPG, _DAC}
_MARKER = re.compile(rb"\xff([^\x00\xff])")
_MARKER_BEHIND_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_RESTART = re.compile(rb"\xff([\xd0-\xd7])")
_SHORT = 1024  # bytes between two restart markers: so little is hardly lost without them
_HARMLESS = 8  # bytes behind the last pixel of a scan
# What the decoder may look ahead at: one bits, of which fewer than four blocks of pixels can be made, and two zeros.
_LOOK_AHEAD = b"\xff\x00" * 16 + b"\0\0"


def load_jpeg(image: PilFile.ImageFile, content: bytes) -> None:
    """Decode an opened JPEG file from its bytes, as ``image.load()`` does. Raises UnfitFileError."""
    scans = _scans(content)
    if scans is None:
        image.load()
        return
    decoder = _Decoder(image, content, only_scan=len(scans) == 1)
    for start, end in scans:
        if len(scans) > 1:
            decoder.feed(start)  # so that it is between scans nowhere else than behind their last pixels
        zeros = start + len(content[start:end].rstrip(b"\0"))  # some cameras fill up with them
        too_early = decoder.is_through(zeros - _HARMLESS)
        if not too_early and end - zeros > 2 * _HARMLESS and decoder.is_through(zeros + _HARMLESS):
            decoder.position = end
            continue
        if too_early or decoder.is_through(end - _HARMLESS):
            raise _damaged("with more data than its pixels need")
        if not decoder.is_through(end, _LOOK_AHEAD):
            raise _damaged("with less data than its pixels need")
    decoder.feed(decoder.position, b"\xff\xd9")
    if not decoder.finished:
        raise _damaged("without its end")
    image.tile = []
    image.load()


def _damaged(what: str) -> UnfitFileError:
    return UnfitFileError(f"expected a complete image, found a JPEG file {what}")


class _Decoder:
    """Pillow's own decoder."""

    def __init__(self, image: PilFile.ImageFile, content: bytes, only_scan: bool) -> None:
        _, extents, _, arguments = image.tile[0]
        image.load_prepare()
        self._decoder = Image._getdecoder(image.mode, "jpeg", arguments, image.decoderconfig)
        self._decoder.setimage(image.im, extents)
        self._content, self._only_scan = content, only_scan
        self._unused = b""
        self.position = 0
        """Up to where the decoder was given the content."""
        self.finished = False
        """Whether the last row is out."""

    def feed(self, until: int, more: bytes = b"") -> None:
        """Give the decoder the content up to a position, and more bytes behind that."""
        if not self.finished:
            data = self._unused + self._content[self.position : until] + more
            used, error = self._decoder.decode(data)
            if error < 0:
                raise _damaged("that libjpeg refuses")
            self.finished = used < 0
            self._unused = data[max(used, 0) :]
        self.position = until

    def is_through(self, until: int, more: bytes = b"") -> bool:
        """Feed, and tell whether the decoder has the last pixel of the scan.

        After the only scan it has finished. Between scans it looks for the next marker, and passes over other bytes one
        by one. Within a scan it waits until it has several, so that of two that come one by one at least one is left.
        """
        if until + len(more) < self.position + 2:
            return False
        if self._only_scan:
            self.feed(until, more)
            return self.finished
        if more:
            self.feed(until, more[:-2])
            last = (until, more[-2:-1]), (until, more[-1:])
        else:
            self.feed(until - 2)
            last = (until - 1, b""), (until, b"")
        passed_over = []
        for place, byte in last:
            self.feed(place, byte)
            passed_over.append(not self._unused)
        return self.finished or all(passed_over)


def _scans(content: bytes) -> list[tuple[int, int]] | None:
    """Return begin and end of the data of each scan of the file's first image; None if they are no Huffman codes.

    A scan with restart markers is several, one from each marker to the next, unless these are short.
    Raises UnfitFileError if a part of the image is in no scan.
    """
    at, interval, frame = 2, 0, None
    scans: list[tuple[int, int]] = []
    while found := _MARKER.search(content, at):
        kind, at = found[1][0], found.end()
        if kind == _EOI and frame is not None:
            frame.check_complete()
            return scans
        length = int.from_bytes(content[at : at + 2], "big")
        segment, at = content[at + 2 : at + length], at + length
        if kind in _FRAMES and frame is None:
            if kind not in (_SOF0, _SOF1, _SOF2):
                return None
            frame = _Frame(segment, progressive=kind == _SOF2)
        elif kind == _DRI:
            interval = int.from_bytes(segment[:2], "big")
        elif kind == _SOS and frame is not None:
            behind = _MARKER_BEHIND_SCAN.search(content, at)
            end = behind.start() if behind else len(content)
            frame.add_scan(segment)
            restarts = list(_RESTART.finditer(content, at, end)) if interval else []
            if interval:
                _check_restarts(restarts, -(-frame.units(segment) // interval) - 1)
            if len(restarts) * _SHORT > end - at:
                restarts = []
            scans += zip([at, *(r.end() for r in restarts)], [*(r.start() for r in restarts), end], strict=True)
            at = end
    raise _damaged("without its end")


def _check_restarts(markers: list[re.Match[bytes]], count: int) -> None:
    numbers = [marker[1][0] & 7 for marker in markers]
    if numbers[:count] != [i & 7 for i in range(count)]:
        raise _damaged(f"with {len(numbers)} of {count} restart markers, or some out of order")


class _Frame:
    """What of an image its scans have given so far."""

    def __init__(self, segment: bytes, progressive: bool) -> None:
        self._height, self._width = (int.from_bytes(segment[i : i + 2], "big") for i in (1, 3))
        self._sampling = {segment[i]: (segment[i + 1] >> 4, segment[i + 1] & 15) for i in range(6, len(segment) - 2, 3)}
        self._progressive = progressive
        # How many low bits of each of the 64 coefficients no scan has given so far, at most 13, or 99 for all of them.
        self._missing_bits = {component: [99] * 64 for component in self._sampling}

    def add_scan(self, header: bytes) -> None:
        components, (first, last, precision) = header[1:-3:2], header[-3:]
        if not self._progressive:
            first, last, precision = 0, 63, 0
        for component in components:
            self._missing_bits[component][first : last + 1] = [precision & 15] * (last + 1 - first)

    def check_complete(self) -> None:
        if any(map(any, self._missing_bits.values())):
            raise _damaged("some of whose scans are missing")

    def units(self, header: bytes) -> int:
        """Return the number of coded units of a scan: blocks of one component, or groups of blocks of several."""
        widest, tallest = map(max, zip(*self._sampling.values(), strict=True))
        horizontal, vertical = self._sampling[header[1]] if header[0] == 1 else (widest, tallest)
        width, height = -(-self._width * horizontal // widest), -(-self._height * vertical // tallest)
        across, down = (8, 8) if header[0] == 1 else (8 * widest, 8 * tallest)
        return -(-width // across) * -(-height // down)
