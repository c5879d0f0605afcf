/* What a Llama-like block does between its matrix products, in bfloat16 on the CPU; called by kernels.py.
 *
 *   rms_norm     out = x / sqrt(mean(x^2) + eps) * (offset + weight), after x += delta where a delta is given
 *   silu_mul     out = silu(gate) * up, gate and up side by side in a row
 *   attention    rotary embedding of q and k, causal softmax(q k' scale) v; q, k and v side by side in a row
 *
 * All arithmetic is float32; every result is rounded to bfloat16 once, to nearest, ties to even. NaN stays NaN. Rows (for
 * attention: pairs of sequence and key head) are shared among OpenMP's threads; each is computed by one thread in one
 * order, so results do not depend on how many there are, nor on what stands in other rows.
 *
 * Written for AVX-512 with bfloat16, attention's products also for the AMX tiles; `support` says what there is. No other
 * forms: with narrower vectors torch's own kernels are faster (docs/log.md). Attention keeps the scores of 32 queries
 * against all keys up to them, in the L2 cache up to some 4096 keys.
 */

#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if !defined(__AVX512BF16__) || !defined(__AVX512BW__) || !defined(__AVX512VL__)
int support(void) { return 0; }
#else

#include "lanes.h"

/* --- between the products ---------------------------------------------------------------------------------------- */

/* x, delta, sum, out: [rows, d]; weight: [d]. delta and sum may be NULL together; sum gets the rounded x + delta. */
void rms_norm(const bf16 *x, const bf16 *delta, const bf16 *weight, float offset, float eps, bf16 *sum, bf16 *out,
              int64_t rows, int64_t d)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *in = x + row * d;
        __m512 squares = _mm512_setzero_ps();
        if (delta) {
            for (int64_t j = 0; j < d; j += LANES)
                store(sum + row * d + j, load(in + j, d - j) + load(delta + row * d + j, d - j), d - j);
            in = sum + row * d;
        }
        for (int64_t j = 0; j < d; j += LANES) {
            __m512 value = load(in + j, d - j);
            squares += value * value;
        }
        float scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + eps);
        for (int64_t j = 0; j < d; j += LANES)
            store(out + row * d + j, load(in + j, d - j) * scale * (offset + load(weight + j, d - j)), d - j);
    }
}

/* gate_up: [rows, 2 * d]; out: [rows, d]. */
void silu_mul(const bf16 *gate_up, bf16 *out, int64_t rows, int64_t d)
{
#pragma omp parallel for schedule(static)
    for (int64_t row = 0; row < rows; row++) {
        const bf16 *gate = gate_up + row * 2 * d, *up = gate + d;
        for (int64_t j = 0; j < d; j += LANES)
            store(out + row * d + j, silu(load(gate + j, d - j)) * load(up + j, d - j), d - j);
    }
}

/* --- attention --------------------------------------------------------------------------------------------------- */

#define FETCH_BYTES (1 << 20) /* half of a usual L2 cache */
#define AT_ONCE 8             /* rows whose sums stay in registers */

/* c [32, ldc] = a [32, lda] times b, over n_chunks chunks of 32 along the inner dimension. A chunk of b is two tiles,
 * one for each 16 columns; row p of a tile holds, for each of its columns, the pair of inner indices 2p and 2p + 1. */
typedef void multiply_t(const bf16 *a, int64_t lda, const bf16 *b, int64_t n_chunks, float *c, int64_t ldc);

