/* Differences in the order of their bases' keys, cut into segments, each of them coded in its own mode; grouped.py says
 * how. */

#define SEGMENT 16384
#define SEGMENTS_MOST 256
#define MODE_PLANES 0

/* Elements of a segment that its mode is judged by. */
#define JUDGED 2048

/* Fewer bits than this are worth the search for repetitions: a Huffman code spends one on every byte. */
#define RARE_BITS 0.3

/* What bytes above the lowest a small difference has: the bias's own. */
#define UPPER(item, j) ((item) > 2 && (j) < (item) - 1 ? 0x80 : 0)

/* How often each key occurs in each quarter, and where segments end. Returns how many there are. */
size_t coral_count(const uint8_t *base, size_t n, int item, uint32_t *counts, uint64_t *stops) {
    size_t found = 0, start = 0, stop = 0;
    loops_for(item)->count(base, n, counts);
    for (int key = 0; key < 256; key++) {
        for (int way = 0; way < WAYS; way++) stop += counts[256 * way + key];
        if (stop - start < SEGMENT) continue;
        stops[found++] = start = stop;
    }
    if (stop > start) stops[found++] = stop;
    return found;
}

/* Where the first element of each key goes, for each quarter. */
static void make_places(const uint32_t *counts, uint32_t *places) {
    uint32_t place = 0;
    for (int key = 0; key < 256; key++)
        for (int way = 0; way < WAYS; way++) {
            places[256 * way + key] = place;
            place += counts[256 * way + key];
        }
}

/* The cheapest of the modes for n elements, whose planes are `apart` from each other, and how many bits of an element
 * it takes, about. */
static int cheapest_mode(const uint8_t *planes, size_t apart, size_t n, int item, double *bits) {
    uint32_t counts[256] = {0}, total = (uint32_t)n;
    double most = 0;
    for (size_t i = 0; i < n; i++) counts[planes[i]]++;
    *bits = entropy_of(counts, 256, 0, total);
    if (*bits < 1) *bits = 1;
    for (int j = 1; j < item; j++) {
        const uint8_t *plane = planes + (size_t)j * apart;
        uint32_t large = 0;
        for (size_t i = 0; i < n; i++) large += plane[i] != UPPER(item, j);
        const double share = large / (double)total;
        if (large) *bits += 8 * share > 1 ? 8 * share : 1;
        if (share > most) most = share;
    }
    int best = MODE_PLANES;
    for (int width = 4; width > 1; width -= 2) {
        const int half = (1 << (width - 1)) - 1;
        uint32_t others = total;
        for (int i = 0x80 - half; i <= 0x80 + half; i++) others -= counts[i];
        double needed = entropy_of(counts + 0x80 - half, 2 * half + 1, others, total);
        if (needed >= RARE_BITS && needed < width / 8.0) needed = width / 8.0;
        needed += (others / (double)total + most) * 8 * item;
        if (needed >= *bits) continue;
        *bits = needed;
        best = width;
    }
    return best;
}

/* Pack n elements into `width` bits each. What does not fit is kept whole in `escaped`, of which each plane has `room`,
 * from `count` on; returns the count after. `codes` is scratch, a byte an element and 8 more. */
FAST static size_t narrow(const uint8_t *planes, size_t n, int item, int width, uint8_t *restrict codes,
                          uint8_t *restrict packed, uint8_t *restrict escaped, size_t room, size_t count) {
    const uint8_t escape = (uint8_t)((1u << width) - 1), least = (uint8_t)(0x80 - (escape >> 1));
    const size_t per_byte = 8 / (size_t)width;
    for (size_t i = 0; i < n; i++) {
        uint8_t code = (uint8_t)(planes[i] - least); /* wraps around below `least` */
        codes[i] = code < escape ? code : escape;
    }
    for (int j = 1; j < item; j++) {
        const uint8_t *plane = planes + (size_t)j * n, upper = UPPER(item, j);
        for (size_t i = 0; i < n; i++) codes[i] |= (uint8_t)(plane[i] == upper ? 0 : escape);
    }
    for (const uint8_t *at = codes; (at = memchr(at, escape, (size_t)(codes + n - at))); at++) {
        for (int j = 0; j < item; j++) escaped[(size_t)j * room + count] = planes[(size_t)j * n + (size_t)(at - codes)];
        count++;
    }
    memset(codes + n, 0, 8); /* a last byte that is not full */
    for (size_t i = 0; i < n; i += per_byte) {
        if (width == 2)
            *packed++ = (uint8_t)(codes[i] | codes[i + 1] << 2 | codes[i + 2] << 4 | codes[i + 3] << 6);
        else
            *packed++ = (uint8_t)(codes[i] | codes[i + 1] << 4);
    }
    return count;
}

/* Undo the above; a count above `held` says that there were fewer escaped elements than codes that call for one. */
FAST static size_t widen(const uint8_t *restrict packed, size_t n, int item, int width, const uint8_t *const *escaped,
                         size_t held, size_t count, uint8_t *restrict planes) {
    const uint8_t escape = (uint8_t)((1u << width) - 1), least = (uint8_t)(0x80 - (escape >> 1));
    const uint8_t marker = (uint8_t)(least + escape);
    const size_t per_byte = 8 / (size_t)width, whole = n / per_byte * per_byte;
    if (width == 2)
        for (size_t i = 0; i < whole / 4; i++) {
            uint32_t byte = packed[i];
            uint32_t four = (byte & 3) | (byte & 12) << 6 | (byte & 48) << 12 | (byte & 192) << 18;
            STORE(uint32_t, planes, i, four + least * 0x01010101u);
        }
    else
        for (size_t i = 0; i < whole / 2; i++) {
            uint16_t two = (uint16_t)((packed[i] & 15) | (packed[i] >> 4) << 8);
            STORE(uint16_t, planes, i, (uint16_t)(two + least * 0x0101u));
        }
    for (size_t i = whole; i < n; i++)
        planes[i] = (uint8_t)((packed[i / per_byte] >> (width * (int)(i % per_byte)) & escape) + least);
    for (int j = 1; j < item; j++) memset(planes + (size_t)j * n, UPPER(item, j), n);
    for (uint8_t *at = planes; (at = memchr(at, marker, (size_t)(planes + n - at))); at++) {
        if (count < held)
            for (int j = 0; j < item; j++) at[(size_t)j * n] = escaped[j][count];
        count++;
    }
    return count;
}

