/* bfloat16 as float32, sixteen at a time, and sums of rows of it; included by cpu.c. */

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

/* out[p] = a . matrix[rows[p]], for n rows of d numbers. */
static inline void dots(float *restrict out, const bf16 *restrict a, int64_t d, int64_t n, const int32_t *rows,
                        const bf16 *matrix) {
    int64_t p = 0;
#ifdef __AVX512BF16__
    for (; d % 32 == 0 && p + 4 <= n; p += 4) { /* four sums at a time, which are added up within their registers together */
        const bf16 *row[4];
        __m512 s[4];
        for (int q = 0; q < 4; q++) row[q] = matrix + (int64_t)rows[p + q] * d, s[q] = _mm512_setzero_ps();
        for (int64_t c = 0; c < d; c += 32)
            for (int q = 0; q < 4; q++) s[q] = _mm512_dpbf16_ps(s[q], pairs_at(a + c), pairs_at(row[q] + c));
        __m512d two[2];
        for (int q = 0; q < 2; q++)
            two[q] = (__m512d)_mm512_add_ps(_mm512_unpacklo_ps(s[2 * q], s[2 * q + 1]), _mm512_unpackhi_ps(s[2 * q], s[2 * q + 1]));
        __m512 four = (__m512)_mm512_unpacklo_pd(two[0], two[1]) + (__m512)_mm512_unpackhi_pd(two[0], two[1]);
        __m256 half = _mm512_castps512_ps256(four) + (__m256)_mm512_extractf64x4_pd((__m512d)four, 1);
        __m128 sums = _mm256_castps256_ps128(half) + _mm256_extractf128_ps(half, 1);
        _mm_storeu_ps(out + p, sums);
    }
#endif
    for (; p < n; p++) out[p] = dot_half(a, matrix + (int64_t)rows[p] * d, d);
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

static float *scratch(int64_t d) { /* whole cache lines: a vector across two is slow to store and load */
    return aligned_alloc(64, (d * sizeof(float) + 63) / 64 * 64);
}

/* out = the sum of parts, in their order. */
static void add_parts(int64_t n_parts, int64_t d, const float *parts, float *out) {
    memset(out, 0, d * sizeof(float));
    for (int64_t part = 0; part < n_parts; part++)
        for (int64_t c = 0; c < d; c++) out[c] += parts[part * d + c];
}
