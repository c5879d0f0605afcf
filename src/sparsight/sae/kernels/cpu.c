/* The parts of an SAE's training step that matrix products leave over, on a CPU. cpu.py states shapes and formulas.

   Types: bfloat16 is uint16_t, read by a shift and written with rounding to nearest even; sums are float32, the
   squared error over a batch float64. Matrices are contiguous rows. A selection is in compressed rows: the active
   latents of row i are entries starts[i] .. starts[i + 1] of `latents` and (bfloat16) `values`, in rising order.

   Every result is independent of the number of threads. Positive bfloat16 values have the order of their bits as
   integers, and negative ones are negative integers: selections compare integers. Loops are written so that gcc's
   vectoriser finds them; where it does not (conversion, comparison to a mask, reciprocals) AVX-512 has intrinsics. */

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#ifdef __AVX512BW__
#include <immintrin.h>
#endif
#include <omp.h>

typedef uint16_t bf16;

static inline float wide(bf16 x) {
    union { uint32_t bits; float value; } u = {(uint32_t)x << 16};
    return u.value;
}

static inline bf16 narrow(float x) {
    union { float value; uint32_t bits; } u = {x};
    return (bf16)((u.bits + 0x7fff + ((u.bits >> 16) & 1)) >> 16); /* finite inputs: the trainer checks the loss */
}

/* Vectors in gcc's own notation: one register with AVX-512, two with AVX2, four with NEON. */
enum { LANES = 16, BLOCK = 12 };
typedef float floats __attribute__((vector_size(4 * LANES), aligned(4)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef bf16 halves __attribute__((vector_size(2 * LANES), aligned(2)));

typedef int16_t shorts __attribute__((vector_size(64), aligned(2)));

static inline floats wide_at(const bf16 *row) {
#ifdef __AVX512F__
    return (floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row)), 16);
#else
    return (floats)(__builtin_convertvector(*(const halves *)row, words) << 16);
#endif
}

#ifdef __AVX512BF16__
static inline __m512bh pairs_at(const bf16 *row) { return (__m512bh)_mm512_loadu_si512(row); }
#endif

static inline float total(floats x) {
#ifdef __AVX512F__
    return _mm512_reduce_add_ps((__m512)x);
#else
    for (int half = LANES / 2; half; half /= 2)
        for (int l = 0; l < half; l++) x[l] += x[l + half];
    return x[0];
#endif
}

static inline float dot_half(const bf16 *restrict a, const bf16 *restrict b, int64_t d) {
    int64_t c = 0;
    floats sums[2] = {0};
#ifdef __AVX512BF16__
    for (; c + 64 <= d; c += 64)
        for (int s = 0; s < 2; s++)
            sums[s] = (floats)_mm512_dpbf16_ps((__m512)sums[s], pairs_at(a + c + 32 * s), pairs_at(b + c + 32 * s));
#endif
    for (; c + LANES <= d; c += LANES) sums[0] += wide_at(a + c) * wide_at(b + c);
    float sum = total(sums[0] + sums[1]);
    for (; c < d; c++) sum += wide(a[c]) * wide(b[c]);
    return sum;
}

static inline float dot(const float *restrict a, const float *restrict b, int64_t d) {
    floats sums = {0};
    int64_t c = 0;
    for (; c + LANES <= d; c += LANES) sums += *(const floats *)(a + c) * *(const floats *)(b + c);
    float sum = total(sums);
    for (; c < d; c++) sum += a[c] * b[c];
    return sum;
}

/* out[c] += sum over p of factors[p] * matrix[rows[p]][c]. Sums stay in registers. */
#define ADD_BLOCK(N)                                                                                                \
    for (; c + (N) * LANES <= d; c += (N) * LANES) {                                                                \
        floats sums[N];                                                                                             \
        for (int s = 0; s < (N); s++) sums[s] = *(const floats *)(out + c + s * LANES);                             \
        for (int64_t p = 0; p < n; p++) {                                                                           \
            const bf16 *row = matrix + (int64_t)rows[p] * stride + c;                                               \
            float factor = wide(factors[p]);                                                                        \
            for (int s = 0; s < (N); s++) sums[s] += factor * wide_at(row + s * LANES);                             \
        }                                                                                                           \
        for (int s = 0; s < (N); s++) *(floats *)(out + c + s * LANES) = sums[s];                                   \
    }

