/* zstd frames (RFC 8878) of the kind that huffman.h makes: how they are read. Any other frame, be it damaged or only made
 * in another way, is refused, and zstd itself says what it is; so nothing may be taken here that zstd would refuse.
 * Frames may be hostile: every length is checked before it is used.
 */

/* Lookups that may follow each other in one word: so many codes of LONGEST bits, after up to 7 that are read already. */
#define LOOKUPS 5

/* Symbols that one turn of lookups may give, or write. */
#define TURN_MOST (2 * LOOKUPS)

/* Bits that must be left so that a word can be loaded. */
#define WORD_BITS 57

/* In fewer bytes pairs do not pay. */
#define PAIRS_LEAST 8192

#define LARGEST_BLOCK ((size_t)128 << 10)

/* A stream that is read from its end; of its bits the highest come first. */
typedef struct {
    const uint8_t *start;
    size_t left; /* bits that are not read yet */
    uint8_t *out, *end;
} reader_t;

/* What the next LONGEST bits say: of the first symbol, `codes` has its code's length above it; of up to two,
 * `pairs` has the bits in the lowest byte, the number of symbols in the next one, then the symbols. */
typedef struct {
    uint32_t codes[1 << LONGEST], pairs[1 << LONGEST];
} lookup_t;

/* Whether there is the bit that marks the end. */
static int open_stream(reader_t *reader, const uint8_t *start, size_t length) {
    if (!length || !start[length - 1]) return 0;
    reader->start = start;
    reader->left = 8 * (length - 1) + (size_t)log2_of(start[length - 1]);
    return 1;
}

/* The next `width` bits, at most 16; zeros follow the last ones. */
static inline uint32_t peek_bits(const reader_t *reader, unsigned width) {
    const size_t stop = (reader->left + 7) / 8, first = stop > 3 ? stop - 3 : 0;
    const unsigned held = (unsigned)(reader->left - 8 * first);
    uint32_t bits = 0;
    for (size_t i = first; i < stop; i++) bits |= (uint32_t)reader->start[i] << (8 * (i - first));
    bits = held < width ? bits << (width - held) : bits >> (held - width);
    return bits & ((1u << width) - 1);
}

/* A value of `width` bits at bit `at`, counted from the lowest ones; zeros follow the last ones. */
static inline uint32_t bits_at(const uint8_t *data, size_t length, size_t at, unsigned width) {
    uint32_t bits = 0;
    for (size_t i = at / 8; i < length && i < at / 8 + 3; i++) bits |= (uint32_t)data[i] << (8 * (i - at / 8));
    return bits >> (at % 8) & ((1u << width) - 1);
}

/* The table that put_shares writes. Returns its length, or 0. */
static size_t read_shares(const uint8_t *data, size_t length, int *shares) {
    int left = STATES, weight = 0;
    size_t at = 4;
    memset(shares, 0, WEIGHTS * sizeof *shares);
    if (bits_at(data, length, 0, 4) != STATES_LOG - 5) return 0;
    while (left > 0) {
        const int most = left + 1, width = log2_of((uint32_t)most) + 1;
        const int half = 1 << (width - 1), short_ones = 2 * half - 1 - most;
        int value = (int)bits_at(data, length, at, (unsigned)width - 1);
        if (value < short_ones)
            at += (size_t)width - 1;
        else {
            value = (int)bits_at(data, length, at, (unsigned)width);
            at += (size_t)width;
            if (value >= half) value -= short_ones;
        }
        if (value < 1 || weight >= WEIGHTS) return 0; /* zstd knows shares of less than one as well */
        shares[weight++] = value - 1;
        left -= value - 1;
        if (value > 1) continue;
        uint32_t zeros;
        do {
            zeros = bits_at(data, length, at, 2);
            at += 2;
            weight += (int)zeros;
        } while (zeros == 3 && weight < WEIGHTS);
    }
    return left == 0 && (at + 7) / 8 <= length ? (at + 7) / 8 : 0;
}

