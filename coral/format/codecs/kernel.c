/* The loops over elements and streams that would take numpy several passes, or Python many steps. kernel.py says what
 * each does, and holds the same in numpy. Plain C behind plain pointers: the caller has allocated as much as is said
 * here. All numbers are little-endian.
 *
 * Byte j of element i of n is at planes[j * n + i]. Memory may be unaligned, so elements are loaded and stored with
 * memcpy, which costs nothing.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__GLIBC__)
#define FAST __attribute__((target_clones("avx2", "default")))
#define SHIFTS __attribute__((target_clones("bmi2", "default")))
#else
#define FAST
#define SHIFTS
#endif

#define LOAD(type, from, at) ({ type value_; memcpy(&value_, (from) + (at) * sizeof(type), sizeof(type)); value_; })
#define STORE(type, to, at, value) ({ type value_ = (value); memcpy((to) + (at) * sizeof(type), &value_, sizeof(type)); })

static inline int log2_of(uint32_t value) { return 31 - __builtin_clz(value); }

static inline size_t smaller(size_t one, size_t other) { return one < other ? one : other; }

#include "elements.h"
#include "huffman.h"
#include "unhuffman.h"
#include "streams.h"
#include "grouped.h"

int coral_kernel_version(void) { return 5; }

int coral_same(const uint8_t *one, const uint8_t *two, size_t length) { return memcmp(one, two, length) == 0; }
