"""The main job shown on this machine: `make demo`, or `python -m tests.demo`.

__main__   flags, what has to be there first, Ctrl-C, exit status
story      the acts: what is done, what is expected of it
flows      flows and connections of the client: where they go, what became of them
telling    progress lines, findings, the table at the end
picture    the topology as text
keeping    what `--keep` leaves and `--down` takes away
ask        one question to a VIP, for exploring by hand
"""