/* Undoes code_weights: how many weights there are, or 0. */
static int read_weights(const uint8_t *data, size_t length, uint8_t *weights) {
    int shares[WEIGHTS], held[WEIGHTS], count = 0;
    uint8_t owners[STATES], widths[STATES], bases[STATES];
    const size_t head = read_shares(data, length, shares);
    reader_t reader;
    if (!head || !open_stream(&reader, data + head, length - head)) return 0;
    spread_shares(shares, owners);
    memcpy(held, shares, sizeof held);
    for (int state = 0; state < STATES; state++) {
        const int number = held[owners[state]]++, width = STATES_LOG - log2_of((uint32_t)number);
        widths[state] = (uint8_t)width;
        bases[state] = (uint8_t)((number << width) - STATES);
    }
    uint32_t states[2];
    for (int i = 0; i < 2; i++) {
        if (reader.left < STATES_LOG) return 0;
        states[i] = peek_bits(&reader, STATES_LOG);
        reader.left -= STATES_LOG;
    }
    for (;; count++) { /* the one that has no bits left is the last but one */
        uint32_t *state = &states[count & 1];
        if (count > SYMBOLS - 3) return 0;
        weights[count] = owners[*state];
        if (reader.left < widths[*state]) break;
        const unsigned width = widths[*state];
        *state = bases[*state] + peek_bits(&reader, width);
        reader.left -= width;
    }
    weights[count + 1] = owners[states[~count & 1]];
    return count + 2;
}

/* The weights of all symbols, the last of which is not written: it makes the sum a power of two. Returns the length of
 * the description, or 0; `longest` becomes that of the codes. */
static size_t read_description(const uint8_t *data, size_t length, uint8_t *weights, int *longest) {
    if (!length) return 0;
    size_t used = data[0];
    int count;
    if (used < 128) {
        if (used >= length) return 0;
        count = read_weights(data + 1, used, weights);
    } else {
        count = data[0] - 127;
        used = (size_t)(count + 1) / 2;
        if (used >= length) return 0;
        for (int i = 0; i < count; i++) weights[i] = i % 2 ? data[1 + i / 2] & 15 : data[1 + i / 2] >> 4;
    }
    uint32_t sum = 0, ones = 0;
    for (int i = 0; i < count; i++) {
        if (weights[i] > LONGEST) return 0;
        sum += (1u << weights[i]) >> 1;
        ones += weights[i] == 1;
    }
    if (!sum || sum >= 1u << LONGEST) return 0;
    *longest = log2_of(sum) + 1;
    const uint32_t rest = (1u << *longest) - sum;
    if (rest & (rest - 1)) return 0;
    weights[count] = (uint8_t)(log2_of(rest) + 1);
    ones += weights[count] == 1;
    memset(weights + count + 1, 0, (size_t)(SYMBOLS - 1 - count));
    return ones >= 2 && ones % 2 == 0 ? 1 + used : 0;
}

/* Codes are given out as assign_codes does: the longest first, those of one length in the order of their symbols. */
static void fill_codes(uint32_t *codes, const uint8_t *weights, int longest) {
    uint32_t *places[WEIGHTS + 1];
    size_t numbers[WEIGHTS + 1] = {0};
    for (int symbol = 0; symbol < SYMBOLS; symbol++) numbers[weights[symbol]]++;
    for (int weight = 1; weight <= longest; weight++) {
        places[weight] = codes;
        codes += numbers[weight] << (weight - 1 + LONGEST - longest);
    }
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        const int weight = weights[symbol];
        if (!weight) continue;
        const size_t span = (size_t)1 << (weight - 1 + LONGEST - longest);
        for (size_t i = 0; i < span; i++) places[weight][i] = (uint32_t)(symbol | (longest + 1 - weight) << 8);
        places[weight] += span;
    }
}