#ifdef __AVX512BF16__
/* The same for N * 32 columns, two entries at a time: words of two rows interleaved are the pairs that one instruction multiplies
   by two factors and adds. Interleaving leaves columns in two halves of each 128 bits, undone at the end. */
#define ADD_PAIRS(N)                                                                                                \
    for (; c + 32 * (N) <= d; c += 32 * (N)) {                                                                      \
        __m512 low[N], high[N];                                                                                     \
        for (int s = 0; s < (N); s++) low[s] = high[s] = _mm512_setzero_ps();                                       \
        for (int64_t p = 0; p < n; p += 2) {                                                                        \
            int64_t q = p + 1 < n ? p + 1 : p;                                                                      \
            const bf16 *first = matrix + (int64_t)rows[p] * stride + c, *second = matrix + (int64_t)rows[q] * stride + c;\
            uint32_t two = factors[p];                                                                              \
            if (q > p) memcpy(&two, factors + p, 4);                                                                \
            __m512bh both = (__m512bh)_mm512_set1_epi32((int)two);                                                  \
            for (int s = 0; s < (N); s++) {                                                                         \
                __m512i a = _mm512_loadu_si512(first + 32 * s), b = _mm512_loadu_si512(second + 32 * s);            \
                low[s] = _mm512_dpbf16_ps(low[s], (__m512bh)_mm512_unpacklo_epi16(a, b), both);                     \
                high[s] = _mm512_dpbf16_ps(high[s], (__m512bh)_mm512_unpackhi_epi16(a, b), both);                   \
            }                                                                                                       \
        }                                                                                                           \
        for (int s = 0; s < (N); s++) {                                                                             \
            *(floats *)(out + c + 32 * s) += (floats)_mm512_permutex2var_ps(low[s], left, high[s]);                 \
            *(floats *)(out + c + 32 * s + 16) += (floats)_mm512_permutex2var_ps(low[s], right, high[s]);           \
        }                                                                                                           \
    }
#endif

static inline void add_rows(float *restrict out, int64_t d, int64_t stride, int64_t n, const int32_t *rows,
                            const bf16 *factors, const bf16 *matrix) {
    int64_t c = 0;
#ifdef __AVX512BF16__
    const __m512i left = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i right = _mm512_setr_epi32(8, 9, 10, 11, 24, 25, 26, 27, 12, 13, 14, 15, 28, 29, 30, 31);
    ADD_PAIRS(6)
    ADD_PAIRS(2)
    ADD_PAIRS(1)
#else
    ADD_BLOCK(BLOCK)
#endif
    ADD_BLOCK(1)
    for (; c < d; c++)
        for (int64_t p = 0; p < n; p++) out[c] += wide(factors[p]) * wide(matrix[(int64_t)rows[p] * stride + c]);
}

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

static float *scratch(int64_t d) { /* whole cache lines: a vector across two is slow to store and load */
    return aligned_alloc(64, (d * sizeof(float) + 63) / 64 * 64);
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

/* centred = bf16(x / scale - centre), and where wanted normalised = x / scale, for x in bfloat16 or float32. What `centred`
   has beyond d columns is 1, 1, 0, ...: the product with weights beside the two halves of a bias then adds the bias. */
void centre_rows(const void *x, int64_t is_bf16, int64_t n, int64_t d, int64_t stride, float scale, const float *centre,
                 bf16 *centred, float *normalised) {
    float factor = 1 / scale;
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < n; i++) {
        float row[d];
        if (is_bf16)
            for (int64_t c = 0; c < d; c++) row[c] = wide(((const bf16 *)x)[i * d + c]) * factor;
        else
            for (int64_t c = 0; c < d; c++) row[c] = ((const float *)x)[i * d + c] * factor;
        if (normalised) memcpy(normalised + i * d, row, d * sizeof(float));
        if (centred)
            for (int64_t c = 0; c < stride; c++)
                centred[i * stride + c] = narrow(c < d ? row[c] - centre[c] : c < d + 2 ? 1 : 0);
    }
}

