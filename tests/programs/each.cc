/* A C++ library that calls back, from below templates, std::function, try and destructors. */
#include <algorithm>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>
struct Held { std::string name; ~Held() { name.clear(); } };
template <class F> __attribute__((noinline)) static int down(int n, F f)
{
    Held held{std::to_string(n)};
    return n ? down(n - 1, f) + (int)held.name.size() : f();
}
extern "C" void each(int n, void (*f)(void *), void *p)
{
    std::vector<int> order(4);
    std::function<int()> call = [=] { try { f(p); } catch (const std::runtime_error &) { return 2; } return 1; };
    std::for_each(order.begin(), order.end(), [&](int &o) { o = down(n, call); });
}
