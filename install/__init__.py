"""Everything that brings the project onto a machine: its set-up, the frozen plugin, the installer of a node."""
