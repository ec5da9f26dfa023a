/* Streams: bytes one after the other, in a payload as they are or as zstd frames, behind a table of their sizes. */

#define COMPRESSED (1u << 31)

/* How to store a stream. */
enum { PLAIN, SKEWED, REPEATING };

/* A stream of a payload that is made: where it lies among the bytes of all, how long it is, and its size as the table
 * has it. kernel.py has the same as a row of an array. */
typedef struct {
    uint64_t start, length, way, size;
} stream_row_t;

static int is_constant(const uint8_t *data, size_t n) { return memcmp(data, data + 1, n - 1) == 0; }

/* Put the streams from `first` on into a payload, in which there is room for all of them as they are; those before are
 * there. Returns the first that is left to zstd, its size being where it is to go, else their number. */
size_t coral_pack(const uint8_t *data, stream_row_t *rows, size_t first, size_t count, uint8_t *payload) {
    const uint8_t *start = payload;
    for (size_t i = 0; i < count; i++) {
        stream_row_t *row = &rows[i];
        const uint8_t *from = data + row->start;
        if (i >= first && (row->way == PLAIN || row->length == 0)) {
            memcpy(payload, from, row->length);
            row->size = row->length;
        } else if (i >= first) {
            row->size = (uint64_t)(payload - start);
            if (row->way == REPEATING && !is_constant(from, row->length)) return i;
            const size_t size = coral_huffman(from, row->length, payload, row->length);
            if (!size) return i;
            row->size = size | COMPRESSED;
        }
        payload += row->size & ~COMPRESSED;
    }
    return count;
}

/* Split elements, or their differences, and pack the planes; `room` is for as many bytes. Returns as coral_pack. */
size_t coral_pack_planes(const uint8_t *raw, const uint8_t *base, size_t n, int item, uint8_t *room, stream_row_t *rows,
                         uint8_t *payload) {
    uint8_t *planes[8];
    size_t stored = 0;
    for (size_t j = 0; j < (size_t)item; j++) {
        const int is_stored = stored == j && rows[j].way == PLAIN; /* where it goes is known already */
        planes[j] = is_stored ? payload + j * n : room + j * n;
        rows[j].start = j * n;
        rows[j].length = rows[j].size = n;
        stored += is_stored;
    }
    loops_for(item)->split(raw, base, n, planes);
    return coral_pack(room, rows, stored, (size_t)item, payload);
}

/* Where streams that were read are: a place is one in the payload, or, from its length on, one in `room`. */
typedef struct {
    const uint8_t *payload;
    uint64_t length;
    const uint8_t *room;
    const uint64_t *places, *lengths;
    uint64_t count;
} streams_t;

static const uint8_t *stream_at(const streams_t *streams, size_t i) {
    const uint64_t place = streams->places[i];
    return place < streams->length ? streams->payload + place : streams->room + (place - streams->length);
}

/* Read the streams from `first` on, given how long each is; in `room` is as much as all of them need. Returns the first
 * that is not plain and not a frame of ours, or that is damaged; else their number. Payloads may be hostile. */
size_t coral_unpack(const uint8_t *payload, size_t length, const uint64_t *lengths, size_t first, size_t count,
                    uint8_t *room, uint64_t *places) {
    if (count > length / 4) return first;
    size_t at = 4 * count, used = 0;
    for (size_t i = 0; i < count; i++) {
        const uint32_t size = LOAD(uint32_t, payload, i), stored = size & ~COMPRESSED;
        if (stored > length - at) return i < first ? first : i;
        if (i >= first) {
            places[i] = size & COMPRESSED ? length + used : at;
            if (size & COMPRESSED ? !read_frame(payload + at, stored, room + used, lengths[i]) : stored != lengths[i])
                return i;
        }
        at += stored;
        used += lengths[i];
    }
    return count;
}

void coral_join(const streams_t *streams, const uint8_t *base, size_t n, int item, uint8_t *out) {
    const uint8_t *planes[8];
    for (int j = 0; j < item; j++) planes[j] = stream_at(streams, (size_t)j);
    loops_for(item)->join(planes, base, n, out);
}