static void multiply_by_vectors(const bf16 *a, int64_t lda, const bf16 *b, int64_t n_chunks, float *c, int64_t ldc)
{
    for (int64_t first = 0; first < BLOCK; first += AT_ONCE, a += AT_ONCE * lda, c += AT_ONCE * ldc) {
        __m512 left[AT_ONCE], right[AT_ONCE];
        for (int row = 0; row < AT_ONCE; row++)
            left[row] = right[row] = _mm512_setzero_ps();
        for (int64_t pair = 0; pair < n_chunks * BLOCK / 2; pair++) {
            const bf16 *columns = b + pair / 16 * 2 * TILE + pair % 16 * BLOCK;
            __m512bh low = (__m512bh)_mm512_loadu_si512(columns), high = (__m512bh)_mm512_loadu_si512(columns + TILE);
            for (int row = 0; row < AT_ONCE; row++) {
                int32_t two;
                memcpy(&two, a + row * lda + 2 * pair, sizeof two);
                __m512bh same = (__m512bh)_mm512_set1_epi32(two);
                left[row] = _mm512_dpbf16_ps(left[row], same, low);
                right[row] = _mm512_dpbf16_ps(right[row], same, high);
            }
        }
        for (int row = 0; row < AT_ONCE; row++) {
            _mm512_storeu_ps(c + row * ldc, left[row]);
            _mm512_storeu_ps(c + row * ldc + LANES, right[row]);
        }
    }
}

#ifdef HAS_TILES

#include <sys/syscall.h>
#include <unistd.h>

static void multiply_by_tiles(const bf16 *a, int64_t lda, const bf16 *b, int64_t n_chunks, float *c, int64_t ldc)
{
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
        _tile_loadd(4, a + chunk * BLOCK, lda * 2);
        _tile_loadd(6, b + chunk * 2 * TILE, 64);
        _tile_loadd(7, b + chunk * 2 * TILE + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + 16 * lda + chunk * BLOCK, lda * 2);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
    _tile_stored(0, c, ldc * 4);
    _tile_stored(1, c + 16, ldc * 4);
    _tile_stored(2, c + 16 * ldc, ldc * 4);
    _tile_stored(3, c + 16 * ldc + 16, ldc * 4);
}

/* 0: nothing here runs on this processor. 1: everything, by vectors. 2: the tiles too, which Linux lets a process use
 * once it has asked (ARCH_REQ_XCOMP_PERM for XTILEDATA). */
int support(void)
{
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0 ? 2 : 1;
}

#else

int support(void) { return 1; }

#endif

typedef struct {
    int64_t positions, heads, key_heads, dims; /* of the problem */
    int64_t keys_up, dims_up;                  /* rounded up to 32; what is added holds zeros */
    float scale;
    multiply_t *multiply;
} shape_t;

/* What one thread needs: 32 queries, keys and values as multiply_t wants them, scores, probabilities, outputs. */
typedef struct {
    bf16 *query, *key, *value, *probability;
    float *score, *output;
} scratch_t;

/* bfloat16 numbers' room that a thread needs for attention. */
int64_t attention_scratch(int64_t positions, int64_t dims)
{
    return 2 * ROUND_UP(positions) * ROUND_UP(dims) + 3 * BLOCK * (ROUND_UP(dims) + ROUND_UP(positions));
}

static scratch_t divide(bf16 *room, const shape_t *n)
{
    int64_t wide = n->keys_up * n->dims_up, block = BLOCK * n->dims_up, scores = BLOCK * n->keys_up;
    memset(room, 0, (2 * wide + block) * sizeof(bf16)); /* zeros are left where lengths are rounded up */
    scratch_t s = {.key = room, .value = room + wide, .query = room + 2 * wide, .probability = room + 2 * wide + block};
    s.score = (float *)(s.probability + scores);
    s.output = s.score + scores;
    return s;
}

/* out[j] = in[j] cos[j] -/+ in[j +/- half] sin[j]: what Transformers calls rotate_half. */
static inline void rotate(const bf16 *in, const bf16 *cosine, const bf16 *sine, bf16 *out, int64_t half)
{
    for (int64_t j = 0; j < half; j += LANES) {
        int64_t n = half - j;
        __m512 low = load(in + j, n), high = load(in + half + j, n);
        store(out + j, low * load(cosine + j, n) - high * load(sine + j, n), n);
        store(out + half + j, high * load(cosine + half + j, n) + low * load(sine + half + j, n), n);
    }
}

