/* Elements: unsigned integers of 1, 2, 4 or 8 bytes, split into planes, joined, and sorted by what they are based on. */

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
    FAST static void split_##item(const uint8_t *raw, const uint8_t *base, size_t n, uint8_t *const *planes) {         \
        uint##bits##_t block[BLOCK]; /* of its own, so that the compiler knows that nothing else points there */       \
        for (size_t start = 0; start < n; start += BLOCK) {                                                            \
            const size_t length = smaller(n - start, BLOCK);                                                           \
            memcpy(block, raw + start * item, length * item);                                                          \
            if (base)                                                                                                  \
                for (size_t i = 0; i < length; i++)                                                                    \
                    block[i] = (uint##bits##_t)(block[i] - LOAD(uint##bits##_t, base, start + i) + BIAS_##item);       \
            for (int j = 0; j < item; j++) {                                                                           \
                uint8_t *restrict plane = planes[j] + start;                                                           \
                for (size_t i = 0; i < length; i++) plane[i] = (uint8_t)(block[i] >> (8 * j));                         \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    FAST static void join_##item(const uint8_t *const *planes, const uint8_t *base, size_t n, uint8_t *out) {          \
        uint##bits##_t block[BLOCK];                                                                                   \
        for (size_t start = 0; start < n; start += BLOCK) {                                                            \
            const size_t length = smaller(n - start, BLOCK);                                                           \
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
    static void count_##item(const uint8_t *base, size_t n, uint32_t *counts) {                                        \
        const size_t part = n / WAYS;                                                                                  \
        memset(counts, 0, WAYS * 256 * sizeof *counts);                                                                \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++)                                                                    \
                counts[256 * way + KEY_##item(LOAD(uint##bits##_t, base, way * part + i))]++;                          \
        for (size_t i = WAYS * part; i < n; i++)                                                                       \
            counts[256 * (WAYS - 1) + KEY_##item(LOAD(uint##bits##_t, base, i))]++;                                    \
    }                                                                                                                  \
                                                                                                                       \
    static void survey_##item(const uint8_t *raw, const uint8_t *base, size_t n, uint32_t counts[][256]) {             \
        for (size_t i = 0; i < n; i++) {                                                                               \
            const uint##bits##_t before = base ? (uint##bits##_t)(LOAD(uint##bits##_t, base, i) - BIAS_##item) : 0;    \
            const uint##bits##_t value = (uint##bits##_t)(LOAD(uint##bits##_t, raw, i) - before);                      \
            for (int j = 0; j < item; j++) counts[j][(uint8_t)(value >> (8 * j))]++;                                   \
        }                                                                                                              \
    }                                                                                                                  \
                                                                                                                       \
    static inline void put_##item(const uint8_t *restrict raw, const uint8_t *restrict base, size_t i,                 \
                                  uint32_t *restrict places, uint8_t *restrict values) {                               \
        uint##bits##_t from = LOAD(uint##bits##_t, base, i);                                                           \
        size_t at = places[KEY_##item(from)]++;                                                                        \
        STORE(uint##bits##_t, values, at, (uint##bits##_t)(LOAD(uint##bits##_t, raw, i) - from + BIAS_##item));        \
    }                                                                                                                  \
                                                                                                                       \
    static void sort_##item(const uint8_t *restrict raw, const uint8_t *restrict base, size_t n,                       \
                            uint32_t *restrict places, uint8_t *restrict values) {                                     \
        const size_t part = n / WAYS;                                                                                  \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++) put_##item(raw, base, way * part + i, places + 256 * way, values); \
        for (size_t i = WAYS * part; i < n; i++) put_##item(raw, base, i, places + 256 * (WAYS - 1), values);          \
    }                                                                                                                  \
                                                                                                                       \
    static inline void take_##item(const uint8_t *restrict values, const uint8_t *base, size_t i,                      \
                                   uint32_t *restrict places, uint8_t *out) {                                          \
        uint##bits##_t from = LOAD(uint##bits##_t, base, i);                                                           \
        size_t at = places[KEY_##item(from)]++;                                                                        \
        STORE(uint##bits##_t, out, i, (uint##bits##_t)(LOAD(uint##bits##_t, values, at) + from - BIAS_##item));        \
    }                                                                                                                  \
                                                                                                                       \
    static void unsort_##item(const uint8_t *restrict values, const uint8_t *base, size_t n, uint32_t *restrict places,\
                              uint8_t *out) {                                                                          \
        const size_t part = n / WAYS;                                                                                  \
        for (size_t i = 0; i < part; i++)                                                                              \
            for (size_t way = 0; way < WAYS; way++) take_##item(values, base, way * part + i, places + 256 * way, out);\
        for (size_t i = WAYS * part; i < n; i++) take_##item(values, base, i, places + 256 * (WAYS - 1), out);         \
    }

DEFINE(8, 1)
DEFINE(16, 2)
DEFINE(32, 4)
DEFINE(64, 8)

#define SAME_FOR(item) {split_##item, join_##item, survey_##item, count_##item, sort_##item, unsort_##item}

/* The loops for one size of elements. */
typedef struct {
    void (*split)(const uint8_t *raw, const uint8_t *base, size_t n, uint8_t *const *planes);
    void (*join)(const uint8_t *const *planes, const uint8_t *base, size_t n, uint8_t *out);
    void (*survey)(const uint8_t *raw, const uint8_t *base, size_t n, uint32_t counts[][256]);
    void (*count)(const uint8_t *base, size_t n, uint32_t *counts);
    void (*sort)(const uint8_t *raw, const uint8_t *base, size_t n, uint32_t *places, uint8_t *values);
    void (*unsort)(const uint8_t *values, const uint8_t *base, size_t n, uint32_t *places, uint8_t *out);
} loops_t;

static const loops_t *loops_for(int item) {
    static const loops_t loops[] = {SAME_FOR(1), SAME_FOR(2), SAME_FOR(4), SAME_FOR(8)};
    return &loops[log2_of((uint32_t)item)];
}

/* The logarithm of a number from 1 on, to five places. */
static double exact_log2(uint32_t value) {
    const int whole = log2_of(value);
    const double part = value / (double)(1u << whole), s = (part - 1) / (part + 1), t = s * s;
    return whole + 2.8853900817779268 * s * (1 + t * (1.0 / 3 + t * (1.0 / 5 + t / 7)));
}

/* The entropy of one of `total`, in bits: of each of `kinds` there are so many, and the `others` are alike. */
static double entropy_of(const uint32_t *counts, int kinds, uint32_t others, uint32_t total) {
    double sum = others ? others * exact_log2(others) : 0;
    for (int i = 0; i < kinds; i++)
        if (counts[i] > 1) sum += counts[i] * exact_log2(counts[i]);
    return exact_log2(total) - sum / total;
}

/* Bytes that `total` of them take as a stream, about: with a description of the code, or with the gaps between what is
 * not the same as most. */
static uint32_t stored_size(const uint32_t *counts, uint32_t total) {
    uint32_t most = 0, kinds = 0;
    for (int i = 0; i < 256; i++) {
        if (counts[i] > most) most = counts[i];
        kinds += counts[i] > 0;
    }
    const double bits = entropy_of(counts, 256, 0, total);
    const double size = most > total - total / 5 ? 16 + bits * total / 8 : 16 + kinds * 0.375 + bits * total / 8;
    return size < total ? (uint32_t)size : total;
}

/* What each plane of two samples takes, `length` elements from the start and as many from the middle. */
void coral_survey(const uint8_t *raw, const uint8_t *base, size_t n, int item, size_t length, uint32_t *sizes) {
    uint32_t counts[2][8][256];
    const size_t middle = n / 2 * (size_t)item;
    memset(counts, 0, sizeof counts);
    loops_for(item)->survey(raw, base, length, counts[0]);
    loops_for(item)->survey(raw + middle, base ? base + middle : NULL, length, counts[1]);
    for (int j = 0; j < item; j++) {
        for (int i = 0; i < 256; i++) counts[0][j][i] += counts[1][j][i];
        sizes[j] = length ? stored_size(counts[0][j], (uint32_t)(2 * length)) : 0;
    }
}
