"""What the frozen plugin runs first: it finds the plugin's modules among its own constants and runs `__main__`.

PyInstaller has a bootstrap in Python that finds modules in an archive; it brings `os`, `struct`, `zlib` and a set of
patches for programs that the plugin is not, and costs as much as Python's own start (docs/benchmarks.md). Here the
modules' code lies in this script's constants, which PyInstaller's boot loader has read already: no file is opened
for an import, `__future__` included: hence the quoted types.
"""

import gc
import marshal
import sys
from _frozen_importlib import ModuleSpec

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import ModuleType

MODULES: dict[str, tuple[bool, bytes]] = {}
"""(is a package, marshalled code) by name; service-tunnel.spec fills in this line."""


class Bundle:
    """Finder and loader of these modules, without an instance, as for the modules that are built into Python."""

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> "ModuleSpec | None":
        if name not in MODULES:
            return None
        return ModuleSpec(name, Bundle, is_package=MODULES[name][0])  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> None:
        """None: the default will do."""

    @staticmethod
    def exec_module(module: "ModuleType") -> None:
        exec(marshal.loads(MODULES[module.__name__][1]), module.__dict__)


gc.disable()  # the program lives for milliseconds: what it drops is not worth looking for
sys.meta_path.insert(0, Bundle)
exec(marshal.loads(MODULES["cni_plugin.__main__"][1]), {"__name__": "__main__"})
