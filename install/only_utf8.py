"""The module `encodings` of the frozen plugin: UTF-8 and nothing else.

Python imports `encodings`, two codecs and `io` while it starts, to know the names of files and to make
sys.stdin, sys.stdout and sys.stderr. With all that they bring along, classes for streams and the names of three
hundred encodings, that is a fifth of the start (docs/benchmarks.md), and the plugin needs none of it: it reads and
writes bytes. So this one file says what Python asks for, in terms of the C modules beneath.

Written after `encodings/__init__.py`, `encodings/utf_8.py` and `io.py` of Python 3.9, for that version only; it is
compiled by service-tunnel.spec and imported by nobody else.
"""

import sys

import _codecs
import _io


class Stream:
    """What makes bytes of text for sys.stdout and sys.stderr, and would make text of the bytes of sys.stdin.

    UTF-8 has no state between two texts that it writes; nothing reads sys.stdin, which would be in need of one.
    """

    def __init__(self, errors: str = "strict") -> None:
        self.errors = errors

    def encode(self, text: str, final: bool = False) -> bytes:
        return text.encode("utf-8", self.errors)

    def decode(self, body: bytes, final: bool = False) -> str:
        return bytes(body).decode("utf-8", self.errors)

    def reset(self) -> None:
        pass

    def getstate(self) -> int:
        return 0

    def setstate(self, state: object) -> None:
        pass


class UTF8(tuple):  # type: ignore[type-arg]
    """What codecs.CodecInfo is: (encode, decode, stream reader, stream writer), and names by which Python asks."""

    name = "utf-8"
    _is_text_encoding = True
    incrementalencoder = incrementaldecoder = Stream


INFO = UTF8((_codecs.utf_8_encode, _codecs.utf_8_decode, None, None))


def search(name: str) -> "UTF8 | None":
    """As a codec search function: the codec by its normalised name, None where there is no such."""
    return INFO if name in ("utf_8", "utf8", "utf-8") else None


_codecs.register(search)  # type: ignore[arg-type]
# Python imports these next, by name; it wants nothing of the first two, and of `io` what is C.
sys.modules["encodings.utf_8"] = sys.modules["encodings.latin_1"] = sys.modules[__name__]
sys.modules["io"] = _io
_io.OpenWrapper = _io.open  # type: ignore[attr-defined]  # what becomes the built-in `open`
