/* zstd frames (RFC 8878) of bytes that are skewed but do not repeat: how they are made. Blocks hold literals and no
 * sequences; the literals are in a Huffman code of the block's own, in four streams, one for each quarter.
 */
/* Half of what a block may hold: statistics drift, and a description takes some 60 bytes. */
#define BLOCK_MOST ((size_t)64 << 10)

/* Of a frame, and of its last block; in fewer bytes a zstd encoder with a single stream does better. */
#define LEAST 256
#define STREAMS 4
#define SYMBOLS 256
#define LONGEST 11 /* bits of a code; RFC 8878, 4.2.1 */

/* Symbols whose codes may follow up to 7 bits in one word. */
#define TURN 5

/* Symbols of a stream that are left to the slower way: at a bit or more each they fill a word, so that until then whole
 * words can be stored without writing past the stream's end. */
#define REST 64

/* Weights (of which LONGEST + 1 are possible) are in an FSE code of 64 states. */
#define WEIGHTS (LONGEST + 1)
#define STATES_LOG 6
#define STATES (1 << STATES_LOG)

/* A weight takes at most STATES_LOG bits. */
#define DESCRIPTION_ROOM 256

enum { RAW_BLOCK, RLE_BLOCK, COMPRESSED_BLOCK };

/* Bits, the first in the lowest place; the bytes beyond the last must be free for a word. */
typedef struct {
    uint8_t *at;
    uint64_t held;
    unsigned count; /* fewer than 8 before and after each call */
} bits_t;

static inline void put_bits(bits_t *bits, uint64_t value, unsigned width) {
    bits->held |= value << bits->count;
    bits->count += width;
    STORE(uint64_t, bits->at, 0, bits->held);
    bits->at += bits->count >> 3;
    bits->held >>= bits->count & ~7u;
    bits->count &= 7;
}

/* Streams are read from their end, which a bit that is set marks. Returns the byte after it. */
static uint8_t *end_bits(bits_t *bits) {
    put_bits(bits, 1, 1);
    return bits->at + (bits->count != 0);
}

typedef struct {
    uint8_t lengths[SYMBOLS]; /* of the codes, in bits; 0 for what does not occur */
    int longest, last;        /* the longest length, the last symbol that occurs */
    uint64_t codes[SYMBOLS];  /* the code in the highest bits, its length in the lowest */
    uint8_t description[DESCRIPTION_ROOM];
    size_t description_length;
} tree_t;

/* Occurrences in each quarter; in two parts each, because an increment waits for the one before it where the bytes are
 * the same. The last quarter may be up to three bytes shorter than the others. */
static void count_symbols(const uint8_t *data, size_t n, size_t quarter, uint32_t counts[STREAMS][SYMBOLS]) {
    uint32_t others[STREAMS][SYMBOLS];
    const size_t shortest = n - (STREAMS - 1) * quarter, pairs = shortest / 2;
    memset(counts, 0, sizeof others);
    memset(others, 0, sizeof others);
    for (size_t i = 0; i < pairs; i++)
        for (size_t part = 0; part < STREAMS; part++) {
            counts[part][data[part * quarter + 2 * i]]++;
            others[part][data[part * quarter + 2 * i + 1]]++;
        }
    for (size_t part = 0; part < STREAMS; part++) {
        const size_t stop = part < STREAMS - 1 ? (part + 1) * quarter : n;
        for (size_t i = part * quarter + 2 * pairs; i < stop; i++) counts[part][data[i]]++;
        for (int symbol = 0; symbol < SYMBOLS; symbol++) counts[part][symbol] += others[part][symbol];
    }
}

/* By count, the rarest first, in passes of 6 bits. A key is a count, of at most 17 bits, and its symbol. */
static void sort_keys(uint32_t *keys, int count) {
    uint32_t spare[SYMBOLS], *from = keys, *to = spare, all = 0;
    for (int i = 0; i < count; i++) all |= keys[i];
    for (int shift = 8; all >> shift; shift += 6) {
        int places[65] = {0};
        for (int i = 0; i < count; i++) places[(from[i] >> shift & 63) + 1]++;
        for (int i = 0; i < 64; i++) places[i + 1] += places[i];
        for (int i = 0; i < count; i++) to[places[from[i] >> shift & 63]++] = from[i];
        uint32_t *swap = from;
        from = to;
        to = swap;
    }
    if (from != keys) memcpy(keys, from, (size_t)count * sizeof *keys);
}