/* Keys, rotated, into blocks of 32: block, chunk of 32 dimensions, tile of 16 keys, pair of dimensions, key. */
static void pack_keys(const shape_t *n, const bf16 *keys, int64_t stride, const bf16 *cosine, const bf16 *sine,
                      scratch_t *s)
{
    uint32_t *pairs = (uint32_t *)s->query, *packed = (uint32_t *)s->key; /* the query's room is free until later */
    int64_t n_pairs = n->dims_up / 2;
    for (int64_t key = 0; key < n->positions; key++) {
        rotate(keys + key * stride, cosine + key * n->dims, sine + key * n->dims, s->query, n->dims / 2);
        uint32_t *block = packed + key / BLOCK * BLOCK * n_pairs + key % BLOCK / 16 * (TILE / 2) + key % 16;
        for (int64_t pair = 0; pair < n_pairs; pair++)
            block[pair / 16 * TILE + pair % 16 * 16] = pairs[pair];
    }
}

/* Values into blocks of 32 dimensions: block, chunk of 32 keys, tile of 16 dimensions, pair of keys, dimension. */
static void pack_values(const shape_t *n, const bf16 *values, int64_t stride, scratch_t *s)
{
    uint32_t *packed = (uint32_t *)s->value;
    for (int64_t key = 0; key < n->positions; key += 2) {
        const bf16 *restrict even = values + key * stride, *restrict odd = even + stride;
        uint32_t high = key + 1 < n->positions ? 0xffffffff : 0; /* the pair's second key may not exist */
        odd = high ? odd : even;
        for (int64_t d = 0; d < n->dims; d += 16) {
            int64_t width = n->dims - d < 16 ? n->dims - d : 16;
            uint32_t *restrict row = packed + d / BLOCK * (n->keys_up * BLOCK / 2) + key / BLOCK * TILE
                                     + d % BLOCK / 16 * (TILE / 2) + key % BLOCK / 2 * 16;
            for (int64_t j = 0; j < width; j++)
                row[j] = even[d + j] | (((uint32_t)odd[d + j] << 16) & high);
        }
    }
}

/* Scores of the 16 keys from `key` on; those that the query, with its n_keys keys, may not see are minus infinity. */
static inline __m512 seen(const float *score, int64_t key, int64_t n_keys)
{
    if (key + LANES <= n_keys)
        return _mm512_loadu_ps(score + key);
    __mmask16 mask = key < n_keys ? (__mmask16)((1u << (n_keys - key)) - 1) : 0;
    return _mm512_mask_loadu_ps(_mm512_set1_ps(-INFINITY), mask, score + key);
}

/* Scores of one query into probabilities, not yet divided by their sum, which is returned. */
static inline float soften(const float *score, bf16 *probability, int64_t n_keys, int64_t n_wide, float scale)
{
    __m512 largest = _mm512_set1_ps(-INFINITY), sums = _mm512_setzero_ps();
    for (int64_t key = 0; key < n_keys; key += LANES)
        largest = _mm512_max_ps(largest, seen(score, key, n_keys));
    float shift = _mm512_reduce_max_ps(largest) * scale;
    for (int64_t key = 0; key < n_wide; key += LANES) {
        __m512 power = exp2_near(seen(score, key, n_keys) * scale - shift);
        sums += power;
        store(probability + key, power, LANES);
    }
    return _mm512_reduce_add_ps(sums);
}

