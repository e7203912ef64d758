"""The hypervisor probe: a bootable image of our own that finds out how the hypervisor under it treats split locks."""
