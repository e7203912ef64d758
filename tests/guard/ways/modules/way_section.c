// An executable section of a made-up name.
#include "way.h"
WAY_CODE(".way, \"ax\"", "	vmlaunch\n");
WAY_START;