/* How many codes there are of each length, at most LONGEST, given sorted keys, at least two. */
static void count_lengths(const uint32_t *keys, int count, int *numbers) {
    uint32_t weights[2 * SYMBOLS];
    int parents[2 * SYMBOLS], leaf = 0, inner = count;
    uint8_t depths[2 * SYMBOLS] = {0};
    for (int i = 0; i < count; i++) weights[i] = keys[i] >> 8;
    for (int made = count; made < 2 * count - 1; made++) {
        weights[made] = 0;
        for (int child = 0; child < 2; child++) { /* the lightest of the leaves and of the inner nodes */
            int least = leaf < count && (inner == made || weights[leaf] <= weights[inner]) ? leaf++ : inner++;
            weights[made] += weights[least];
            parents[least] = made;
        }
    }
    memset(numbers, 0, (LONGEST + 1) * sizeof *numbers);
    int excess = -(1 << LONGEST); /* of the sum of all 2^-length over 1, which is what a code has room for */
    for (int i = 2 * count - 3; i >= 0; i--) {
        depths[i] = depths[parents[i]] + 1;
        if (i >= count) continue;
        int length = depths[i] < LONGEST ? depths[i] : LONGEST;
        numbers[length]++;
        excess += 1 << (LONGEST - length);
    }
    for (; excess > 0; excess--) { /* a shorter code gets one bit more, and one of the longest its other half */
        int length = LONGEST - 1;
        while (!numbers[length]) length--;
        numbers[length]--;
        numbers[length + 1] += 2;
        numbers[LONGEST]--;
    }
}

/* Codes of the longest length count up from 0 in the order of their symbols, then those of the next, one bit less. */
static void assign_codes(tree_t *tree, const int *numbers) {
    uint64_t next[LONGEST + 1] = {0}, code = 0;
    for (int length = tree->longest; length > 0; length--) {
        next[length] = code;
        code = (code + (uint64_t)numbers[length]) >> 1;
    }
    for (int symbol = 0; symbol < SYMBOLS; symbol++) {
        const int length = tree->lengths[symbol];
        tree->codes[symbol] = length ? next[length]++ << (64 - length) | (uint64_t)length : 0;
    }
}

/* The share of each weight in the states: at least one of those that occur, and of weight 0, because a weight that had
 * all states would take no bits, and nothing would tell when to stop. */
static void share_states(const int *counts, int total, int *shares) {
    int sum = 0, most = 0;
    for (int weight = 0; weight < WEIGHTS; weight++) {
        shares[weight] = (counts[weight] * STATES + total / 2) / total;
        if (!shares[weight] && (counts[weight] || !weight)) shares[weight] = 1;
        sum += shares[weight];
    }
    for (; sum != STATES; sum += sum < STATES ? 1 : -1) {
        for (int weight = 0; weight < WEIGHTS; weight++)
            if (shares[weight] > shares[most]) most = weight;
        shares[most] += sum < STATES ? 1 : -1;
    }
}

/* The table of an FSE code; RFC 8878, 4.1.1. */
static void put_shares(bits_t *bits, const int *shares) {
    int left = STATES, weight = 0;
    put_bits(bits, STATES_LOG - 5, 4);
    while (left > 0) {
        const int most = left + 1, width = log2_of((uint32_t)most) + 1; /* of a share plus one */
        const int half = 1 << (width - 1), short_ones = 2 * half - 1 - most, share = shares[weight++];
        const int value = share + 1;
        if (value < short_ones)
            put_bits(bits, (uint64_t)value, (unsigned)width - 1);
        else
            put_bits(bits, (uint64_t)(value < half ? value : value + short_ones), (unsigned)width);
        left -= share;
        if (share) continue;
        int zeros = 0;
        while (!shares[weight + zeros]) zeros++;
        weight += zeros;
        for (; zeros >= 3; zeros -= 3) put_bits(bits, 3, 2);
        put_bits(bits, (uint64_t)zeros, 2);
    }
}

