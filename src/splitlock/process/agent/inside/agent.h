/* What the agent's parts know of each other. */
#ifndef AGENT_H
#define AGENT_H

#include "elf.h"
#include "image.h"
#include "kernel.h"
#include "run.h"

#pragma GCC visibility push(hidden)

/* what entry.S saves: the program's registers, and its notes; its offsets are entry.S's */
struct frame {
    uint64_t ax, dx, cx, bx, si, di, bp, sp, r8, r9, r10, r11, r12, r13, r14, r15;
    uint64_t ip;     /* 128: of a hit the operand's address, of a call where it goes on */
    uint64_t flags;  /* 136: of a hit as the slow path saved them */
    uint64_t mask;   /* 144 */
    uint64_t done;   /* 152: of a call: 1 when the agent has made it; of a hit its key */
    uint64_t target; /* 160: of leave; of an execution what counts it; of a call made in entry.S enum then */
    uint64_t extra;  /* 168: of a hit the page, of leave what is popped */
};

struct span { /* of an image: addresses in the file's terms */
    uint64_t low, high;
    uint64_t text, text_end; /* where it is executable */
};

struct arena { /* of one image in this process */
    uint64_t begin, end; /* addresses; end: of the code */
    uint64_t bias;
    const struct image *image; /* null: has no arena */
    uint64_t low, high;        /* of the image, with the bias */
    uint64_t text, text_end;   /* likewise */
    uint64_t file_device, file_inode; /* of the image file */
    uint32_t seen;             /* its number in the run's memory */
    uint32_t closed;
};

/* wiped in a forked child */
enum { WAITING = 64, ROOMS = 64 };
enum { ROW = 8, SEEN_FEW = 6, SEEN_MORE = 9, SEEN_MANY = 14 }; /* of `seen`: keys in a row; bits of a row's number, by table */
struct own {
    uint64_t process; /* whose it is; a child of vfork uses its parent's */
    struct {
        _Atomic uint64_t thread;
        uint64_t mask;
        _Atomic uint32_t tid; /* a child of vfork has its parent's thread pointer */
    } waiting[WAITING];
    struct {
        _Atomic uint64_t thread;
        uint64_t *lines;
    } rooms[ROOMS]; /* for environments */
    _Atomic uint32_t made_lock; /* of made.c's ranges */
    /* Threads at sites, by a key of both, never taken out. Only where a row of a table is full is one of the next table used: so a
     * program that has few touches few pages, and ten thousand have room. It is too small for a huge page. */
    _Alignas(64) _Atomic uint64_t seen[(1 << SEEN_FEW) + (1 << SEEN_MORE) + (1 << SEEN_MANY)][ROW];
};

extern struct run *run;
extern struct own *own;
enum { ARENAS = 1024 };
extern struct arena arenas[ARENAS];
extern _Atomic uint32_t arena_count;
enum { ENTRY = 512, IN_FILTER = 'f' }; /* at the end of our second line: the program has inherited a filter */
extern uint64_t linker; /* where ld.so lies */
extern uint32_t begun; /* tells this program from another one of the same process: a random number */
extern bool is_traced; /* patches are written, none of the program's pages replaced */

/* entry.S */
extern const char hit_entry[], hit_framed[], hit_pushed[], hit_popped[], hit_unframed[], hit_end[];
extern const char call_entry[], call_framed[], call_saved[], call_done[], call_unframed[], call_made[], call_finished[];
extern const char call_noted[], call_aligned[], call_aligned_end[], front_entries[], front_entries_end[], front_saved[], front_blocked[];
extern const char call_returned[], call_returned_saved[], call_returned_end[], call_end[], leave_entry[], leave_done[], leave_flags[], leave_unframed[], leave_popping[];
extern const char leave_popping_flags[], leave_popped[], leave_end[], front_open[], front_unframed[], front_end[];
extern const char __ehdr_start[], etext[]; /* of the agent, the linker's */
extern const char exec_open[], exec_end[], own_restorer[];
enum { ENTRIES = 512, ENTRY_SIZE = 16 }; /* of front_entries */
enum then { THEN_FILTERED = 1, THEN_COUNT, THEN_TELL }; /* what is to be done when a call made in entry.S has succeeded */
long exec_call(const struct frame *frame, const uint64_t *environment);

extern uint32_t asks_always; /* on_hit is called for each split lock, not only for a thread's first at a site */
extern uint32_t is_filtered; /* the program has set up a seccomp filter that hinders us: no call of ours is safe any more */
extern bool can_load; /* ... but lets through what is called when a library is loaded */
extern uint32_t is_dispatched; /* ... has its system calls turned into SIGSYS, so ours as well: none is made */

/* arenas.c */
void know_arena(const struct arena *arena);
const void *table(const struct arena *arena, uint32_t at);

/* placing.c */
bool place(struct arena *arena, struct seen_image *seen, const struct image *image, long file);

