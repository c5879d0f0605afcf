/* Products x W' in bfloat16 on the AMX tiles, with what comes before and after them; called by product.py.
 *
 *   product      out = norm(x) W' + base             norm (RMSNorm by offset + weight) and base may be left out
 *   gated        out = (silu(h gate') * (h up')) down' + base, h = norm(x)
 *
 * Sums are float32 over the inner dimension in one order, and rounded to bfloat16 once, after base or silu; so results do
 * not depend on the number of threads, nor on what stands in other rows. Like all AMX products, they take subnormal
 * numbers for zero. All widths are multiples of 32.
 *
 * Weights lie in tiles (product.py packs them): panel of 32 columns, chunk of 32 inner indices, tile of 16 columns, pair
 * of inner indices, column. In gate_up 16 columns of gate and 16 of up take turns, so that both are in one panel. Rows
 * are put into tiles as well: block of 32, chunk, tile of 16 rows, row.
 *
 * A thread takes a group of rows that stays in its L2 cache with all that becomes of it, and a piece of a panel that
 * stays in L1 while all blocks of the group pass by. The tiles' unit works on its own for 64 cycles a chunk; meanwhile the
 * block before is finished, and the piece to come is asked for.
 */

#define _GNU_SOURCE
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if defined(__AVX512BF16__) && defined(__AVX512BW__) && defined(__AVX512VL__)
#include "lanes.h"
#endif

#ifndef BLOCK
int has_product(void) { return 0; }
#else

#define CHUNK (2 * TILE)
#define SQUARE (BLOCK * BLOCK)
#define PIECE 9 /* chunks of 2 KB in a piece: 6 and 12 are 3-5 % slower, 18 is 7 % */
#define AHEAD 8 /* rows asked for before they are put into tiles */
#define ALWAYS static inline __attribute__((always_inline))

int has_product(void) { return 1; }

typedef enum { PLAIN, ADDED, GATED } kind_t;

typedef struct {
    const bf16 *base; /* what ADDED adds, as out */
    bf16 *out;        /* [rows, width]; for GATED in tiles */
    int64_t width, rows;
} target_t;

typedef struct {
    const bf16 *weight; /* NULL: no norm */
    float offset, eps;
} norm_t;

/* A block whose sums are ready to be rounded and written; row and column of its first. */
typedef struct {
    const float *sums; /* NULL: none */
    int64_t row, column;
} block_t;