/* What `codes` says, and of the second symbol as well where there are enough symbols for it to pay. */
FAST static void fill_pairs(uint32_t *restrict pairs, const uint32_t *restrict codes, int has_pairs) {
    for (uint32_t bits = 0; bits < 1 << LONGEST; bits++) {
        const uint32_t code = codes[bits], length = code >> 8, one = length | 1 << 8 | (code & 255) << 16;
        const uint32_t next = codes[bits << length & ((1 << LONGEST) - 1)], both = length + (next >> 8);
        const uint32_t two = both | 2 << 8 | (code & 255) << 16 | next << 24;
        pairs[bits] = has_pairs && both <= LONGEST ? two : one;
    }
}

/* A stream as turns take it: the next bits are the highest of `word`, whose lowest one that is set is no bit of the
 * stream but shows how far the word was shifted; it stands in the place of one that is not read in the same turn. */
typedef struct {
    const uint8_t *start, *at;
    uint64_t word;
    uint8_t *out, *end;
} turning_t;

static turning_t begin_turns(const reader_t *reader) {
    turning_t stream = {reader->start, reader->start, 0, reader->out, reader->out};
    if (reader->left < WORD_BITS) return stream; /* which can take none */
    const size_t stop = (reader->left + 7) / 8;
    stream.at += stop - 8;
    stream.word = (LOAD(uint64_t, stream.at, 0) | 1) << (8 * stop - reader->left);
    stream.end = reader->end;
    return stream;
}

static void end_turns(reader_t *reader, const turning_t *stream) {
    reader->out = stream->out;
    if (stream->word) reader->left = (size_t)(8 * (stream->at - stream->start) + 64 - __builtin_ctzll(stream->word));
}

/* How many turns a stream can take, whatever it holds; each of them takes 7 bytes at most. */
static inline size_t safe_turns(const turning_t *stream) {
    return smaller((size_t)(stream->end - stream->out) / TURN_MOST, (size_t)(stream->at - stream->start) / 7);
}

#define LOOK_UP(stream)                                                                                                \
    do {                                                                                                               \
        const uint32_t entry = pairs[stream.word >> (64 - LONGEST)];                                                   \
        stream.word <<= entry & 63;                                                                                    \
        STORE(uint16_t, stream.out, 0, (uint16_t)(entry >> 16));                                                       \
        stream.out += entry >> 8 & 255;                                                                                \
    } while (0)

#define LOAD_WORD(stream)                                                                                              \
    do {                                                                                                               \
        const int shift = __builtin_ctzll(stream.word);                                                                \
        stream.at -= shift >> 3;                                                                                       \
        stream.word = (LOAD(uint64_t, stream.at, 0) | 1) << (shift & 7);                                               \
    } while (0)

/* As many turns as all streams can take at once. */
SHIFTS static void read_turns(reader_t *readers, const uint32_t *pairs) {
    turning_t one = begin_turns(&readers[0]), two = begin_turns(&readers[1]);
    turning_t three = begin_turns(&readers[2]), four = begin_turns(&readers[3]);
    for (;;) {
        const size_t first = smaller(safe_turns(&one), safe_turns(&two));
        size_t turns = smaller(first, smaller(safe_turns(&three), safe_turns(&four)));
        if (!turns) break;
        for (; turns; turns--) {
            for (int i = 0; i < LOOKUPS; i++) {
                LOOK_UP(one);
                LOOK_UP(two);
                LOOK_UP(three);
                LOOK_UP(four);
            }
            LOAD_WORD(one);
            LOAD_WORD(two);
            LOAD_WORD(three);
            LOAD_WORD(four);
        }
    }
    end_turns(&readers[0], &one);
    end_turns(&readers[1], &two);
    end_turns(&readers[2], &three);
    end_turns(&readers[3], &four);
}

/* What is left of a stream, a symbol at a time; whether it ends where its bits end. */
static int finish_stream(reader_t *reader, const uint32_t *codes) {
    while (reader->out < reader->end) {
        const size_t stop = (reader->left + 7) / 8, held = smaller(stop, 8);
        uint64_t word = 0;
        memcpy(&word, reader->start + stop - held, held);
        word <<= (8 * (stop - held) + 64 - reader->left) & 63;
        for (int i = 0; i < LOOKUPS && reader->out < reader->end; i++) {
            const uint32_t code = codes[word >> (64 - LONGEST)], length = code >> 8;
            if (reader->left < length) return 0;
            word <<= length;
            reader->left -= length;
            *reader->out++ = (uint8_t)code;
        }
    }
    return !reader->left;
}

