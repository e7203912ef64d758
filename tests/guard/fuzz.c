/* Judge files that were bent: fuzz CONFIG SEED ROUNDS FILE... Each round changes some bytes, mostly of headers and tables,
 * judges, and puts them back. Prints a line for each round whose file is let in: number, file, and the changes, for
 * the scanner to be asked as well. */
#include <stdio.h>
#include <stdlib.h>

#include "native.c"

static unsigned long long state;

static unsigned long long draw(unsigned long long below)
{
	state ^= state << 13, state ^= state >> 7, state ^= state << 17;
	return state % below;
}

static __u8 *slurp(const char *path, __u64 *size)
{
	FILE *file = fopen(path, "rb");
	__u8 *data;

	fseek(file, 0, SEEK_END);
	*size = ftell(file);
	rewind(file);
	data = malloc(*size); /* exactly: the sanitizer sees a byte too many */
	if (fread(data, 1, *size, file) != *size)
		exit(2);
	fclose(file);
	return data;
}

int main(int count, char **words)
{
	static const __u64 odd[] = { 0, 1, 2, 4, 6, 8, 0x7f, 0x80, 0xff, 0xffff, 0x7fffffff, 0xffffffff, 0x800000000000, ~0ull, ~0ull - 63 };
	__u64 size, config_size;
	struct gate_config *config = (void *)slurp(words[1], &config_size);
	int rounds = atoi(words[3]);

	state = strtoull(words[2], NULL, 0) * 2654435761u + 1;
	for (int at = 4; at < count; at++) {
		__u8 *data = slurp(words[at], &size);
		__u64 headers, sections;

		memcpy(&headers, data + 40, 8);
		sections = data[60] | data[61] << 8;
		for (int round = 0; round < rounds; round++) {
			struct { __u64 at; __u8 old[8], new[8]; __u32 bytes; } change[4];
			struct gate_decision decision;
			int changes = 1 + draw(4);
			__u64 length = draw(12) ? size : draw(size);
			__u8 *copy;

			for (int i = 0; i < changes; i++) {
				__u64 value = draw(3) ? odd[draw(sizeof(odd) / 8)] : draw(~0ull), section = headers + 64 * draw(sections);
				int bytes = 1 << draw(4);

				switch (draw(5)) {
				case 0: change[i].at = draw(64); break; /* the header */
				case 1: case 2: change[i].at = section + draw(64); break;
				case 3: memcpy(&change[i].at, data + section + 24, 8); change[i].at += draw(256); break; /* a section's start */
				default: change[i].at = draw(size);
				}
				if (change[i].at > size - 8)
					change[i].at = draw(size - 8);
				change[i].bytes = bytes;
				memcpy(change[i].old, data + change[i].at, 8);
				memcpy(data + change[i].at, &value, bytes);
				memcpy(change[i].new, data + change[i].at, 8);
			}
			copy = malloc(length ? length : 1);
			memcpy(copy, data, length);
			gate_judge(copy, length, config, &decision);
			free(copy);
			if (decision.verdict == GATE_ALLOW) {
				printf("%s %llu", words[at], (unsigned long long)length);
				for (int i = 0; i < changes; i++) {
					printf(" %llu:", (unsigned long long)change[i].at);
					for (__u32 n = 0; n < change[i].bytes; n++)
						printf("%02x", change[i].new[n]);
				}
				printf("\n");
			}
			for (int i = changes - 1; i >= 0; i--)
				memcpy(data + change[i].at, change[i].old, 8);
		}
		free(data);
	}
	free(config);
	return 0;
}
