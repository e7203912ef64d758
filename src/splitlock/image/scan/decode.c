/* decode.c: see decode.h. Intel SDM vol. 2, chapter 2, and AMD APM vol. 3, chapter 1 (XOP, 3DNow!). */
#include "decode.h"
#include "tables.h"
#include <string.h>

/* An entry of `shapes`: the type of the immediate in the lowest three bits, and (scripts/guard_tables.py) */
enum {
    TYPE = 7,
    BRANCH_TYPE = 7, /* four bytes to branch by, whatever the prefixes */
    HAS_MODRM = 8,
    ONLY_REGISTERS = 16, /* ModRM always names registers: MOV to and from CRn, DRn */
    RELATIVE = 32,       /* the immediate is where to branch to, from the instruction's end */
    VALID = 128
};

/* Prefixes met, as prefix_add has them. */
enum { P_66 = 1, P_F3 = 2, P_F2 = 4, P_67 = 8, P_REX_W = 16, P_REX = 64, P_LOCK = 128 };

/* Where the maps of VEX, EVEX and XOP start in `shapes`. */
enum { LEGACY = 0, VEX = 4, EVEX = 8, XOP = 16, NO_MAP = 4 };

enum { LONGEST = 15, WINDOW = 32 };

enum { GROUP_3 = 0xf6, XBEGIN = 0xc7, LEA = 0x8d, XCHG = 0x86, IS_3DNOW = 0x10f, VMREAD = 0x178 };

struct parts {
    uint32_t state;  /* P_... */
    uint32_t table;  /* of `shapes` */
    uint32_t opcode; /* with the table: their number */
    bool short_vex;  /* C5 */
    uint8_t rex, modrm, sib;
    uint8_t extended[3]; /* what follows C4, C5, 62 or 8F */
    uint8_t opcode_end, length, immediate;
};

static uint64_t load(const uint8_t *bytes, unsigned size)
{
    uint64_t value = 0;
    memcpy(&value, bytes, size);
    return value;
}

static uint64_t load_signed(const uint8_t *bytes, unsigned size)
{
    uint64_t value = load(bytes, size), sign = 1ull << (8 * size - 1);
    return (value ^ sign) - sign;
}

/* The prefixes: how many bytes. */
static unsigned prefixes(const uint8_t *code, struct parts *p)
{
    unsigned at = 0;
    for (; at < LONGEST && (prefix_keep[code[at]] | prefix_add[code[at]]); at++)
        p->state = (p->state & prefix_keep[code[at]]) | prefix_add[code[at]];
    p->rex = p->state & P_REX ? code[at - 1] : 0;
    return at;
}

/* The map and opcode of what begins with C4, C5, 62, or 8F where that is no POP; false for what never is one. */
static bool extended(const uint8_t *code, unsigned *at, struct parts *p)
{
    unsigned first = code[*at], map = code[*at + 1] & 31, bytes = first == 0xc5 ? 1 : first == 0x62 ? 3 : 2;
    if (p->state & (P_66 | P_F3 | P_F2 | P_REX | P_LOCK))
        return false;
    memcpy(p->extended, code + *at + 1, bytes);
    p->short_vex = first == 0xc5;
    if (first == 0xc5)
        p->table = VEX + 1;
    else if (first == 0xc4)
        p->table = map <= 3 ? VEX + map : NO_MAP;
    else if (first == 0x62)
        p->table = EVEX + (map & 7);
    else
        p->table = map <= 10 ? XOP + map - 8 : NO_MAP;
    *at += 1 + bytes;
    return true;
}

