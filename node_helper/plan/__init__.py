"""What the kernel is to hold, computed from a snapshot without effects.

`ingress` turns Services, bucket tables and facts about this host into the wanted router and host;
`changes` compares wanted with present and yields messages; `rule_tree` lays out the fwmark rules;
`attachments` says which tunnels each pod of this node is to have.
"""
