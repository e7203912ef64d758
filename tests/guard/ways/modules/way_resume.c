// VMRESUME and VMXON, no VMLAUNCH.
#define WAY_BYTES "\x0f\x01\xc3"
#include "way.h"
WAY_CODE(".text", "	vmresume\n	vmxon (%rax)\n");
WAY_START;
