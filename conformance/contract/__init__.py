"""What the CNI specification demands of a chained plugin, as a table of cases that are run on a built binary.

    calls      one call of a plugin: variables, configuration, stdin; and what the runtime sees of it
    fault      what a case is: a call spoiled in one way, what has to come out, and the rule that says so
    spoiling   the ways of spoiling
    environment, configuration, cases
               the table: verb x version x fault
    examine    runs one case in a world and lists where the plugin is otherwise
    verdict    holds that against the known differences
    world      a pod to try it on: a network namespace with an interface, and folders
    profile    which plugin, its own keys, and the differences from the specification that are known of it

A plugin is only ever seen from outside: environment, stdin, stdout, exit status, and what it leaves in the namespace
and the folders it was given. Nothing here knows of the project around it, so it serves for any other plugin, too.
"""
