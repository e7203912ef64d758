// VMXON alone, behind two segment prefixes.
#define WAY_BYTES "\x3e\x2e\xf3\x0f\xc7\x30"
#include "way.h"
WAY_CODE(".text", "	.byte 0x3e, 0x2e\n	vmxon (%rax)\n");
WAY_START;