/* Which weight each state belongs to; RFC 8878, 4.1.1. */
static void spread_shares(const int *shares, uint8_t *owners) {
    for (int weight = 0, place = 0; weight < WEIGHTS; weight++)
        for (int i = 0; i < shares[weight]; i++) {
            owners[place] = (uint8_t)weight;
            place = (place + (STATES >> 1) + (STATES >> 3) + 3) % STATES;
        }
}

/* The weights in an FSE code, by two states in turn, from the last to the first. Returns the length. */
static size_t code_weights(const uint8_t *weights, int total, uint8_t *out) {
    int counts[WEIGHTS] = {0}, shares[WEIGHTS], firsts[WEIGHTS], held[WEIGHTS] = {0}, sum = 0;
    uint8_t owners[STATES], states[STATES];
    for (int i = 0; i < total; i++) counts[weights[i]]++;
    share_states(counts, total, shares);
    bits_t bits = {out, 0, 0};
    put_shares(&bits, shares);
    bits = (bits_t){bits.at + (bits.count != 0), 0, 0};
    for (int weight = 0; weight < WEIGHTS; weight++) {
        firsts[weight] = sum;
        sum += shares[weight];
    }
    spread_shares(shares, owners);
    for (int state = 0; state < STATES; state++) {
        const int weight = owners[state];
        states[firsts[weight] + held[weight]++] = (uint8_t)state;
    }
    uint32_t current[2] = {0};
    for (int i = total - 1; i >= 0; i--) {
        const int weight = weights[i];
        const uint32_t share = (uint32_t)shares[weight], from = STATES + current[i & 1];
        uint32_t number = 0; /* of the weight's states; the first needs at least one more bit, where reading stops */
        if (i < total - 2) {
            unsigned width = (unsigned)(STATES_LOG - log2_of(share));
            if (from >> width < share) width--;
            put_bits(&bits, from & ((1u << width) - 1), width);
            number = (from >> width) - share;
        }
        current[i & 1] = states[firsts[weight] + (int)number];
    }
    put_bits(&bits, current[1], STATES_LOG);
    put_bits(&bits, current[0], STATES_LOG);
    return (size_t)(end_bits(&bits) - out);
}

/* Weights of all symbols but the last, which follows from the others: 4 bits each, or in an FSE code. RFC 8878, 4.2.1.
 * The length is 0 where neither is possible. */
static void describe(tree_t *tree) {
    uint8_t weights[SYMBOLS];
    const int total = tree->last;
    const size_t plain = (size_t)(total + 1) / 2;
    for (int i = 0; i < total; i++)
        weights[i] = tree->lengths[i] ? (uint8_t)(tree->longest + 1 - tree->lengths[i]) : 0;
    weights[total] = 0;
    const size_t coded = total > 1 ? code_weights(weights, total, tree->description + 1) : SYMBOLS;
    if (coded < 128 && (coded < plain || total > 128)) {
        tree->description[0] = (uint8_t)coded;
        tree->description_length = 1 + coded;
    } else if (total <= 128) {
        tree->description[0] = (uint8_t)(127 + total);
        for (int i = 0; i < total; i += 2)
            tree->description[1 + i / 2] = (uint8_t)(weights[i] << 4 | weights[i + 1]);
        tree->description_length = 1 + plain;
    } else
        tree->description_length = 0;
}

/* The codes of at least two different symbols. */
static void make_tree(tree_t *tree, uint32_t counts[STREAMS][SYMBOLS]) {
    uint32_t keys[SYMBOLS];
    int numbers[LONGEST + 1], kinds = 0;
    for (uint32_t symbol = 0; symbol < SYMBOLS; symbol++) {
        const uint32_t count = counts[0][symbol] + counts[1][symbol] + counts[2][symbol] + counts[3][symbol];
        if (!count) continue;
        keys[kinds++] = count << 8 | symbol;
        tree->last = (int)symbol;
    }
    sort_keys(keys, kinds);
    count_lengths(keys, kinds, numbers);
    memset(tree->lengths, 0, sizeof tree->lengths);
    tree->longest = 0;
    for (int length = LONGEST, done = 0; length > 0; length--) {
        if (numbers[length] && !tree->longest) tree->longest = length;
        for (int i = 0; i < numbers[length]; i++) tree->lengths[keys[done++] & 255] = (uint8_t)length;
    }
    assign_codes(tree, numbers);
}

