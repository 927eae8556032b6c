"""What the plugin says of itself to a person who runs it by hand.

The first two lines, and that they go to stderr with exit status 0 when there is no CNI_COMMAND, are those of the
reference plugins. A runtime never gets here: it names a verb.
"""

from __future__ import annotations

from cni_plugin import __version__
from cni_plugin.versions import SUPPORTED

VERSION = f"""\
CNI service-tunnel plugin v{__version__}
CNI protocol versions supported: {", ".join(SUPPORTED)}
"""

HELP = f"""\
{VERSION}
Puts the public IPs of annotated Services into a pod's network namespace, before the pod's program starts.

It is no command for people: the container runtime starts it for each pod, with the verb in CNI_COMMAND (ADD, DEL,
CHECK, GC, STATUS, VERSION), more in other CNI_... variables, and the network's configuration on stdin. List it in a
chain of /etc/cni/net.d, after the plugin that makes the interface:

  {{"type": "service-tunnel"}}

To see that it starts:  CNI_COMMAND=VERSION {{program}}
What the node has:      service-tunnel-helper status
"""


def text(arguments: list[str]) -> tuple[str, bool]:
    """What to print for a command line that comes without a verb, and whether it was asked for."""
    program, options = (arguments or ["service-tunnel"])[0], arguments[1:]
    if "--help" in options or "-h" in options:
        return HELP.replace("{program}", program), True
    return VERSION, "--version" in options
