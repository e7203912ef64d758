/* auditors.c: other audit modules than the agent. ld.so tells a module of those that come behind it, of none that is before it, and
 * ours is behind those of the program's environment. A program's own (DT_AUDIT) come behind ours: they are watched. */
#include "agent.h"

static const char variable[] = "LD_AUDIT=";

/* The environment without our lines: each module in it is loaded, with a C library of its own. */
void note_auditors(char *const *environment)
{
    for (; *environment; environment++) {
        if (!begins(*environment, variable))
            continue;
        for (const char *module = *environment + sizeof variable - 1, *end; *module; module = *end ? end + 1 : end) {
            char name[NAME];
            for (end = module; *end && *end != ':'; end++)
                ;
            size_t size = (size_t)(end - module);
            if (!size)
                continue;
            copy_text(name, module, sizeof name);
            if (size < sizeof name)
                name[size] = 0;
            escaped(name, IS_AUDITOR);
        }
    }
}

/* Whether a library is the agent itself, which other runs' supervisors load to ask it. */
bool is_ours(const char *path)
{
    const char *agent = audit_entry + sizeof variable - 1;
    return strlen(path) == strlen(agent) && !memcmp(path, agent, strlen(agent));
}
