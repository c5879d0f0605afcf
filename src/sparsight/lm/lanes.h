/* Sixteen bfloat16 numbers at a time as float32, and the AMX tiles; shared by kernels.c and product.c. */

#include <immintrin.h>
#include <stdint.h>
#include <omp.h>

#define LOG2E 1.44269504088896341f
#define LANES 16

typedef uint16_t bf16;

/* The first n of 16 numbers; the others read as 0 and are not written. */
static inline __m512 load(const bf16 *from, int64_t n)
{
    __m256i half = n >= LANES ? _mm256_loadu_si256((const void *)from)
                              : _mm256_maskz_loadu_epi16((__mmask16)((1u << n) - 1), from);
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}

static inline void store(bf16 *to, __m512 value, int64_t n)
{
    __m256i half = (__m256i)_mm512_cvtneps_pbh(value);
    if (n >= LANES)
        _mm256_storeu_si256((void *)to, half);
    else
        _mm256_mask_storeu_epi16(to, (__mmask16)((1u << n) - 1), half);
}

/* 2^x for x up to 126, to a relative 3e-6, a thousandth of what bfloat16 resolves; 0 below -126.5. Adding 1.5 * 2^23
 * rounds to a whole number and leaves it in the low bits, from where it is shifted into an exponent. */
static inline __m512 exp2_near(__m512 x)
{
    x = _mm512_max_ps(_mm512_set1_ps(-127.0f), x); /* in this order NaN stays */
    __m512 shifted = x + 12582912.0f, f = x - (shifted - 12582912.0f);
    __m512 p = 0.99999928f + f * (0.69312179f + f * (0.24024746f + f * (0.05591786f + f * 0.00957009f)));
    __m512i exponent = _mm512_add_epi32(_mm512_castps_si512(shifted), _mm512_set1_epi32(127));
    return p * _mm512_castsi512_ps(_mm512_slli_epi32(exponent, 23));
}

static inline __m512 silu(__m512 x)
{
    const __m512 least = _mm512_set1_ps(-126.0f); /* below, silu is nearer to zero than 1e-35 */
    __m512 below = 1.0f + exp2_near(-_mm512_max_ps(least, LOG2E * x));
    return x * _mm512_rcp14_ps(below); /* good to 2^-14, an eighth of what rounding to bfloat16 leaves of its own 2^-9 */
}

#define BLOCK 32 /* rows, columns and inner indices are handled 32 at a time: two tiles of 16 each way */
#define TILE 512 /* bfloat16 numbers in a tile: 16 rows of 64 bytes */
#define ROUND_UP(n) (((n) + BLOCK - 1) / BLOCK * BLOCK)

#if defined(__AMX_BF16__) && defined(__AMX_TILE__) && defined(__linux__)

#define HAS_TILES

static void configure_tiles(void)
{
    struct {
        uint8_t palette, start_row, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } config = {.palette = 1};
    for (int tile = 0; tile < 8; tile++) {
        config.row_bytes[tile] = 64;
        config.rows[tile] = 16;
    }
    _tile_loadconfig(&config);
}

#endif /* AMX */
