// Writes an MSR itself.
#define WAY_BYTES "\x0f\x30"
#include "way.h"
WAY_CODE(".text", "	wrmsr\n");
WAY_START;
