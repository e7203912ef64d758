/* splits: takes three split locks. */
__attribute__((aligned(64))) static char memory[128];

int main(void)
{
    for (int i = 0; i < 3; i++)
        __atomic_fetch_add((int *)(memory + 62), 1, __ATOMIC_SEQ_CST);
    return 0;
}
