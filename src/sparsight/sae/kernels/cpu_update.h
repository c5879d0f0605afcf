/* One pass over the weights; included by cpu.c. */

typedef struct { /* cpu.py, _Adam */
    float lr, beta1, beta2, eps, correction1, correction2, factor; /* corrections: 1 - beta^t; factor: of every gradient */
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
    float step = a->lr / a->correction1, root = 1 / sqrtf(a->correction2), b1 = a->beta1, b2 = a->beta2, eps = a->eps,
          factor = a->factor;
    int64_t c = 0;
    for (; c + LANES <= d; c += LANES) {
        floats slope = factor * *(const floats *)(g + c);
        floats mean = b1 * *(floats *)(m + c) + (1 - b1) * slope, square = b2 * *(floats *)(v + c) + (1 - b2) * slope * slope;
        *(floats *)(m + c) = mean;
        *(floats *)(v + c) = square;
        *(floats *)(w + c) -= step * mean * inverse(square, root, eps);
    }
    for (; c < d; c++) {
        float slope = factor * g[c];
        m[c] = b1 * m[c] + (1 - b1) * slope;
        v[c] = b2 * v[c] + (1 - b2) * slope * slope;
        w[c] -= step * m[c] / (sqrtf(v[c]) * root + eps);
    }
}

enum { PARTS = 64 }; /* of the rows: a fixed number, so that sums do not depend on the number of threads */

static inline void add_scaled(float *restrict sum, float factor, const float *restrict row, int64_t d) {
    for (int64_t c = 0; c < d; c++) sum[c] += factor * row[c];
}

/* One pass over a weight matrix: the gradient along the row removed (unit_norm) or a pull towards shorter rows added, Adam, the
   rows back to norm 1, the bfloat16 copy. `weighted` gets sum_j coefficients[j] * w[j] of the rows as they were. */
void update_rows(int64_t width, int64_t d, int64_t stride, const bf16 *gradient, float *w, float *m, float *v, bf16 *copy,
                 const adam_t *a,
                 int64_t unit_norm, const float *pull, const float *coefficients, float *weighted) {
    float *parts = weighted ? calloc(PARTS * d, sizeof(float)) : 0;
#pragma omp parallel
    {
        float *g = scratch(d);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t j = part * width / PARTS; j < (part + 1) * width / PARTS; j++) {
                float *row = w + j * d;
                if (weighted) add_scaled(parts + part * d, coefficients[j], row, d);
                for (int64_t c = 0; c < d; c++) g[c] = wide(gradient[j * d + c]);
                float along = unit_norm ? dot(g, row, d) : 0;
                if (pull && pull[j]) along = -pull[j] / sqrtf(dot(row, row, d));
                if (along) add_scaled(g, -along, row, d);
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

/* Sum of squares of a gradient, each row's with its pull joined; `weighted` as above. */
double gradient_squares(int64_t width, int64_t d, const bf16 *gradient, const float *w, const float *pull,
                        const float *coefficients, float *weighted) {
    double squares[PARTS] = {0}, sum = 0;
    float *parts = weighted ? calloc(PARTS * d, sizeof(float)) : 0;
#pragma omp parallel
    {
        float *g = scratch(d);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < PARTS; part++)
            for (int64_t j = part * width / PARTS; j < (part + 1) * width / PARTS; j++) {
                const float *row = w + j * d;
                float along = pull && pull[j] ? pull[j] / sqrtf(dot(row, row, d)) : 0;
                for (int64_t c = 0; c < d; c++) g[c] = wide(gradient[j * d + c]);
                if (along) add_scaled(g, along, row, d);
                if (weighted) add_scaled(parts + part * d, coefficients[j], row, d);
                squares[part] += dot(g, g, d);
            }
        free(g);
    }
    for (int part = 0; part < PARTS; part++) sum += squares[part];
    if (weighted) add_parts(PARTS, d, parts, weighted);
    free(parts);
    return sum;
}

/* Adam for a vector. */
void update_vector(int64_t n, const float *gradient, float *w, float *m, float *v, const adam_t *a) {
    adam_row(w, m, v, gradient, n, a);
}