/* Where a stream's next symbol is, from its end on, and what became of those after it: the bits that are not yet in a
 * whole byte are the `count` highest of `word`. */
typedef struct {
    const uint8_t *end;
    uint8_t *out;
    uint64_t word, count;
} stream_t;

#define SHIFTED(word, count) ((word) >> ((count) & 63))

/* The length below a code does no harm until the word is nearly full, which it may be after the last of a turn. */
#define TAKE_TURN(stream)                                                                                              \
    do {                                                                                                               \
        uint64_t entry;                                                                                                \
        stream.end -= TURN;                                                                                            \
        for (int i = TURN - 1; i > 0; i--) {                                                                           \
            entry = codes[stream.end[i]];                                                                              \
            stream.word = SHIFTED(stream.word, entry) | entry;                                                         \
            stream.count += entry;                                                                                     \
        }                                                                                                              \
        entry = codes[stream.end[0]];                                                                                  \
        stream.word = SHIFTED(stream.word, entry) | (entry & ~(uint64_t)15);                                           \
        stream.count += entry;                                                                                         \
        STORE(uint64_t, stream.out, 0, SHIFTED(stream.word, -stream.count));                                           \
        stream.out += stream.count >> 3 & 7;                                                                           \
        stream.count &= 7;                                                                                             \
    } while (0)

/* Two at a time, which is as many as there are registers for. */
SHIFTS static void encode_turns(stream_t *streams, size_t turns, const uint64_t *codes) {
    stream_t one = streams[0], other = streams[1];
    for (; turns; turns--) {
        TAKE_TURN(one);
        TAKE_TURN(other);
    }
    streams[0] = one;
    streams[1] = other;
}

/* The streams, each to where it is known to end up. */
static void encode_streams(const uint8_t *data, size_t n, size_t quarter, const tree_t *tree, uint8_t *out,
                           const size_t *lengths) {
    const size_t shortest = n - (STREAMS - 1) * quarter, turns = shortest < REST ? 0 : (shortest - REST) / TURN;
    stream_t streams[STREAMS];
    uint8_t *stops[STREAMS];
    for (size_t part = 0; part < STREAMS; part++) {
        streams[part] = (stream_t){part < STREAMS - 1 ? data + (part + 1) * quarter : data + n, out, 0, 0};
        stops[part] = out += lengths[part];
    }
    encode_turns(streams, turns, tree->codes);
    encode_turns(streams + 2, turns, tree->codes);
    for (size_t part = 0; part < STREAMS; part++) {
        stream_t stream = streams[part];
        uint8_t rest[(REST + TURN + STREAMS) * LONGEST / 8 + 16];
        bits_t bits = {rest, stream.count ? stream.word >> (64 - stream.count) : 0, (unsigned)stream.count};
        while (stream.end > data + part * quarter) {
            const uint8_t symbol = *--stream.end, length = tree->lengths[symbol];
            put_bits(&bits, tree->codes[symbol] >> (64 - length), length);
        }
        end_bits(&bits);
        memcpy(stream.out, rest, (size_t)(stops[part] - stream.out));
    }
}

static void store_low(uint8_t *out, uint64_t value, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) out[i] = (uint8_t)(value >> (8 * i));
}

