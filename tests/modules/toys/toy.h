// What all toys share. They are only ever built and looked at, never loaded.
#include <linux/init.h>
#include <linux/module.h>

#define TOY(start)							\
	module_init(start);						\
	MODULE_DESCRIPTION("toy");					\
	MODULE_LICENSE("GPL")
