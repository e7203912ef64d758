"""Split locks as an executable model: processor, kernel, module loader, hypervisor, guest; rules name their source."""