/* A compressed block's content, where that is smaller than `room`, else 0. */
static size_t encode_literals(const uint8_t *data, size_t n, size_t quarter, uint8_t *out, size_t room) {
    uint32_t counts[STREAMS][SYMBOLS];
    tree_t tree;
    size_t lengths[STREAMS], content = 6;
    count_symbols(data, n, quarter, counts);
    make_tree(&tree, counts);
    for (int part = 0; part < STREAMS; part++) {
        uint32_t bits = 0;
        for (int symbol = 0; symbol < SYMBOLS; symbol++) bits += counts[part][symbol] * tree.lengths[symbol];
        lengths[part] = bits / 8 + 1; /* with the bit that marks the end */
        content += lengths[part];
    }
    if (content >= room) return 0;
    describe(&tree);
    content += tree.description_length;
    const size_t format = n < 1 << 10 ? 1 : n < 1 << 14 ? 2 : 3, head = format + 2, width = 4 * format + 6;
    if (!tree.description_length || head + content + 1 >= room) return 0;
    store_low(out, 2 | format << 2 | (uint64_t)n << 4 | (uint64_t)content << (4 + width), head);
    uint8_t *at = out + head;
    memcpy(at, tree.description, tree.description_length);
    at += tree.description_length;
    for (int part = 0; part < STREAMS - 1; part++) store_low(at + 2 * part, lengths[part], 2);
    encode_streams(data, n, quarter, &tree, at + 6, lengths);
    out[head + content] = 0; /* no sequences */
    return head + content + 1;
}

/* Whether bytes are as a rule the same as the next one, judged by the start of each quarter: then repetitions take less
 * than the bit or more that each byte takes here. */
FAST static int is_monotonous(const uint8_t *data, size_t quarter) {
    const size_t length = quarter - STREAMS < 1024 ? quarter - STREAMS : 1024; /* the last quarter may be shorter */
    uint32_t same = 0;
    for (size_t part = 0; part < STREAMS; part++, data += quarter)
        for (size_t i = 0; i < length; i++) same += data[i] == data[i + 1];
    return same > STREAMS * length * 4 / 5;
}

/* A block with its head, or 0 where there is no room for it. Its length is added to `balance`, or taken away where
 * another way may do better, or next to nothing is gained. Nor is there a block when the balance is negative. */
static size_t encode_block(const uint8_t *data, size_t n, int is_last, uint8_t *out, size_t room, int64_t *balance) {
    const size_t quarter = (n + STREAMS - 1) / STREAMS, worthwhile = n - n / 64;
    const int64_t share = (int64_t)n;
    size_t length = 1, kind = RLE_BLOCK;
    if (room < 4) return 0;
    out[3] = data[0];
    if (memcmp(data, data + 1, n - 1)) {
        *balance += is_monotonous(data, quarter) ? -share : share;
        if (*balance < 0) return 0;
        length = encode_literals(data, n, quarter, out + 3, room - 3 < worthwhile ? room - 3 : worthwhile);
        kind = COMPRESSED_BLOCK;
    }
    if (!length) {
        *balance -= 2 * share;
        if (*balance < 0 || room < 3 + n) return 0;
        memcpy(out + 3, data, n);
        length = n;
        kind = RAW_BLOCK;
    }
    store_low(out, (uint64_t)is_last | kind << 1 | (kind == RLE_BLOCK ? n : length) << 3, 3);
    return 3 + length;
}

/* A zstd frame of all of `data`, or 0 where it would not be smaller than that and than `room`, or where the data calls
 * for another way. */
size_t coral_huffman(const uint8_t *data, size_t n, uint8_t *frame, size_t room) {
    const size_t flag = n < 65536 + 256 ? 1 : (uint64_t)n >> 32 == 0 ? 2 : 3;
    size_t at = 5 + ((size_t)1 << flag), length;
    int64_t balance = 0;
    if (room > n) room = n;
    if (n < LEAST || room <= at) return 0;
    store_low(frame, 0xFD2FB528, 4);
    frame[4] = (uint8_t)(flag << 6 | 1 << 5); /* a single segment, the size of its content is known */
    store_low(frame + 5, flag == 1 ? n - 256 : n, (size_t)1 << flag);
    for (size_t start = 0; start < n; start += length) {
        const size_t left = n - start;
        length = left < BLOCK_MOST + LEAST ? left : BLOCK_MOST;
        const size_t used = encode_block(data + start, length, left == length, frame + at, room - at, &balance);
        if (!used) return 0;
        at += used;
    }
    return at < room ? at : 0;
}