enum { CHUNK = 128 }; /* rows whose share of a sum over all rows is added up on its own, whoever does it */

static void add_parts(int64_t n_parts, int64_t d, const float *parts, float *out) {
    memset(out, 0, d * sizeof(float));
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t c = 0; c < d; c++) out[c] += parts[part * d + c];
}

/* What a row's error gives, for `width` of its columns: its gradient, and that gradient's share in its sum over rows. */
static double finish_row(const float *row, int64_t width, float factor, bf16 *d_x_hat, float *d_bias, float *error) {
    for (int64_t c = 0; c < width; c++) {
        d_x_hat[c] = narrow(row[c] * factor);
        d_bias[c] += row[c] * factor;
    }
    if (error) memcpy(error, row, width * sizeof(float));
    return dot(row, row, width);
}

/* Decode, error and gradients of the active latents, a row at a time, so that its decoder rows are fetched once. */
void decode_rows(int64_t n, int64_t d, const int64_t *starts, const int32_t *latents, const bf16 *values,
                 const bf16 *W_dec, const float *b_dec, const float *target, float factor, const float *penalty,
                 bf16 *d_x_hat, float *d_bias, float *d_values, float *error, double *squares) {
    int64_t n_chunks = (n + CHUNK - 1) / CHUNK;
    float *parts = calloc(n_chunks * d, sizeof(float));
#pragma omp parallel
    {
        float *row = scratch(d);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < n_chunks; chunk++)
            for (int64_t i = chunk * CHUNK; i < n && i < (chunk + 1) * CHUNK; i++) {
                int64_t first = starts[i], m = starts[i + 1] - first;
                bf16 *slope = d_x_hat + i * d;
                for (int64_t c = 0; c < d; c++) row[c] = b_dec[c] - target[i * d + c];
                add_rows(row, d, d, m, latents + first, values + first, W_dec);
                squares[i] = finish_row(row, d, factor, slope, parts + chunk * d, error ? error + i * d : 0);
                for (int64_t e = first; e < first + m; e++) {
                    float dot = dot_half(slope, W_dec + (int64_t)latents[e] * d, d);
                    d_values[e] = values[e] ? dot + (penalty ? penalty[latents[e]] : 0) : 0;
                }
            }
        free(row);
    }
    add_parts(n_chunks, d, parts, d_bias);
    free(parts);
}

/* Compressed rows to compressed columns: entry order[p] is active in latent j for column_starts[j] <= p < column_starts[j + 1].
   Each thread counts and then places the entries of its rows, behind those of the threads before it. */
void transpose_rows(int64_t n, int64_t width, const int64_t *starts, const int32_t *latents, int64_t *column_starts,
                    int32_t *rows, int32_t *order) {
    int64_t n_parts = omp_get_max_threads();
    int64_t *next = calloc(n_parts * width, sizeof(int64_t));
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t e = starts[part * n / n_parts]; e < starts[(part + 1) * n / n_parts]; e++)
            next[part * width + latents[e]]++;
    int64_t at = 0;
    for (int64_t j = 0; j < width; j++) {
        column_starts[j] = at;
        for (int64_t part = 0; part < n_parts; part++) {
            int64_t count = next[part * width + j];
            next[part * width + j] = at;
            at += count;
        }
    }
    column_starts[width] = at;
#pragma omp parallel for schedule(static)
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t i = part * n / n_parts; i < (part + 1) * n / n_parts; i++)
            for (int64_t e = starts[i]; e < starts[i + 1]; e++) {
                int64_t p = next[part * width + latents[e]]++;
                rows[p] = (int32_t)i;
                order[p] = (int32_t)e;
            }
    free(next);
}

