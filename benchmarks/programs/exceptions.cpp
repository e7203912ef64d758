// exceptions N: two threads throw and catch N exceptions each, through two frames. Prints how many were caught.
#include "pinned.h"
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>

static long times;

struct Cleanup {
    long &count;
    ~Cleanup() { count++; }
};

__attribute__((noinline)) static void thrower(long i)
{
    throw std::runtime_error(std::to_string(i));
}

__attribute__((noinline)) static void middle(long i, long &unwound)
{
    Cleanup cleanup{unwound};
    thrower(i);
}

static void *work(void *caught)
{
    long unwound = 0, count = 0;
    for (long i = 0; i < times; i++) {
        try {
            middle(i, unwound);
        } catch (const std::exception &) {
            count++;
        }
    }
    *static_cast<long *>(caught) = unwound == count ? count : -1;
    return nullptr;
}

int main(int argc, char **argv)
{
    times = argc > 1 ? std::atol(argv[1]) : 1000;
    long one = 0, two = 0;
    pthread_t first, second;
    if (create_pinned(&first, 0, work, &one) || create_pinned(&second, 1, work, &two))
        return 1;
    pthread_join(first, nullptr);
    pthread_join(second, nullptr);
    std::printf("%ld %ld\n", one, two);
}