/* A compressed block of literals and nothing else, at most `room` bytes. Returns how many it gives, or 0. */
static size_t read_literals(const uint8_t *block, size_t length, uint8_t *out, size_t room) {
    if (length < 5 || (block[0] & 3) != 2 || !(block[0] >> 2 & 3) || block[length - 1]) return 0;
    const size_t format = block[0] >> 2 & 3, head = format + 2, width = 4 * format + 6;
    const uint64_t sizes = LOAD(uint32_t, block, 0) | (uint64_t)block[4] << 32, mask = ((uint64_t)1 << width) - 1;
    const size_t n = sizes >> 4 & mask, content = sizes >> (4 + width) & mask;
    uint8_t weights[SYMBOLS + 1];
    int longest;
    if (n < LEAST || n > room || n > LARGEST_BLOCK || head + content + 1 != length) return 0;
    const size_t described = read_description(block + head, content, weights, &longest);
    if (!described || content - described < 6 + STREAMS) return 0;
    const uint8_t *jumps = block + head + described, *at = jumps + 6, *stop = block + length - 1;
    const size_t quarter = (n + STREAMS - 1) / STREAMS;
    reader_t readers[STREAMS];
    for (size_t part = 0; part < STREAMS; part++) {
        const size_t held = (size_t)(stop - at), taken = part < 3 ? LOAD(uint16_t, jumps, part) : held;
        if (taken > held || !open_stream(&readers[part], at, taken)) return 0;
        readers[part].out = out + part * quarter;
        readers[part].end = part < 3 ? readers[part].out + quarter : out + n;
        at += taken;
    }
    lookup_t lookup;
    fill_codes(lookup.codes, weights, longest);
    fill_pairs(lookup.pairs, lookup.codes, n >= PAIRS_LEAST);
    read_turns(readers, lookup.pairs);
    for (int part = 0; part < STREAMS; part++)
        if (!finish_stream(&readers[part], lookup.codes)) return 0;
    return n;
}

/* Whether a frame is of this kind and holds exactly n bytes; else those at `out` are any. */
static int read_frame(const uint8_t *frame, size_t length, uint8_t *out, size_t n) {
    if (length < 6 || LOAD(uint32_t, frame, 0) != 0xFD2FB528 || (frame[4] & 0x3F) != 0x20) return 0;
    const size_t flag = frame[4] >> 6, wide = (size_t)1 << flag, most = n < LARGEST_BLOCK ? n : LARGEST_BLOCK;
    size_t at = 5 + wide, done = 0;
    if (flag < 1 || flag > 2 || length < at || n < LEAST) return 0;
    if (flag == 1 ? LOAD(uint16_t, frame + 5, 0) + (size_t)256 != n : LOAD(uint32_t, frame + 5, 0) != n) return 0;
    for (int is_last = 0; !is_last; ) {
        if (length - at < 4) return 0;
        const uint32_t head = frame[at] | (uint32_t)frame[at + 1] << 8 | (uint32_t)frame[at + 2] << 16;
        const size_t size = head >> 3, kind = head >> 1 & 3, held = kind == RLE_BLOCK ? 1 : size;
        size_t given = size;
        at += 3;
        if (size > most || held > length - at) return 0;
        if (kind == COMPRESSED_BLOCK)
            given = read_literals(frame + at, size, out + done, n - done);
        else if (kind > COMPRESSED_BLOCK || size > n - done)
            return 0;
        else if (kind == RLE_BLOCK)
            memset(out + done, frame[at], size);
        else
            memcpy(out + done, frame + at, size);
        if (!given) return 0;
        done += given;
        at += held;
        is_last = head & 1;
    }
    return at == length && done == n;
}

/* read_frame, for tests. */
int coral_unhuffman(const uint8_t *frame, size_t length, uint8_t *out, size_t n) { return read_frame(frame, length, out, n); }
