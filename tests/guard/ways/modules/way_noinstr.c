// Where Linux has its own.
#include "way.h"
WAY_CODE(".noinstr.text, \"ax\"", "	vmlaunch\n");
WAY_START;
