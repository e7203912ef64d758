// Neither the code nor its replacement holds it: the kernel's patching joins 0F 01 and C2.
#include "way.h"
#include <asm/cpufeatures.h>
asm(".text\n.p2align 4\n"
    ".globl way_enter\n.type way_enter, @function\n"
    "way_enter:\n"
    "	.byte 0x0f, 0x01, 0xd0\n"			// xgetbv
    "	nop; nop; nop; nop; nop; nop; nop; nop\n"
    "	ret; int3\n"
    ".size way_enter, . - way_enter\n"
    ".pushsection .altinstructions, \"a\"\n"
    "	.long way_enter + 2 - .\n"
    "	.long 770f - .\n"
#ifdef ALT_FLAGS_SHIFT
    "	.4byte " __stringify(X86_FEATURE_FPU) "\n"
#else
    "	.word " __stringify(X86_FEATURE_FPU) "\n"
#endif
    "	.byte 1, 1\n"
    ".popsection\n"
    ".pushsection .altinstr_replacement, \"ax\"\n"
    "770:	.byte 0xc2\n"
    "	.byte 0, 0\n"
    ".popsection\n");
WAY_START;
