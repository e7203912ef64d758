// Writes CR4 itself.
#define WAY_BYTES "\x0f\x22\xe0"
#include "way.h"
WAY_CODE(".text", "	mov %rax, %cr4\n");
WAY_START;