/* images.c */
int watch_image(uint64_t bias, const char *path, const char *name, const struct span *span);
void key_of(const struct stat *status, uint64_t key[KEY]);
void note_mapping(int file, bool shared, uint64_t size);
struct arena *arena_at(uint64_t address);
const struct copy *copy_at(const struct arena *arena, uint32_t offset);
const struct resume *resume_at(const struct arena *arena, uint32_t address);
const struct operand *operand_at(const struct arena *arena, uint32_t offset);
bool leads_into_run(const struct arena *arena, uint32_t address);
const struct hook *hook_at(const struct arena *arena, uint32_t offset);
void free_arenas(uint64_t low, uint64_t high);
void wake_supervisor(void);
bool lives(int32_t pid);
enum { PATIENCE = 100, BRIEF = 10 }; /* tenths of seconds */
struct waited { /* the supervisor's last beat, and how often it was asked for since */
    uint32_t beats, times;
};
bool is_served(struct waited *waited);

/* plain.c */
bool is_plain(long file, const uint64_t key[KEY], uint64_t *code);

/* filter.c */
bool is_hindered(const struct frame *frame);
void on_filtered_call(const struct frame *frame);

/* policy.c */
bool is_forbidden(void);

/* made.c */
extern _Atomic uint32_t range_count;
bool is_made(uint64_t start, uint64_t size);
void made_code(uint64_t start, uint64_t size);
void note_made_bytes(uint64_t bytes);
void code_goes(uint64_t start, uint64_t size);
void code_ends(bool for_certain);
void note_stack(const struct segment *segments, uint64_t count);
void note_personality(uint64_t personality);

/* copies.c */
bool may_hold_copies(uint64_t start, uint64_t size);
void restore_copies(uint64_t start, uint64_t size);
bool is_patched(uint64_t start, uint64_t size);
bool is_patched_at(const struct arena *arena, uint64_t address);
void text_changes(uint64_t start, uint64_t size);
void text_moves(uint64_t start, uint64_t size);
bool restore_mapping(uint64_t start, uint64_t size, int file, uint64_t offset);

/* hit.c */
void on_hit(struct frame *frame, uint32_t what);
void meet_bus_error(uint64_t *mask);
void restore_site(const struct arena *arena, uint64_t address);

/* calls.c, exec.c, signals.c */
extern _Atomic uint64_t ever_handled;
void on_call(struct frame *frame);
long execute(struct frame *frame);
void not_executed(const struct frame *frame);
long set_action(int number, const struct action *action, struct action *old);
void on_leave(struct frame *frame);
void give_handlers(void);
void hand_back_handlers(void);

/* judge.c */
bool is_nowhere(long error);
bool is_agent_visible(void);
enum reason judge_target(const struct frame *frame, const char *path, bool at, const char **name);

/* notes.c */
struct escape *note_escape(const char *name, enum reason reason);
void escaped(const char *name, enum reason reason);
void note_program(const char *name, bool has_scope);

/* lines.c */
extern char audit_entry[ENTRY], run_entry[ENTRY]; /* our lines of the environment */
enum { ON_STACK = 128 }; /* lines: the stack may be a signal handler's, and small */
long copy_lines(uint64_t from, uint64_t **lines);
bool is_anothers(const uint64_t *lines, long count);
void add_our_lines(uint64_t *lines, long count);

/* auditors.c */
void note_auditors(char *const *environment);
bool is_ours(const char *path);

/* door.c */
struct door *ask_for_tracer(const char *name, enum reason reason);
void close_door(struct door *door);

/* proc.c */
enum { FIELD = 64 };
bool find_field(int32_t pid, const char *name, char value[FIELD]);
bool is_roots_or_ours(int32_t pid);
struct mapping {
    uint64_t start, end;
    bool writes, executes;
    char *name; /* where to put it, NAME bytes: cut where there is no room; null where nobody wants it */
};
struct maps {
    char *buffer;
    long file, room, size, at;
};
bool open_maps(struct maps *maps, char *buffer, long room);
bool next_mapping(struct maps *maps, struct mapping *mapping);
void close_maps(const struct maps *maps);

/* reserve.c */
bool take_out_reserve(char **end);
void reserve_for(const char *library, const struct segment *segments, uint64_t count, const void *section, char **arguments,
                 char **environment, const char *program);
void no_more_reserve(void);

/* text.c */
void *memcpy(void *to, const void *from, size_t size);
void *memset(void *to, int value, size_t size);
int memcmp(const void *one, const void *other, size_t size);
size_t strlen(const char *text);
void copy_text(char *to, const char *from, size_t room);
bool begins(const char *text, const char *prefix);
enum { DIGITS = 20, PROC_NAME = 40 };
uint64_t number_in(const char *text);
char *put_number(char *to, uint64_t value);
void name_descriptor(char to[PROC_NAME], int descriptor);

#pragma GCC visibility pop

#endif
