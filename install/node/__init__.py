"""The installer of a node: `service-tunnel-install` puts the plugin and its chain entry there, and takes them off."""
