"""verifier.py OBJECT: load its judge_test; print how many instructions the verifier looked at."""

import ctypes
import re
import sys

lib = ctypes.CDLL("libbpf.so.1")
for name in ("bpf_object__open_file", "bpf_object__next_program"):
    getattr(lib, name).restype = ctypes.c_void_p
lib.bpf_program__name.restype = ctypes.c_char_p
made = ctypes.c_void_p(lib.bpf_object__open_file(sys.argv[1].encode(), None))
log = ctypes.create_string_buffer(1 << 20)
program = None
while program := lib.bpf_object__next_program(made, ctypes.c_void_p(program)):
    if lib.bpf_program__name(ctypes.c_void_p(program)) == b"judge_test":
        lib.bpf_program__set_log_buf(ctypes.c_void_p(program), log, ctypes.c_size_t(len(log)))
        lib.bpf_program__set_log_level(ctypes.c_void_p(program), 4)
    else:
        lib.bpf_program__set_autoload(ctypes.c_void_p(program), False)
if lib.bpf_object__load(made):
    sys.exit(log.value.decode())
found = re.search(r"processed (\d+) insns", log.value.decode())
print(found[1] if found else 0)
