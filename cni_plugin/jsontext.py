"""JSON text to Python values and back, by CPython's C accelerator alone.

`import json` costs the plugin more than parsing does: it brings `re`, `enum` and `functools` along. The
scanner and the encoder behind it are one C module, `_json`, whose two constructors are called here as
`json` itself calls them; the tests hold the result against `json`. Stricter in one point: what has no
JSON form (NaN, Infinity, a number too big for a float) is refused in both directions instead of written
as something that a Go program cannot read.
"""

from __future__ import annotations

from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

WHITESPACE = " \t\n\r"


class JsonError(ValueError):
    """Not JSON, or not a value that JSON can hold."""


def _finite(text: str) -> float:
    value = float(text)
    if value - value != 0.0:
        raise JsonError(f"number out of range: {text[:40]}")
    return value


def _no_constant(text: str) -> object:
    raise JsonError(f"{text} is no JSON")


def _no_default(value: object) -> object:
    raise JsonError(f"{type(value).__name__} has no JSON form")


class _ScannerSettings:
    """What the C scanner asks of a `json.JSONDecoder`."""

    strict = True
    object_hook = None
    object_pairs_hook = None
    parse_float = staticmethod(_finite)
    parse_int = int
    parse_constant = staticmethod(_no_constant)


_scan = make_scanner(_ScannerSettings)  # type: ignore[arg-type]
# markers (None: no search for cycles, the recursion limit ends them), default, string encoder, indent,
# key separator, item separator, sort_keys, skipkeys, allow_nan.
_encode = make_encoder(None, _no_default, encode_basestring_ascii, None, ":", ",", False, False, False)


def loads(text: bytes | str) -> Any:
    """The value of a JSON document in UTF-8; raises JsonError, which says where it ends to be JSON."""
    try:
        if isinstance(text, bytes):
            text = text.decode()
        start = len(text) - len(text.lstrip(WHITESPACE))
        value, end = _scan(text, start)
    except StopIteration as stop:
        raise JsonError(f"value expected at character {stop.value}" if text else "no text at all") from None
    except RecursionError:
        raise JsonError("nested too deeply") from None
    except JsonError:
        raise
    except ValueError as error:
        # json.JSONDecodeError (where somebody has imported json), UnicodeDecodeError, or an integer of more
        # digits than Python converts.
        raise JsonError(str(error)) from None
    except (SystemError, ImportError):
        # The scanner wanted to raise json.JSONDecodeError, but json is not there to take it from: this is
        # how it reports every syntax error in the plugin.
        raise JsonError("syntax error") from None
    rest = text[end:].strip(WHITESPACE)
    if rest:
        raise JsonError(f"the document goes on after its end: {rest[:20]!r}")
    return value


def dumps(value: object) -> str:
    """The value as JSON in one line of ASCII; raises JsonError for what JSON cannot hold."""
    try:
        if isinstance(value, str):
            return encode_basestring_ascii(value)
        return "".join(_encode(value, 0))
    except RecursionError:
        raise JsonError("nested too deeply, or within itself") from None
    except JsonError:
        raise
    except (ValueError, TypeError) as error:
        raise JsonError(str(error)) from None
