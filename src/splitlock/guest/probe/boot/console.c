/* Where lines go: the first serial port (0x3f8, 115200 8N1) and the screen (VGA text memory).
 *
 * A line of the protocol is `slp1 WORDS *CCCC`, CCCC the CRC-16 (polynomial 0x1021, from 0) of `slp1 WORDS`; what other
 * software writes to the same port has no such sum.
 */
#include "probe.h"
#define PORT 0x3f8
#define COLUMNS 80
#define LINES 25

static volatile uint16_t *const screen = (volatile uint16_t *)0xb8000;
static uint32_t column;
static uint16_t sum;

static void scroll(void) {
    for (uint32_t i = 0; i < COLUMNS * LINES; i++)
        screen[i] = i < COLUMNS * (LINES - 1) ? screen[i + COLUMNS] : 0x0720;
    column = 0;
}

static void put(char c) {
    for (uint32_t tries = 0; tries < 100000 && !(inb(PORT + 5) & 0x20); tries++)
        ;
    outb(PORT, (uint8_t)c);
    if (c == '\n')
        scroll();
    else if (c != '\r' && column < COLUMNS)
        screen[COLUMNS * (LINES - 1) + column++] = 0x0700 | (uint8_t)c;
    sum ^= (uint16_t)((uint8_t)c << 8);
    for (int bit = 0; bit < 8; bit++)
        sum = (uint16_t)(sum & 0x8000 ? sum << 1 ^ 0x1021 : sum << 1);
}

void console_start(void) {
    outb(PORT + 1, 0);
    outb(PORT + 3, 0x80);
    outb(PORT, 1);
    outb(PORT + 1, 0);
    outb(PORT + 3, 3);
    outb(PORT + 2, 1);
    outb(PORT + 4, 3);
    text("\r\n"); /* away from what others left there */
}

void text(const char *words) {
    while (*words)
        put(*words++);
}

void hex(uint32_t number, int digits) {
    while (digits--)
        put("0123456789abcdef"[number >> 4 * digits & 15]);
}

void decimal(uint32_t number) {
    if (number > 9)
        decimal(number / 10);
    put((char)('0' + number % 10));
}

void line_begin(const char *kind) {
    sum = 0;
    text("slp1 ");
    text(kind);
}

void line_end(void) {
    uint16_t whole = sum;
    text(" *");
    hex(whole, 4);
    text("\r\n");
}
