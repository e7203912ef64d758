"""Detection on a QEMU that exports no functions: by its gdb stub, in passes."""
