"""What a cluster would refuse in a manifest, found without one."""