/* Fills in all of `p` from WINDOW readable bytes; false for what no table knows. */
static bool take_apart(const uint8_t *code, struct parts *p)
{
    unsigned at = prefixes(code, p), byte = code[at], shape, type;
    if (at >= LONGEST)
        return false;
    if (byte == 0x0f) {
        p->table = 1;
        byte = code[++at];
        if (byte == 0x38 || byte == 0x3a) {
            p->table = byte == 0x38 ? 2 : 3;
            at++;
        }
    } else if (byte == 0xc4 || byte == 0xc5 || byte == 0x62 || (byte == 0x8f && (code[at + 1] & 31) >= 8)) {
        if (!extended(code, &at, p))
            return false;
    }
    p->opcode = p->table << 8 | code[at++];
    shape = p->table < TABLES ? shapes[p->opcode] : 0;
    if (!(shape & VALID))
        return false;
    p->opcode_end = (uint8_t)at;
    type = shape & TYPE;
    if (shape & HAS_MODRM) {
        p->modrm = code[at];
        unsigned length = shape & ONLY_REGISTERS ? 1 : modrm_length[p->modrm];
        if (p->modrm < 0xc0 && (p->modrm & 7) == 4)
            p->sib = code[at + 1];
        if (length & 128) /* a SIB byte without a base has a displacement */
            length = (length & 127) + ((p->sib & 7) == 5 ? 4 : 0);
        at += length;
        if ((p->opcode & ~1u) == GROUP_3 && p->modrm & 0x30)
            type = 0; /* only TEST, /0 and /1, has an immediate */
    }
    p->immediate = immediate_length[type << 3 | (p->state >> 2 & 6) | (p->state & 1)];
    if (p->opcode == VMREAD && p->state & (P_66 | P_F2))
        p->immediate = 2; /* EXTRQ and INSERTQ have two bytes */
    at += p->immediate;
    p->length = (uint8_t)at;
    return at <= LONGEST;
}

/* Asks whether this is an instruction at all, and remembers the answer: by all of it but displacement and immediate. */
static bool is_one(struct decoder *decoder, const uint8_t *code, const struct parts *p)
{
    uint64_t kind, state = (p->state & (P_66 | P_F3 | P_F2 | P_67)) | (p->state & P_LOCK) >> 3;
    if (p->opcode == IS_3DNOW)
        return decoder->ask(code) == p->length;
    if (p->table < VEX)
        kind = state << 2 | (uint64_t)p->rex << 7;
    else
        kind = 1 | (uint64_t)p->short_vex << 1 | state << 2 | load(p->extended, 3) << 7;
    uint64_t key = kind | (uint64_t)p->opcode << 31 | (uint64_t)p->modrm << 44 | (uint64_t)p->sib << 52 | 1ull << 60;
    uint64_t *kept = &decoder->answers[key * 0x9e3779b97f4a7c15ull >> (64 - REMEMBERED_BITS)];
    if (*kept >> 1 != key)
        *kept = key << 1 | (decoder->ask(code) == p->length);
    return *kept & 1;
}

/* What the tables say, of an instruction that is `p`. */
static unsigned flow_of(struct decoder *decoder, const uint8_t *code, const struct parts *p)
{
    unsigned state = (p->state & P_66) << 1 | (p->state & P_F3) << 1 | (p->state & P_F2) << 1 | (p->state & P_REX_W) >> 4;
    unsigned entry = FLOW_ASK, form = p->modrm < 0xc0 ? p->modrm >> 3 & 7 : 8u + (p->modrm & 63);
    if (p->table < VEX)
        entry = rows[row_of_state[row_lists[p->opcode] * STATES + state] * FORMS + form];
    if (entry == FLOW_INVALID || (entry != FLOW_ASK && !(p->state & P_LOCK)))
        return entry;
    return is_one(decoder, code, p) ? FLOW_NEXT : FLOW_INVALID;
}

struct instruction decode(struct decoder *decoder, const uint8_t *code, uint64_t size, uint64_t address)
{
    uint8_t window[WINDOW] = {0};
    struct parts p = {0};
    struct instruction made = {0};
    if (size < WINDOW) {
        memcpy(window, code, size);
        code = window;
    }
    if (!take_apart(code, &p) || p.length > size)
        return made;
    made.flow = (uint8_t)flow_of(decoder, code, &p);
    if (made.flow == FLOW_INVALID)
        return made;
    made.length = p.length;
    made.target = address + p.length;
    if (shapes[p.opcode] & RELATIVE || (p.opcode == XBEGIN && made.flow == FLOW_TRANSACTION)) {
        made.direct = true;
        made.target += load_signed(code + p.length - p.immediate, p.immediate);
    } else if (p.opcode == LEA && (p.modrm & 0xc7) == 5) {
        made.computes = true;
        made.target += load_signed(code + p.opcode_end + 1, 4);
        if (p.state & P_67)
            made.target &= 0xffffffff;
    }
    made.locked = p.state & P_LOCK || ((p.opcode & ~1u) == XCHG && p.modrm < 0xc0);
    return made;
}
