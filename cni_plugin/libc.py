"""Functions of the C library that Python's `posix` module lacks: `setns` before Python 3.12, `renameat2` always.

`ctypes` costs more at start than all that the plugin does; the C module beneath it does not.
"""

from __future__ import annotations

import _ctypes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any


class _Int(_ctypes._SimpleCData):  # type: ignore[type-arg]
    _type_ = "i"


class _Function(_ctypes.CFuncPtr):
    # Without this flag errno would be whatever Python has done since the call.
    _flags_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO
    _restype_ = _Int


def function(name: str) -> Any:
    """One that takes integers and bytes and returns an int; `_ctypes.get_errno` has its errno."""
    return _Function(_ctypes.dlsym(_ctypes.dlopen("libc.so.6", 0), name))
