/* The loops over elements that numpy needs several passes for; kernel.py holds the same in numpy, and says what each
 * does. Plain C behind plain pointers: the caller has checked every length. All numbers are little-endian.
 *
 * Byte j of element i is at planes[j][i] of what is read, and at planes[j * n + i] of what is written. Memory may be
 * unaligned, so elements are loaded and stored with memcpy, which costs nothing.
 */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && defined(__linux__)
#define FAST __attribute__((target_clones("avx2", "default")))
#else
#define FAST
#endif

int coral_kernel_version(void) { return 1; }

#define LOAD(type, from, at) ({ type value_; memcpy(&value_, (from) + (at) * sizeof(type), sizeof(type)); value_; })
#define STORE(type, to, at, value) ({ type value_ = (value); memcpy((to) + (at) * sizeof(type), &value_, sizeof(type)); })

#define BLOCK 1024

/* Elements are counted and moved at so many places at once, because each waits for the counter of the one before it. */
#define WAYS 4

/* Added to a difference, so that small ones of either sign share their upper bytes. */
#define BIAS_1 0x80u
#define BIAS_2 0x80u
#define BIAS_4 0x808080u
#define BIAS_8 0x80808080808080ull

/* What elements are grouped by: the exponent of a float of that size, or the top of a wider one. */
#define KEY_1(x) (((x) >> 3) & 15)
#define KEY_2(x) (((x) >> 7) & 255)
#define KEY_4(x) (((x) >> 23) & 255)
#define KEY_8(x) (((x) >> 52) & 255)

