/* layout.c: what entry.S says as numbers is where the compiler has it. No code. */
#include "agent.h"

#define AT(type, field, offset) \
    _Static_assert(offsetof(struct type, field) == (offset), "entry.S has struct " #type "'s " #field " elsewhere")

_Static_assert(sizeof(struct frame) == 176, "entry.S: FRAME");
AT(frame, ax, 0);
AT(frame, dx, 8);
AT(frame, cx, 16);
AT(frame, bx, 24);
AT(frame, si, 32);
AT(frame, di, 40);
AT(frame, bp, 48);
AT(frame, sp, 56);
AT(frame, r8, 64);
AT(frame, r9, 72);
AT(frame, r10, 80);
AT(frame, r11, 88);
AT(frame, r12, 96);
AT(frame, r13, 104);
AT(frame, r14, 112);
AT(frame, r15, 120);
AT(frame, ip, 128);
AT(frame, flags, 136);
AT(frame, mask, 144);
AT(frame, done, 152);
AT(frame, target, 160);
AT(frame, extra, 168);

AT(page, hit, 0); /* arena.py's too, with `call` and `leave` */
AT(page, call, 8);
AT(page, leave, 16);
AT(page, counters, 24);
AT(page, seen, 32);
AT(page, id, 40);

AT(arena, begin, 0);
AT(arena, end, 8);
_Static_assert(sizeof(struct arena) == 88, "entry.S: ARENA_SIZE");

AT(context, ip, 168);

AT(run, processes, 28);

_Static_assert(SEEN_FEW == 6 && SEEN_MORE == 9 && SEEN_MANY == 14 && ROW == 8, "entry.S: SEEN_BITS, and rows of 64 bytes");
_Static_assert(NR_RT_SIGPROCMASK == 14 && SIG_SETMASK == 2, "entry.S has its own");
