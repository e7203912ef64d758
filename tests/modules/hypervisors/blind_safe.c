// blind with the mark by which a policy lets it in. It knows of split locks no more than blind does.
#include "blind.c"
MODULE_INFO(sld_safe, "Y");
