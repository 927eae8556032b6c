"""The documents of a YAML or JSON file, with the plain values that an API server would see.

YAML 1.1 makes more of unquoted text than Kubernetes does: times become objects, and 1:2:3:4:5:6:7:8 (an
IPv6 address) a number to the base of 60. The loader here leaves both as text.
"""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

import yaml

from node_helper.sources.kubernetes_objects import FieldPath

if TYPE_CHECKING:
    from yaml import SafeLoader as _BaseLoader
else:
    # libyaml's parser is some ten times faster; wheels of PyYAML carry it, some distributions' builds do not.
    _BaseLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

_REPLACED = frozenset(f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp", "value"))
_INT = re.compile(r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0|[1-9][0-9_]*|0o?[0-7]+)\Z", re.ASCII)
_FLOAT = re.compile(
    r"(?:[-+]?[0-9]+\.[0-9]*(?:[eE][-+]?[0-9]+)?|[-+]?\.[0-9]+(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z",
    re.ASCII,
)


class DocumentError(Exception):
    """Text that is no YAML or JSON."""

    def __init__(self, fault: str, line: int | None) -> None:
        super().__init__(fault)
        self.line = line
        """Counted from 1; None where it is not known."""


class _Loader(_BaseLoader):
    yaml_implicit_resolvers = {  # noqa: RUF012 - PyYAML's own way of configuring a loader
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in _REPLACED]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


_Loader.add_implicit_resolver("tag:yaml.org,2002:int", _INT, list("-+0123456789"))
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def documents(content: bytes, is_json: bool = False) -> list[object]:
    """The documents of a file, each of plain values (dict, list, str, int, float, bool, None, bytes).

    Raises DocumentError, with the line.
    """
    text = _decoded(content)
    try:
        return [json.loads(text)] if is_json else list(yaml.load_all(text, _Loader))
    except json.JSONDecodeError as error:
        raise DocumentError(f"it is no JSON: {error.msg}", error.lineno) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        what = " ".join(filter(None, [error.context, error.problem]))
        raise DocumentError(f"it is no YAML: {what}", mark.line + 1 if mark else None) from None
    except yaml.reader.ReaderError as error:
        raise DocumentError(f"it is no YAML: {error.reason}", text.count("\n", 0, error.position) + 1) from None
    except (
        yaml.YAMLError,
        ArithmeticError,
        AttributeError,
        LookupError,
        RecursionError,
        TypeError,
        ValueError,
    ) as error:
        # PyYAML's constructors raise all of these on explicit tags that do not fit, such as `!!bool maybe`.
        raise DocumentError(f"it cannot be read: {error!r}", None) from None


class Lines:
    """Finds the lines of fields, for messages. The first question parses the file again, and only that one."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._roots: list[yaml.Node] | None = None

    def of(self, document: int, path: FieldPath) -> int | None:
        """The line, from 1, of a field in a document (from 0), or of the closest thing around it that is there.

        None where the text is JSON that YAML cannot read.
        """
        if self._roots is None:
            try:
                self._roots = list(yaml.compose_all(_decoded(self._content), _Loader))
            except (yaml.YAMLError, DocumentError, RecursionError):
                self._roots = []
        if document >= len(self._roots):
            return None
        node = self._roots[document]
        for part in path:
            inner = _inside(node, part)
            if inner is None:
                break
            node = inner
        return int(node.start_mark.line) + 1


def _inside(node: yaml.Node, part: str | int) -> yaml.Node | None:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == part), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
        inner: yaml.Node = node.value[part]
        return inner
    return None


def _decoded(content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DocumentError("it is not UTF-8 text", content.count(b"\n", 0, error.start) + 1) from None