static size_t packed_length(size_t n, int width) { return (n * (size_t)width + 7) / 8; }

/* Where things lie in the memory that elements are grouped in. */
typedef struct {
    uint8_t *planes, *values, *escaped, *packed, *codes;
} workplace_t;

/* Bytes of it. */
size_t coral_group_room(size_t n, int item) { return 3 * n * (size_t)item + n + SEGMENTS_MOST + n + 8; }

static workplace_t divide(uint8_t *room, size_t n, int item) {
    const size_t whole = n * (size_t)item;
    uint8_t *packed = room + 3 * whole;
    return (workplace_t){room, room + whole, room + 2 * whole, packed, packed + n + SEGMENTS_MOST};
}

/* Sort the differences, cut them into segments and choose the mode of each. What the streams are is in `rows`, at most
 * item for each segment and item more, by their places in `room`. Returns how many segments there are; `found` is how
 * many rows, and how many escaped elements. */
size_t coral_group(const uint8_t *raw, const uint8_t *base, size_t n, int item, uint8_t *room, uint8_t *modes,
                   stream_row_t *rows, uint64_t *found) {
    const workplace_t in = divide(room, n, item);
    const loops_t *loops = loops_for(item);
    uint32_t counts[WAYS * 256], places[WAYS * 256];
    uint64_t stops[SEGMENTS_MOST];
    const size_t segments = coral_count(base, n, item, counts, stops);
    size_t start = 0, used = 0, escaped = 0;
    stream_row_t *row = rows;
    make_places(counts, places);
    loops->sort(raw, base, n, places, in.values);
    for (size_t i = 0; i < segments; start = stops[i++]) {
        const size_t length = stops[i] - start;
        uint8_t *planes = in.planes + start * (size_t)item, *packed = in.packed + used;
        double bits;
        uint8_t *parts[8];
        for (int j = 0; j < item; j++) parts[j] = planes + (size_t)j * length;
        loops->split(in.values + start * (size_t)item, NULL, length, parts);
        modes[i] = (uint8_t)cheapest_mode(planes, length, smaller(length, JUDGED), item, &bits);
        if (modes[i] == MODE_PLANES) {
            for (int j = 0; j < item; j++)
                *row++ = (stream_row_t){(uint64_t)(planes - room) + (size_t)j * length, length, SKEWED, 0};
            continue;
        }
        escaped = narrow(planes, length, item, modes[i], in.codes, packed, in.escaped, n, escaped);
        *row++ = (stream_row_t){(uint64_t)(packed - room), packed_length(length, modes[i]),
                                bits < RARE_BITS ? REPEATING : SKEWED, 0};
        used += packed_length(length, modes[i]);
    }
    for (int j = 0; j < item; j++)
        *row++ = (stream_row_t){(uint64_t)(in.escaped - room) + (size_t)j * n, escaped, SKEWED, 0};
    found[0] = (uint64_t)(row - rows);
    found[1] = escaped;
    return segments;
}

/* Undo the above, so many elements having `escaped`. Returns whether the streams are what they should be; else what is
 * in `out` is any. `out` may be `base`, and `room` is for two of them. */
int coral_ungroup(const streams_t *streams, const uint8_t *modes, const uint64_t *stops, size_t segments,
                  size_t escaped, const uint32_t *counts, const uint8_t *base, size_t n, int item, uint8_t *room,
                  uint8_t *out) {
    const loops_t *loops = loops_for(item);
    const size_t width = (size_t)item;
    uint8_t *values = room + n * width;
    const uint8_t *parts[8], *large[8];
    uint32_t places[WAYS * 256];
    size_t start = 0, done = 0, next = 0;
    if (streams->count < width || escaped > n) return 0;
    const size_t last = streams->count - width;
    for (size_t j = 0; j < width; j++) {
        if (streams->lengths[last + j] != escaped) return 0;
        large[j] = stream_at(streams, last + j);
    }
    for (size_t i = 0; i < segments; start = stops[i++]) {
        const size_t m = stops[i] - start, is_packed = modes[i] == 4 || modes[i] == 2, used = is_packed ? 1 : width;
        if ((!is_packed && modes[i] != MODE_PLANES) || used > last - next) return 0;
        for (size_t j = 0; j < width; j++) {
            if (j < used && streams->lengths[next + j] != (is_packed ? packed_length(m, modes[i]) : m)) return 0;
            parts[j] = is_packed ? room + j * m : stream_at(streams, next + j);
        }
        if (is_packed) done = widen(stream_at(streams, next), m, item, modes[i], large, escaped, done, room);
        loops->join(parts, NULL, m, values + start * width);
        next += used;
    }
    if (next != last || done != escaped) return 0;
    make_places(counts, places);
    loops->unsort(values, base, n, places, out);
    return 1;
}
