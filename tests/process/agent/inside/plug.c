// A library with many sites, for those who load it, edit it, close it.
#include <stdatomic.h>
#define F(n)                                                                                                                             \
    int f##n(_Atomic int *p) { return atomic_fetch_add(p, n) + atomic_exchange(p, 3); }
#define G(n) F(n##0) F(n##1) F(n##2) F(n##3) F(n##4) F(n##5) F(n##6) F(n##7) F(n##8) F(n##9)
G(1) G(2) G(3) G(4) G(5) G(6) G(7) G(8) G(9)
static char pad[1 << 20] = {1};
char *get(void) { return pad; }
