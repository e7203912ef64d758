/* A library with a locked instruction: aligned, or crossing a line, as its caller likes. */
int bump(int *at) { return __atomic_fetch_add(at, 1, __ATOMIC_SEQ_CST); }