#define DEFINE(bits, item)                                                                                             \
    FAST void coral_split_##item(const uint8_t *raw, const uint8_t *base, size_t n, uint8_t *restrict planes) {        \
        for (int j = 0; j < item; j++) {                                                                               \
            uint8_t *restrict plane = planes + j * n;                                                                  \
            if (base)                                                                                                  \
                for (size_t i = 0; i < n; i++)                                                                         \
                    plane[i] = (uint8_t)((uint##bits##_t)(LOAD(uint##bits##_t, raw, i) -                               \
                                                          LOAD(uint##bits##_t, base, i) + BIAS_##item) >> (8 * j));    \
            else                                                                                                       \
                for (size_t i = 0; i < n; i++) plane[i] = (uint8_t)(LOAD(uint##bits##_t, raw, i) >> (8 * j));          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    FAST void coral_join_##item(const uint8_t *const *planes, const uint8_t *base, size_t n, uint8_t *out) {           \
        uint##bits##_t block[BLOCK]; /* of its own, so that the compiler knows that nothing else points there */       \
        for (size_t start = 0; start < n; start += BLOCK) {                                                            \
            size_t length = n - start < BLOCK ? n - start : BLOCK;                                                     \
            const uint8_t *plane[item];                                                                                \
            for (int j = 0; j < item; j++) plane[j] = planes[j] + start;                                               \
            for (size_t i = 0; i < length; i++) {                                                                      \
                uint##bits##_t value = 0;                                                                              \
                for (int j = 0; j < item; j++) value |= (uint##bits##_t)((uint##bits##_t)plane[j][i] << (8 * j));      \
                block[i] = value;                                                                                      \
            }                                                                                                          \
            if (base)                                                                                                  \
                for (size_t i = 0; i < length; i++)                                                                    \
                    block[i] = (uint##bits##_t)(block[i] + LOAD(uint##bits##_t, base, start + i) - BIAS_##item);       \
            memcpy(out + start * item, block, length * item);                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    void coral_count_##item(const uint8_t *base, size_t n, uint32_t *counts) {                                         \
        const size_t part = n / WAYS;                                                                                  \
        memset(counts, 0, WAYS * 256 * sizeof *counts);                                                                \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++)                                                                    \
                counts[256 * way + KEY_##item(LOAD(uint##bits##_t, base, way * part + i))]++;                          \
        for (size_t i = WAYS * part; i < n; i++)                                                                       \
            counts[256 * (WAYS - 1) + KEY_##item(LOAD(uint##bits##_t, base, i))]++;                                    \
    }                                                                                                                  \
                                                                                                                       \
    static inline void put_##item(const uint8_t *raw, const uint8_t *base, size_t n, size_t i, uint32_t *places,       \
                                  uint8_t *planes) {                                                                   \
        uint##bits##_t from = LOAD(uint##bits##_t, base, i);                                                           \
        uint##bits##_t value = (uint##bits##_t)(LOAD(uint##bits##_t, raw, i) - from + BIAS_##item);                    \
        size_t at = places[KEY_##item(from)]++;                                                                        \
        for (int j = 0; j < item; j++) planes[j * n + at] = (uint8_t)(value >> (8 * j));                               \
    }                                                                                                                  \
                                                                                                                       \
    void coral_group_##item(const uint8_t *raw, const uint8_t *base, size_t n, uint32_t *places, uint8_t *planes) {    \
        const size_t part = n / WAYS;                                                                                  \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++)                                                                    \
                put_##item(raw, base, n, way * part + i, places + 256 * way, planes);                                  \
        for (size_t i = WAYS * part; i < n; i++)                                                                       \
            put_##item(raw, base, n, i, places + 256 * (WAYS - 1), planes);                                            \
    }                                                                                                                  \
                                                                                                                       \
    static inline void take_##item(const uint8_t *const *planes, size_t i, uint32_t *places, uint8_t *out) {           \
        uint##bits##_t from = LOAD(uint##bits##_t, out, i), value = 0;                                                 \
        size_t at = places[KEY_##item(from)]++;                                                                        \
        for (int j = 0; j < item; j++) value |= (uint##bits##_t)((uint##bits##_t)planes[j][at] << (8 * j));            \
        STORE(uint##bits##_t, out, i, (uint##bits##_t)(value + from - BIAS_##item));                                   \
    }                                                                                                                  \
                                                                                                                       \
    void coral_ungroup_##item(const uint8_t *const *planes, size_t n, uint32_t *places, uint8_t *out) {                \
        const size_t part = n / WAYS;                                                                                  \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++) take_##item(planes, way * part + i, places + 256 * way, out);      \
        for (size_t i = WAYS * part; i < n; i++) take_##item(planes, i, places + 256 * (WAYS - 1), out);               \
    }

DEFINE(8, 1)
DEFINE(16, 2)
DEFINE(32, 4)
DEFINE(64, 8)

/* What bytes above the lowest a small difference has: the bias's own. */
#define UPPER(item, j) ((item) > 2 && (j) < (item) - 1 ? 0x80 : 0)

/* Pack [start, stop) into `width` bits each. What does not fit is kept whole in `escaped`, from `count` on; returns the
 * count after. `codes` is scratch, a byte an element. */
FAST size_t coral_narrow(const uint8_t *planes, size_t n, size_t start, size_t stop, int item, int width,
                         uint8_t *restrict codes, uint8_t *restrict packed, uint8_t *restrict escaped, size_t room,
                         size_t count) {
    const uint8_t escape = (uint8_t)((1u << width) - 1), least = (uint8_t)(0x80 - (escape >> 1));
    const size_t length = stop - start, per_byte = 8 / (size_t)width;
    const uint8_t *low = planes + start;
    for (size_t i = 0; i < length; i++) {
        uint8_t code = (uint8_t)(low[i] - least); /* wraps around below `least` */
        codes[i] = code < escape ? code : escape;
    }
    for (int j = 1; j < item; j++) {
        const uint8_t *plane = planes + j * n + start, upper = UPPER(item, j);
        for (size_t i = 0; i < length; i++) codes[i] |= (uint8_t)(plane[i] == upper ? 0 : escape);
    }
    for (const uint8_t *at = codes; (at = memchr(at, escape, (size_t)(codes + length - at))); at++) {
        for (int j = 0; j < item; j++) escaped[j * room + count] = planes[j * n + start + (size_t)(at - codes)];
        count++;
    }
    memset(codes + length, 0, 8); /* a last byte that is not full */
    for (size_t i = 0; i < length; i += per_byte) {
        if (width == 2)
            *packed++ = (uint8_t)(codes[i] | codes[i + 1] << 2 | codes[i + 2] << 4 | codes[i + 3] << 6);
        else
            *packed++ = (uint8_t)(codes[i] | codes[i + 1] << 4);
    }
    return count;
}

/* Undo the above; a count above `held` says that there were fewer escaped elements than codes that call for one. */
FAST size_t coral_widen(const uint8_t *restrict packed, size_t n, size_t start, size_t stop, int item, int width,
                        const uint8_t *restrict escaped, size_t held, size_t count, uint8_t *restrict planes) {
    const uint8_t escape = (uint8_t)((1u << width) - 1), least = (uint8_t)(0x80 - (escape >> 1));
    const uint8_t marker = (uint8_t)(least + escape);
    const size_t length = stop - start, per_byte = 8 / (size_t)width, whole = length / per_byte * per_byte;
    uint8_t *low = planes + start;
    if (width == 2)
        for (size_t i = 0; i < whole / 4; i++) {
            uint32_t byte = packed[i];
            uint32_t four = (byte & 3) | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18;
            STORE(uint32_t, low, i, four + least * 0x01010101u);
        }
    else
        for (size_t i = 0; i < whole / 2; i++) {
            uint16_t two = (uint16_t)((packed[i] & 15) | (packed[i] >> 4) << 8);
            STORE(uint16_t, low, i, (uint16_t)(two + least * 0x0101u));
        }
    for (size_t i = whole; i < length; i++)
        low[i] = (uint8_t)((packed[i / per_byte] >> (width * (int)(i % per_byte)) & escape) + least);
    for (int j = 1; j < item; j++) memset(planes + j * n + start, UPPER(item, j), length);
    for (uint8_t *at = low; (at = memchr(at, marker, (size_t)(low + length - at))); at++) {
        if (count < held)
            for (int j = 0; j < item; j++) at[j * n] = escaped[j * held + count];
        count++;
    }
    return count;
}
