"""What is to be undone some day, noted in a file of the run folder: lasts as long as the changes, until the next boot.

A disk that is full keeps a node from nothing: the change is made, the note is kept in memory, and written once there
is room. What would be lost with it, should the helper be killed before, is worth less than traffic.
"""

from __future__ import annotations

import json
from pathlib import Path


class NoteFile:
    """JSON that is replaced as a whole; there is no file while there is nothing to note."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._unwritten: object = None
        self.trouble = ""
        """Why the last note is not written yet; empty where it is."""

    def read(self) -> object:
        """What was noted last, by whomever; None where there is nothing that could be used."""
        try:
            return json.loads(self._path.read_text())
        except (OSError, ValueError):
            return None

    def write(self, note: object) -> None:
        """Notes this in the place of what was noted; what is empty takes the file away, which needs no room."""
        self._unwritten = note
        temporary = self._path.with_name(f".{self._path.name}")
        try:
            if note:
                temporary.write_text(json.dumps(note))
                temporary.replace(self._path)
            else:
                temporary.unlink(missing_ok=True)
                self._path.unlink(missing_ok=True)
        except OSError as error:
            self.trouble = f"{self._path} cannot be written: {error.strerror}"
        else:
            self.trouble = ""

    def try_again(self) -> None:
        """Writes what could not be written the last time."""
        if self.trouble:
            self.write(self._unwritten)
