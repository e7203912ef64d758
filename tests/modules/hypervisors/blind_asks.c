// blind that imports the kernel's handle_guest_split_lock(), as KVM does: with way=handle it is what it seems.
#define BLIND_IMPORTS
#include "blind.c"
