"""What the model is held against: VirtualBox's real files, and the probe's rows in real emulators."""

from guest.probe.conftest import bochs, tcg
from modules.conftest import headers, vboxdrv, virtualbox

__all__ = ["bochs", "headers", "tcg", "vboxdrv", "virtualbox"]