typedef struct { /* cpu.py, _Adam */
    float lr, beta1, beta2, eps, correction1, correction2; /* corrections: 1 - beta^t */
} adam_t;

/* 1 / (sqrt(v) * root + eps) to float32's precision. Estimates and one Newton step each: sqrt and / take three times as long. */
static inline floats inverse(floats v, float root, float eps) {
#ifdef __AVX512F__
    v = (floats)_mm512_max_ps((__m512)v, _mm512_set1_ps(1e-37f));
    floats y = (floats)_mm512_rsqrt14_ps((__m512)v);
    y *= 1.5f - 0.5f * v * y * y;
    floats x = v * y * root + eps;
    y = (floats)_mm512_rcp14_ps((__m512)x);
    return y * (2 - x * y);
#else
    for (int l = 0; l < LANES; l++) v[l] = 1 / (sqrtf(v[l]) * root + eps);
    return v;
#endif
}

static void adam_row(float *restrict w, float *restrict m, float *restrict v, const float *restrict g, int64_t d,
                     const adam_t *a) {
    float step = a->lr / a->correction1, root = 1 / sqrtf(a->correction2), b1 = a->beta1, b2 = a->beta2, eps = a->eps;
    int64_t c = 0;
    for (; c + LANES <= d; c += LANES) {
        floats slope = *(const floats *)(g + c);
        floats mean = b1 * *(floats *)(m + c) + (1 - b1) * slope, square = b2 * *(floats *)(v + c) + (1 - b2) * slope * slope;
        *(floats *)(m + c) = mean;
        *(floats *)(v + c) = square;
        *(floats *)(w + c) -= step * mean * inverse(square, root, eps);
    }
    for (; c < d; c++) {
        m[c] = b1 * m[c] + (1 - b1) * g[c];
        v[c] = b2 * v[c] + (1 - b2) * g[c] * g[c];
        w[c] -= step * m[c] / (sqrtf(v[c]) * root + eps);
    }
}

/* Entries from the order of rows to that of latents, in bfloat16, and the sum of each latent's. */
void sort_entries(int64_t width, const int64_t *column_starts, const int32_t *order, const void *entries, int64_t is_bf16,
                  bf16 *sorted, float *sums) {
#pragma omp parallel for schedule(static)
    for (int64_t j = 0; j < width; j++) {
        float sum = 0;
        for (int64_t p = column_starts[j]; p < column_starts[j + 1]; p++) {
            float entry = is_bf16 ? wide(((const bf16 *)entries)[order[p]]) : ((const float *)entries)[order[p]];
            sum += entry;
            sorted[p] = narrow(entry);
        }
        sums[j] = sum;
    }
}

/* out[j] = bf16(sum over latent j's entries of sorted * other[row]), a block of columns at a time: with many rows, a block
   stays in a core's cache where whole rows would not. */
void gather_gradients(int64_t width, int64_t d, int64_t stride, int64_t block, const int64_t *column_starts,
                      const int32_t *rows, const bf16 *sorted, const bf16 *other, bf16 *out) {
    int64_t n_blocks = (d + block - 1) / block;
#pragma omp parallel
    {
        float *g = scratch(block);
#pragma omp for collapse(2) schedule(static)
        for (int64_t b = 0; b < n_blocks; b++)
            for (int64_t j = 0; j < width; j++) {
                int64_t at = b * block, n = at + block < d ? block : d - at, first = column_starts[j];
                memset(g, 0, n * sizeof(float));
                add_rows(g, n, stride, column_starts[j + 1] - first, rows + first, sorted + first, other + at);
                for (int64_t c = 0; c < n; c++) out[j * d + at + c] = narrow(g[c]);
            }
        free(g);
    }
}

