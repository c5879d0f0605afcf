/* One pass over the weights; included by cpu.c. */

typedef struct { /* cpu.py, _Adam */
    float lr, beta1, beta2, eps, correction1, correction2; /* corrections: 1 - beta^t */
} adam_t;

/* 1 / (sqrt(v) * root + eps) to float32's precision, by estimates and a Newton step each. No faster where memory is the limit (docs/log.md). */
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
