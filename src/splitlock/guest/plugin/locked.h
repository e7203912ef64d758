/*
 * locked.h: is it a locked instruction, and how large is its operand? By its bytes, whatever the mode.
 */
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Size in bytes of the memory operand if the instruction is a locked one whose operand may cross a line, else 0; 2 stands
 * for 2, 4 or 8, which the store tells. LOCK before anything else, or with a register operand, is #UD and never executes.
 * A byte never crosses; cmpxchg16b faults when not aligned. The same in 16-, 32- and 64-bit code: what would be a REX
 * prefix is an instruction by itself in the former, and opcode 82 is #UD in the latter. Sets *neg for `lock neg`.
 */
static unsigned locked_size(const uint8_t *code, size_t length, bool *neg)
{
    size_t at = 0;
    bool has_lock = false, rex_w = false;
    for (; at < length; at++) {
        uint8_t byte = code[at];
        if ((byte & 0xf0) == 0x40) {
            rex_w = byte & 8;
            continue;
        }
        if (byte == 0xf0)
            has_lock = true;
        else if (byte != 0x66 && byte != 0xf2 && byte != 0xf3 && byte != 0x67 && byte != 0x26 && byte != 0x2e &&
                 byte != 0x36 && byte != 0x3e && byte != 0x64 && byte != 0x65)
            break;
        rex_w = false; /* a REX prefix counts only right before the opcode */
    }
    if (at >= length)
        return 0;
    uint8_t opcode = code[at++];
    bool two_byte = opcode == 0x0f;
    if (two_byte) {
        if (at >= length)
            return 0;
        opcode = code[at++];
    }
    if (at >= length || code[at] >> 6 == 3) /* a register; or no ModRM byte: not an instruction we look for */
        return 0;
    unsigned group = code[at] >> 3 & 7;
    if (!two_byte) {
        if (opcode == 0x87) /* xchg locks without being told */
            return 2;
        if (!has_lock)
            return 0;
        *neg = opcode == 0xf7 && group == 3;
        /* in turn: add or adc sbb and sub xor; the same with an immediate; not neg; inc dec */
        return (opcode < 0x38 && (opcode & 7) == 1) || ((opcode == 0x81 || opcode == 0x83) && group != 7) ||
                       (opcode == 0xf7 && (group == 2 || group == 3)) || (opcode == 0xff && group < 2)
                   ? 2
                   : 0;
    }
    if (!has_lock)
        return 0;
    switch (opcode) {
    case 0xb1: /* cmpxchg */
    case 0xc1: /* xadd */
    case 0xab: /* bts */
    case 0xb3: /* btr */
    case 0xbb: /* btc */
        return 2;
    case 0xba: /* bts btr btc with an immediate */
        return group >= 5 ? 2 : 0;
    case 0xc7: /* cmpxchg8b */
        return group == 1 && !rex_w ? 8 : 0;
    default:
        return 0;
    }
}
