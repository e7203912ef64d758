// Loads a descriptor table.
#define WAY_BYTES "\x0f\x01\x18"
#include "way.h"
WAY_CODE(".text", "	lidt (%rax)\n");
WAY_START;
