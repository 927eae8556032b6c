"""`python -m install.kubernetes`: see the package."""

from install.kubernetes import HERE, WRITTEN

for name, text in WRITTEN.items():
    (HERE / name).write_text(text())
