/* Which latents are active; included by cpu.c. */

/* Bit l set where row[l] >= bound, for the 32 values from `row`. */
static inline uint32_t at_least(const int16_t *row, int16_t bound) {
#ifdef __AVX512BW__
    return _mm512_cmpge_epi16_mask(_mm512_loadu_si512(row), _mm512_set1_epi16(bound));
#else
    uint32_t mask = 0;
    for (int l = 0; l < 32; l++) mask |= (uint32_t)(row[l] >= bound) << l;
    return mask;
#endif
}

/* The columns of one row whose value is at least `bound`, in rising order; returns how many. Blocks without any, the most, are
   skipped by a bitmap of 64 blocks: a branch a block would be guessed wrongly for every fourth. */
static int64_t gather_at_least(const int16_t *row, int64_t width, int16_t bound, int32_t *latents, int16_t *values) {
    int64_t n = 0, at = 0;
    while (at + 32 <= width) {
        uint32_t masks[64];
        uint64_t some = 0;
        int64_t first = at;
        for (int b = 0; b < 64 && at + 32 <= width; b++, at += 32) {
            masks[b] = at_least(row + at, bound);
            some |= (uint64_t)(masks[b] != 0) << b;
        }
        for (; some; some &= some - 1) {
            int b = __builtin_ctzll(some);
            for (uint32_t mask = masks[b]; mask; mask &= mask - 1) {
                int64_t column = first + 32 * b + __builtin_ctz(mask);
                latents[n] = (int32_t)column;
                values[n++] = row[column];
            }
        }
    }
    for (; at < width; at++)
        if (row[at] >= bound) {
            latents[n] = (int32_t)at;
            values[n++] = row[at];
        }
    return n;
}

static int64_t count_at_least(const int16_t *values, int64_t n, int16_t bound) {
    int64_t count = 0, block = 0;
    for (; block + 32 <= n; block += 32) count += __builtin_popcount(at_least(values + block, bound));
    for (; block < n; block++) count += values[block] >= bound;
    return count;
}

/* The largest positive bound that at least k values reach, found bit by bit; 1 when fewer than k are positive. */
static int16_t bisect(const int16_t *values, int64_t n, int64_t k) {
    int16_t bound = 0;
    for (int bit = 14; bit >= 0; bit--) {
        int16_t higher = (int16_t)(bound | (1 << bit));
        if (count_at_least(values, n, higher) >= k) bound = higher;
    }
    return bound ? bound : 1;
}

static inline shorts larger(shorts a, shorts b) {
#ifdef __AVX512BW__
    return (shorts)_mm512_max_epi16((__m512i)a, (__m512i)b);
#else
    shorts first = a > b;
    return (a & first) | (b & ~first);
#endif
}

/* A lower bound of the k-th largest of a row: the k-th largest of the maxima of 4k or more interleaved groups. */
static int16_t lower_bound(const int16_t *row, int64_t width, int64_t k, int64_t n_groups, int16_t *maxima) {
    if (n_groups * 2 > width) return 1;
    int64_t whole = width / n_groups * n_groups;
    for (int64_t g = 0; g < n_groups; g += 32) {
        shorts most = *(const shorts *)(row + g);
        for (int64_t at = n_groups + g; at < whole; at += n_groups) {
            shorts other = *(const shorts *)(row + at);
            most = larger(most, other);
        }
        *(shorts *)(maxima + g) = most;
    }
    for (int64_t g = 0; whole + g < width; g++) maxima[g] = maxima[g] > row[whole + g] ? maxima[g] : row[whole + g];
    return bisect(maxima, n_groups, k);
}

/* Each row's k largest positive values; ties go to the lower column, missing ones are latent 0 with value 0. */
void select_topk(const int16_t *pre, int64_t n, int64_t width, int64_t k, int32_t *latents, bf16 *values) {
    int64_t n_groups = (4 * k + 31) / 32 * 32;
    if (n_groups < 128) n_groups = 128;
#pragma omp parallel
    {
        int16_t *maxima = malloc(n_groups * sizeof(int16_t)), *found = malloc((width + 32) * sizeof(int16_t));
        int32_t *columns = malloc(width * sizeof(int32_t));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            const int16_t *row = pre + i * width;
            int64_t m = gather_at_least(row, width, lower_bound(row, width, k, n_groups, maxima), columns, found);
            int64_t filled = (m + 31) / 32 * 32; /* so that counting has no rest */
            for (int64_t c = m; c < filled; c++) found[c] = INT16_MIN;
            int16_t smallest = bisect(found, filled, k);
            int64_t ties = k - (smallest < INT16_MAX ? count_at_least(found, filled, smallest + 1) : 0), kept = 0;
            for (int64_t c = 0; c < m && kept < k; c++) {
                if (found[c] < smallest || (found[c] == smallest && ties-- <= 0)) continue;
                latents[i * k + kept] = columns[c];
                values[i * k + kept++] = (bf16)found[c];
            }
            for (; kept < k; kept++) latents[i * k + kept] = 0, values[i * k + kept] = 0;
        }
        free(maxima), free(found), free(columns);
    }
}

/* Bits of the count-th largest of all positive values, looking only at those of `hint` or more; 0 when these are too few. */
int64_t kth_largest(const int16_t *pre, int64_t n, int64_t width, int64_t count, int64_t hint) {
    int64_t *histogram = calloc(32768, sizeof(int64_t)), seen = 0, bits = 32767;
#pragma omp parallel
    {
        uint32_t *mine = calloc(32768, sizeof(uint32_t));
#pragma omp for schedule(static) nowait
        for (int64_t i = 0; i < n; i++) {
            const int16_t *row = pre + i * width;
            int64_t block = 0;
            for (; block + 32 <= width; block += 32)
                for (uint32_t mask = at_least(row + block, (int16_t)hint); mask; mask &= mask - 1)
                    mine[row[block + __builtin_ctz(mask)]]++;
            for (; block < width; block++)
                if (row[block] >= hint) mine[row[block]]++;
        }
#pragma omp critical
        for (int64_t b = hint; b < 32768; b++) histogram[b] += mine[b];
        free(mine);
    }
    for (; bits >= hint; bits--)
        if ((seen += histogram[bits]) >= count) break;
    free(histogram);
    return bits >= hint ? bits : 0;
}

/* starts[i + 1]: active latents in rows 0 .. i, those with values of `bound` or more. */
void count_rows(const int16_t *pre, int64_t n, int64_t width, int64_t bound, int64_t *starts) {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) starts[i + 1] = count_at_least(pre + i * width, width, (int16_t)bound);
    starts[0] = 0;
    for (int64_t i = 0; i < n; i++) starts[i + 1] += starts[i];
}

/* Fills what count_rows counted. */
void fill_rows(const int16_t *pre, int64_t n, int64_t width, int64_t bound, const int64_t *starts, int32_t *latents,
               bf16 *values) {
#pragma omp parallel
    {
        int16_t *found = malloc(width * sizeof(int16_t));
        int32_t *columns = malloc(width * sizeof(int32_t));
#pragma omp for schedule(static)
        for (int64_t i = 0; i < n; i++) {
            int64_t m = gather_at_least(pre + i * width, width, (int16_t)bound, columns, found);
            memcpy(latents + starts[i], columns, m * sizeof(int32_t));
            memcpy(values + starts[i], found, m * sizeof(bf16));
        }
        free(found), free(columns);
    }
}
