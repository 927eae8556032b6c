"""What a pod needs while buckets have moved lately: to hand on packets of connections that others have.

A bucket that moves from one pod to another has open connections. Their packets now come to the new owner, in a tunnel
whose id names the earlier owners; the new owner sends on, by a tunnel of its own, what does not belong to a connection
that began with him. In his namespace that takes tables of rules (`rules`), a routing table of encapsulating routes, of
which each has an address that nobody else uses as its name, and a rule that leads copies there. Nothing of it is met
by any other packet of the pod, and all of it goes when no move is recent.

`plan` says what is to change, `kernel` reads and changes. Loaded only where it is needed: hardly ever at a pod's start.
"""
