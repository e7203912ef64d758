"""Whole machines: a guest in QEMU (TCG) with our plugin, and what its memory and its disks say about who split."""
