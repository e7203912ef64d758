// What the modules of tests/guard share. They hold instructions that the policy refuses and never execute them, so a
// kernel without the gate loads them: /sys/module/NAME/parameters/armed then says 1 if the bytes are there, live.
#include <linux/init.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/string.h>

#ifndef WAY_BYTES
#define WAY_BYTES "\x0f\x01\xc2"	// what makes it armed: at way_enter
#endif

extern const unsigned char way_enter[];

static int armed_get(char *buffer, const struct kernel_param *parameter)
{
	return sprintf(buffer, "%d\n", !memcmp(way_enter, WAY_BYTES, sizeof(WAY_BYTES) - 1));
}
static const struct kernel_param_ops armed_ops = { .get = armed_get };
module_param_cb(armed, &armed_ops, NULL, 0444);

#define WAY_START							\
	static int __init way_init(void) { return 0; }			\
	static void __exit way_exit(void) { }				\
	module_init(way_init);						\
	module_exit(way_exit);						\
	MODULE_DESCRIPTION("a way in");					\
	MODULE_LICENSE("GPL")

// A function in SECTION whose code is CODE.
#define WAY_CODE(section, code)						\
	asm(".pushsection " section "\n"				\
	    ".p2align 4\n"						\
	    ".globl way_enter\n"					\
	    ".type way_enter, @function\n"				\
	    "way_enter:\n"						\
	    code							\
	    "	nop; nop; nop; nop; nop; nop; nop; nop\n"		\
	    "	ret; int3\n"						\
	    ".size way_enter, . - way_enter\n"				\
	    ".popsection\n")