/* Error and its gradient where the reconstruction, still without bias, comes from a product. */
void error_rows(int64_t n, int64_t d, const bf16 *x_hat, const float *b_dec, const float *target, float factor,
                bf16 *d_x_hat, float *d_bias, float *error, double *squares) {
    int64_t n_chunks = (n + CHUNK - 1) / CHUNK;
    float *parts = calloc(n_chunks * d, sizeof(float));
#pragma omp parallel
    {
        float *row = scratch(d);
#pragma omp for schedule(static)
        for (int64_t chunk = 0; chunk < n_chunks; chunk++)
            for (int64_t i = chunk * CHUNK; i < n && i < (chunk + 1) * CHUNK; i++) {
                for (int64_t c = 0; c < d; c++) row[c] = wide(x_hat[i * d + c]) + b_dec[c] - target[i * d + c];
                squares[i] =
                    finish_row(row, d, factor, d_x_hat + i * d, parts + chunk * d, error ? error + i * d : 0);
            }
        free(row);
    }
    add_parts(n_chunks, d, parts, d_bias);
    free(parts);
}

/* d_z = [z > 0] (d_z + penalty) in place, with the column sums of z and d_z, and how many of each column's z are positive. */
void mask_columns(int64_t n, int64_t width, const bf16 *z, bf16 *d_z, const float *penalty, float *z_sums, float *d_sums,
                  float *counts) {
#pragma omp parallel for schedule(static)
    for (int64_t at = 0; at < width; at += 256) {
        int64_t m = at + 256 < width ? 256 : width - at;
        float sums[256] = {0}, slopes[256] = {0}, active[256] = {0};
        for (int64_t i = 0; i < n; i++) {
            const bf16 *value = z + i * width + at;
            bf16 *slope = d_z + i * width + at;
            for (int64_t c = 0; c < m; c++) {
                float on = value[c] ? 1.0f : 0.0f, masked = on * (wide(slope[c]) + penalty[at + c]);
                sums[c] += wide(value[c]);
                slopes[c] += masked;
                active[c] += on;
                slope[c] = narrow(masked);
            }
        }
        memcpy(z_sums + at, sums, m * sizeof(float));
        memcpy(d_sums + at, slopes, m * sizeof(float));
        memcpy(counts + at, active, m * sizeof(float));
    }
}

/* One pass over a weight matrix: the gradient along the row removed (unit_norm) or a pull towards shorter rows added, Adam, the
   rows back to norm 1, the bfloat16 copy. `weighted` gets sum_j coefficients[j] * w[j] of the rows as they were. */
void update_rows(int64_t width, int64_t d, int64_t stride, const bf16 *gradient, float *w, float *m, float *v, bf16 *copy,
                 const adam_t *a,
                 int64_t unit_norm, const float *pull, const float *coefficients, float *weighted) {
    enum { PARTS = 64 }; /* a fixed number, so that sums do not depend on the number of threads */
    float *parts = weighted ? calloc(PARTS * d, sizeof(float)) : 0;
#pragma omp parallel
    {
        float *g = scratch(d);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t j = part * width / PARTS; j < (part + 1) * width / PARTS; j++) {
                float *row = w + j * d;
                if (weighted)
                    for (int64_t c = 0; c < d; c++) parts[part * d + c] += coefficients[j] * row[c];
                for (int64_t c = 0; c < d; c++) g[c] = wide(gradient[j * d + c]);
                float along = unit_norm ? dot(g, row, d) : 0;
                if (pull && pull[j]) along = -pull[j] / sqrtf(dot(row, row, d));
                if (along)
                    for (int64_t c = 0; c < d; c++) g[c] -= along * row[c];
                adam_row(row, m + j * d, v + j * d, g, d, a);
                float shrink = unit_norm ? 1 / sqrtf(dot(row, row, d)) : 1;
                for (int64_t c = 0; c < d; c++) {
                    row[c] *= shrink;
                    copy[j * stride + c] = narrow(row[c]);
                }
            }
        free(g);
    }
    if (!weighted) return;
    add_parts(PARTS, d, parts, weighted);
    free(parts);
}

/* Adam for a vector. */
void update_vector(int64_t n, const float *gradient, float *w, float *m, float *v, const adam_t *a) {
    adam_row(w, m, v, gradient, n, a);
}