/* 32 queries of one head, starting at `first`; keys and values are packed. out: the first query's output row. */
static void attend(const shape_t *n, int64_t first, const bf16 *queries, int64_t stride, const bf16 *cosine,
                   const bf16 *sine, bf16 *out, int64_t out_stride, scratch_t *s)
{
    int64_t rows = n->positions - first < BLOCK ? n->positions - first : BLOCK, n_wide = first + BLOCK;
    float sums[BLOCK];
    for (int64_t row = 0; row < rows; row++)
        rotate(queries + row * stride, cosine + (first + row) * n->dims, sine + (first + row) * n->dims,
               s->query + row * n->dims_up, n->dims / 2);
    for (int64_t key = 0; key < n_wide; key += BLOCK)
        n->multiply(s->query, n->dims_up, s->key + key * n->dims_up, n->dims_up / BLOCK, s->score + key, n_wide);
    for (int64_t row = 0; row < rows; row++)
        sums[row] = soften(s->score + row * n_wide, s->probability + row * n_wide, first + row + 1, n_wide,
                           n->scale * LOG2E);
    for (int64_t d = 0; d < n->dims_up; d += BLOCK)
        n->multiply(s->probability, n_wide, s->value + d * n->keys_up, n_wide / BLOCK, s->output + d, n->dims_up);
    for (int64_t row = 0; row < rows; row++) {
        float weight = 1.0f / sums[row];
        for (int64_t j = 0; j < n->dims; j += LANES)
            store(out + row * out_stride + j, _mm512_loadu_ps(s->output + row * n->dims_up + j) * weight, n->dims - j);
    }
}

/* Asks for a sequence's rows from front to back: a head's own are 128 bytes here and there, and each would be waited for. */
static void fetch(const bf16 *rows, int64_t bytes)
{
    if (bytes <= FETCH_BYTES)
        for (int64_t at = 0; at < bytes; at += 64)
            _mm_prefetch((const char *)rows + at, _MM_HINT_T1);
}

/* qkv: [sequences, positions, heads + 2 * key_heads, dims]; cosine, sine: [positions, dims]; out: [sequences, positions,
 * heads, dims]; scratch: `threads` times attention_scratch. `tiles`: 1 to use them; ask `support` first. */
void attention(const bf16 *qkv, const bf16 *cosine, const bf16 *sine, bf16 *out, bf16 *scratch, float scale,
               int64_t sequences, int64_t positions, int64_t heads, int64_t key_heads, int64_t dims, int threads,
               int tiles)
{
    shape_t n = {positions, heads, key_heads, dims, ROUND_UP(positions), ROUND_UP(dims), scale, multiply_by_vectors};
    const int64_t stride = (heads + 2 * key_heads) * dims, out_stride = heads * dims, group = heads / key_heads;
#ifdef HAS_TILES
    if (tiles)
        n.multiply = multiply_by_tiles;
#endif
#pragma omp parallel num_threads(threads)
    {
        scratch_t s = divide(scratch + omp_get_thread_num() * attention_scratch(positions, dims), &n);
        int64_t before = -2; /* this thread's last task */
#ifdef HAS_TILES
        if (tiles)
            configure_tiles();
#endif
#pragma omp for schedule(static)
        for (int64_t task = 0; task < sequences * key_heads; task++) {
            int64_t sequence = task / key_heads, key_head = task % key_heads;
            const bf16 *row = qkv + sequence * positions * stride;
            const bf16 *keys = row + (heads + key_head) * dims;
            if (task != before + 1 || key_head == 0)
                fetch(row, positions * stride * (int64_t)sizeof(bf16));
            before = task;
            pack_keys(&n, keys, stride, cosine, sine, &s);
            pack_values(&n, keys + key_heads * dims, stride, &s);
            for (int64_t head = key_head * group; head < (key_head + 1) * group; head++)
                for (int64_t first = 0; first < positions; first += BLOCK)
                    attend(&n, first, row + head * dims + first * stride, stride, cosine, sine,
                           out + (sequence * positions + first) * out_stride + head * dims, out_stride, &s);
        }
#ifdef HAS_TILES
        if (tiles)
            _tile_release();
#endif
    }
}

#endif /* AVX-512 with bfloat16 */
