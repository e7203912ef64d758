/* oracle.h: selectors and vectors, for start.S and oracle.c. */
#define CODE32 0x08
#define DATA 0x10
#define CODE64 0x18
#define USERDATA 0x20
#define USER64 0x28
#define TSS 0x30
#define GATES 0x31
#define BACK 0x30 /* out of CPL 3 */