/* One row of 32 sums. */
ALWAYS void finish_row(kind_t kind, const target_t *to, const block_t *block, int64_t i)
{
    int64_t row = block->row + i, column = block->column;
    if (row >= to->rows)
        return;
    __m512 low = _mm512_loadu_ps(block->sums + i * BLOCK), high = _mm512_loadu_ps(block->sums + i * BLOCK + LANES);
    if (kind == GATED) {
        bf16 *chunk = to->out + row / BLOCK * BLOCK * to->width + column / 2 / BLOCK * CHUNK;
        store(chunk + row % BLOCK * BLOCK + column / 2 % BLOCK, silu(low) * high, LANES);
        return;
    }
    int64_t at = row * to->width + column;
    __builtin_prefetch(to->out + at + BLOCK * to->width, 1); /* the next block's row: 4 % of the product */
    if (kind == ADDED) {
        __builtin_prefetch(to->base + at + BLOCK * to->width, 0);
        low += load(to->base + at, LANES);
        high += load(to->base + at + LANES, LANES);
    }
    _mm512_storeu_si512(to->out + at, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* sums [32, 32] = 32 rows times a piece of 32 columns, plus earlier sums if there are any. Meanwhile `before` is
 * finished, and n_ahead lines a chunk are asked for from `ahead` on. */
ALWAYS void multiply(kind_t kind, const target_t *to, const block_t *before, const bf16 *rows, const bf16 *columns,
                     int64_t n_chunks, const bf16 *ahead, int64_t n_ahead, const float *earlier, float *sums)
{
    int64_t each = (BLOCK + n_chunks - 1) / n_chunks, ready = before->sums ? 0 : BLOCK;
    if (earlier) {
        _tile_loadd(0, earlier, BLOCK * 4);
        _tile_loadd(1, earlier + 16, BLOCK * 4);
        _tile_loadd(2, earlier + 16 * BLOCK, BLOCK * 4);
        _tile_loadd(3, earlier + 16 * BLOCK + 16, BLOCK * 4);
    } else {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int64_t chunk = 0; chunk < n_chunks; chunk++) {
        _tile_loadd(6, columns + chunk * CHUNK, 64);
        _tile_loadd(4, rows + chunk * CHUNK, 64);
        _tile_loadd(7, columns + chunk * CHUNK + TILE, 64);
        _tile_loadd(5, rows + chunk * CHUNK + TILE, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
        for (int64_t line = chunk * n_ahead; line < (chunk + 1) * n_ahead; line++)
            _mm_prefetch((const char *)ahead + line * 64, _MM_HINT_T1);
        for (int64_t end = ready + each; ready < end && ready < BLOCK; ready++)
            finish_row(kind, to, before, ready);
    }
    _tile_stored(0, sums, BLOCK * 4);
    _tile_stored(1, sums + 16, BLOCK * 4);
    _tile_stored(2, sums + 16 * BLOCK, BLOCK * 4);
    _tile_stored(3, sums + 16 * BLOCK + 16, BLOCK * 4);
}

/* A group of rows, in tiles, times a weight [n_columns, d]. sums: room for (blocks + 2) * 1024 numbers. */
ALWAYS void multiply_group(kind_t kind, const target_t *to, const bf16 *rows, const bf16 *weight, int64_t d,
                           int64_t n_columns, float *sums)
{
    int64_t n_chunks = d / BLOCK, n_pieces = (n_chunks + PIECE - 1) / PIECE, n_blocks = (to->rows + BLOCK - 1) / BLOCK;
    int64_t n_ahead = (BLOCK + n_blocks - 1) / n_blocks, turn = 0; /* a chunk of the weight is 32 lines */
    block_t before = {0};
    for (int64_t column = 0; column < n_columns; column += BLOCK)
        for (int64_t piece = 0; piece < n_pieces; piece++) {
            int64_t first = piece * n_chunks / n_pieces, some = (piece + 1) * n_chunks / n_pieces - first;
            const bf16 *columns = weight + column * d + first * CHUNK, *next = columns + some * CHUNK;
            for (int64_t block = 0; block < n_blocks; block++) {
                float *kept = sums + (block + 2) * SQUARE, *done = sums + turn * SQUARE;
                int is_last = piece + 1 == n_pieces;
                multiply(kind, to, &before, rows + block * BLOCK * d + first * CHUNK, columns, some,
                         next + block * some * n_ahead * BLOCK, n_ahead, piece ? kept : NULL, is_last ? done : kept);
                before.sums = NULL;
                if (is_last) {
                    before = (block_t){done, block * BLOCK, column};
                    turn ^= 1;
                }
            }
        }
    for (int64_t i = 0; i < BLOCK; i++)
        finish_row(kind, to, &before, i);
}

/* Each kind compiled for itself. */
static void multiply_plain(const target_t *to, const bf16 *rows, const bf16 *weight, int64_t d, float *sums)
{
    multiply_group(PLAIN, to, rows, weight, d, to->width, sums);
}

static void multiply_added(const target_t *to, const bf16 *rows, const bf16 *weight, int64_t d, float *sums)
{
    multiply_group(ADDED, to, rows, weight, d, to->width, sums);
}

static void multiply_gated(const target_t *to, const bf16 *rows, const bf16 *weight, int64_t d, float *sums)
{
    multiply_group(GATED, to, rows, weight, d, 2 * to->width, sums);
}

/* x [rows, d], normed, into tiles; rows that the last block lacks hold zeros. */
static void tile_rows(const bf16 *x, const norm_t *norm, int64_t rows, int64_t d, bf16 *tiles)
{
    for (int64_t row = 0; row < ROUND_UP(rows); row++) {
        const bf16 *in = x + row * d;
        bf16 *to = tiles + row / BLOCK * BLOCK * d + row % BLOCK * BLOCK;
        float scale = 0;
        for (int64_t j = 0; j < d; j += BLOCK)
            _mm_prefetch((const char *)(in + AHEAD * d + j), _MM_HINT_T0);
        if (norm->weight && row < rows) {
            __m512 squares = _mm512_setzero_ps();
            for (int64_t j = 0; j < d; j += LANES) {
                __m512 value = load(in + j, LANES);
                squares += value * value;
            }
            scale = 1.0f / sqrtf(_mm512_reduce_add_ps(squares) / (float)d + norm->eps);
        }
        for (int64_t j = 0; j < d; j += LANES) {
            bf16 *at = to + j / BLOCK * CHUNK + j % BLOCK;
            if (row >= rows)
                store(at, _mm512_setzero_ps(), LANES);
            else if (norm->weight)
                store(at, load(in + j, LANES) * scale * (norm->offset + load(norm->weight + j, LANES)), LANES);
            else
                _mm256_storeu_si256((void *)at, _mm256_loadu_si256((const void *)(in + j)));
        }
    }
}

/* Whether any n-th number of a weight is another than that of the samples. */
int samples_differ(const bf16 *weight, const bf16 *samples, int64_t n_samples, int64_t n)
{
    int differ = 0;
    for (int64_t i = 0; i < n_samples; i++)
        differ |= weight[i * n] != samples[i];
    return differ;
}

/* bfloat16 numbers' room that a thread needs for groups of `some` rows, a multiple of 32; hidden is 0 for `product`. */
int64_t product_scratch(int64_t some, int64_t d, int64_t hidden)
{
    return some * (d + hidden) + 2 * (some / BLOCK + 2) * SQUARE;
}

/* x: [rows, d]; weight: [width, d] in tiles; base, out: [rows, width]; scratch: `threads` times product_scratch. */
void product(const bf16 *x, const bf16 *norm_weight, float offset, float eps, const bf16 *weight, const bf16 *base,
             bf16 *out, bf16 *scratch, int64_t rows, int64_t d, int64_t width, int64_t some, int threads)
{
    const norm_t norm = {norm_weight, offset, eps};
#pragma omp parallel num_threads(threads)
    {
        bf16 *tiles = scratch + omp_get_thread_num() * product_scratch(some, d, 0);
        float *sums = (float *)(tiles + some * d);
        configure_tiles();
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += some) {
            int64_t here = rows - first < some ? rows - first : some;
            target_t to = {base ? base + first * width : NULL, out + first * width, width, here};
            tile_rows(x + first * d, &norm, here, d, tiles);
            (base ? multiply_added : multiply_plain)(&to, tiles, weight, d, sums);
        }
        _tile_release();
    }
}

/* x, base, out: [rows, d]; gate_up: [2 * hidden, d] and down: [d, hidden] in tiles; scratch as above. */
void gated(const bf16 *x, const bf16 *norm_weight, float offset, float eps, const bf16 *gate_up, const bf16 *down,
           const bf16 *base, bf16 *out, bf16 *scratch, int64_t rows, int64_t d, int64_t hidden, int64_t some, int threads)
{
    const norm_t norm = {norm_weight, offset, eps};
#pragma omp parallel num_threads(threads)
    {
        bf16 *tiles = scratch + omp_get_thread_num() * product_scratch(some, d, hidden), *middle = tiles + some * d;
        float *sums = (float *)(middle + some * hidden);
        configure_tiles();
#pragma omp for schedule(static)
        for (int64_t first = 0; first < rows; first += some) {
            int64_t here = rows - first < some ? rows - first : some;
            target_t inner = {NULL, middle, hidden, ROUND_UP(here)};
            target_t to = {base ? base + first * d : NULL, out + first * d, d, here};
            tile_rows(x + first * d, &norm, here, d, tiles);
            multiply_gated(&inner, tiles, gate_up, d, sums);
            (base ? multiply_added : multiply_plain)(&to, middle, down, hidden, sums);
        }
        _tile_release();
    }
}

#endif /* AMX */
