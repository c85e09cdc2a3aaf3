/* One decoding step of a Llama-like base in 8 bits, every row with an adapter of its own; see `native.py`.

   Weights are int8 by column, inputs are rounded to 8 bits by row, sums are exact integers (VPDPBUSD). Rows are shared
   out among the threads for what is a row's own (norms, adapters, rotations, attention), columns for the products. Only
   tokens that follow others are computed here, one for each row. The caller's OpenMP team is used. Sizes were checked. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const int8_t *w;      /* packed: [columns / 16][in / 4][16][4] */
    const int32_t *minus; /* -128 times the sum of each column: inputs are stored 128 too high */
    const float *scale;   /* of each column */
    int64_t in, columns, out;
} Product;

typedef struct {
    const float *R, *US; /* R of slot 0, (slots, size, size); U S, (size, out) */
    int64_t z, size;     /* where z stands in the product's columns */
} Move;

typedef struct {
    const Product *products; /* qkv, out, gate and up, down of every layer */
    const float *turn;       /* (block, block), for inputs of down */
    int64_t layers, width, heads, kv_heads, dim, wide, block;
    float eps;
} Model;

typedef struct {
    const Move *moves;       /* (layers, 4, ranks) */
    const uint8_t *moved;    /* (ranks, rows): whether the row has an adapter of that rank */
    const int64_t *places;   /* where the row's token stands */
    const float *cos, *sin;  /* (rows, dim / 2) */
    float *kv;               /* of the first row: (layers, 2, slots, kv heads, places, dim) by these strides */
    int64_t layer_stride, v_stride, slot_stride, head_stride;
    float *h;                /* (rows, width): in, the embeddings; out, the normed states */
    float *y;                /* (rows, most columns) */
    uint8_t *x;              /* (rows, most inputs) */
    float *scales;           /* (rows,) */
    float *room;             /* (rows, most of wide, places rounded up times heads) */
    int64_t rows, first, ranks, columns, inputs, rooms, threads;
} Step;

#define INLINE static inline __attribute__((always_inline))
#define VECTOR 16

INLINE float sum(__m512 v) { return _mm512_reduce_add_ps(v); }

/* exp of x <= 88, to two units in the last place (Cephes' polynomial) */
INLINE __m512 exponential(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(-87.3f));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 8);
    __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
    __m512 p = _mm512_set1_ps(1.9875691500e-4f);
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
    p = _mm512_fmadd_ps(_mm512_mul_ps(p, r), r, _mm512_add_ps(r, _mm512_set1_ps(1.0f)));
    return _mm512_scalef_ps(p, n);
}

/* x (n) times `by`, to 8 bits by its largest magnitude, 128 too high; the scale */
static float rounded(const float *x, float by, int64_t n, uint8_t *to)
{
    __m512 most = _mm512_setzero_ps(), times = _mm512_set1_ps(by);
    for (int64_t i = 0; i < n; i += VECTOR)
        most = _mm512_max_ps(most, _mm512_abs_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), times)));
    float scale = fmaxf(_mm512_reduce_max_ps(most) * (1.0f / 127), 1e-30f);
    __m512 divisor = _mm512_set1_ps(scale);
    for (int64_t i = 0; i < n; i += VECTOR) {
        __m512 v = _mm512_div_ps(_mm512_mul_ps(_mm512_loadu_ps(x + i), times), divisor);
        __m512i q = _mm512_add_epi32(_mm512_cvtps_epi32(v), _mm512_set1_epi32(128));
        _mm_storeu_si128((__m128i *)(to + i), _mm512_cvtepi32_epi8(q));
    }
    return scale;
}

static float inverse_root_mean_square(const float *h, int64_t n, float eps)
{
    __m512 total = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += VECTOR) {
        __m512 v = _mm512_loadu_ps(h + i);
        total = _mm512_fmadd_ps(v, v, total);
    }
    return 1.0f / sqrtf(sum(total) / (float)n + eps);
}

/* y of `rows` rows and `wide` times 16 columns from `panel` on */
INLINE void tile(const Product *p, int64_t panel, int wide, const uint8_t *x, int64_t inputs, const float *scales,
                 int rows, int scaled, float *y, int64_t columns)
{
    __m512i total[8][2];
    const int64_t steps = p->in / 4, size = steps * 64;
    const int8_t *w = p->w + panel * size;
    for (int v = 0; v < wide; v++)
        for (int r = 0; r < rows; r++)
            total[r][v] = _mm512_loadu_si512(p->minus + (panel + v) * VECTOR);
    for (int64_t k = 0; k < steps; k++) {
        __m512i column[2];
        for (int v = 0; v < wide; v++)
            column[v] = _mm512_loadu_si512(w + v * size + k * 64);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * inputs + 4 * k, 4);
            __m512i input = _mm512_set1_epi32(four);
            for (int v = 0; v < wide; v++)
                total[r][v] = _mm512_dpbusd_epi32(total[r][v], input, column[v]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < wide; v++) {
            __m512 found = _mm512_mul_ps(_mm512_cvtepi32_ps(total[r][v]), _mm512_set1_ps(scales[r]));
            if (scaled)
                found = _mm512_mul_ps(found, _mm512_loadu_ps(p->scale + (panel + v) * VECTOR));
            _mm512_storeu_ps(y + r * columns + (panel + v) * VECTOR, found);
        }
}

INLINE void tiles(const Product *p, int64_t panel, int wide, const uint8_t *x, int64_t inputs, const float *scales,
                  int64_t rows, int scaled, float *y, int64_t columns)
{
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 8, scaled, y + r * columns, columns);
    for (; r + 4 <= rows; r += 4)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 4, scaled, y + r * columns, columns);
    for (; r < rows; r++)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 1, scaled, y + r * columns, columns);
}

/* This thread's columns of a product */
static void product(const Product *p, const uint8_t *x, int64_t inputs, const float *scales, int64_t rows, int scaled,
                    float *y, int64_t columns)
{
    int64_t pairs = (p->columns / VECTOR + 1) / 2, threads = omp_get_num_threads(), me = omp_get_thread_num();
    int64_t panels = p->columns / VECTOR, end = 2 * (pairs * (me + 1) / threads);
    for (int64_t panel = 2 * (pairs * me / threads); panel < end && panel < panels; panel += 2) {
        if (panel + 1 < panels)
            tiles(p, panel, 2, x, inputs, scales, rows, scaled, y, columns);
        else
            tiles(p, panel, 1, x, inputs, scales, rows, scaled, y, columns);
    }
}

/* to += z R U S for each rank of which this row has an adapter */
static void adapt(const Step *s, const Move *moves, int64_t row, const float *y, float *to, int64_t out)
{
    for (int64_t rank = 0; rank < s->ranks; rank++) {
        if (!s->moved[rank * s->rows + row])
            continue;
        const Move *m = moves + rank;
        const float *z = y + m->z, *R = m->R + (s->first + row) * m->size * m->size;
        float t[m->size];
        for (int64_t j = 0; j < m->size; j++)
            t[j] = 0;
        for (int64_t i = 0; i < m->size; i++)
            for (int64_t j = 0; j < m->size; j++)
                t[j] += z[i] * R[i * m->size + j];
        for (int64_t c = 0; c < out; c += VECTOR) {
            __mmask16 some = c + VECTOR <= out ? 0xffff : (__mmask16)((1u << (out - c)) - 1);
            __m512 v = _mm512_maskz_loadu_ps(some, to + c);
            for (int64_t j = 0; j < m->size; j++)
                v = _mm512_fmadd_ps(_mm512_set1_ps(t[j]), _mm512_maskz_loadu_ps(some, m->US + j * out + c), v);
            _mm512_mask_storeu_ps(to + c, some, v);
        }
    }
}

/* Attention of `each` queries that share the keys k and values v (length, dim); `room` holds each * (length + 15) */
INLINE void attend(const float *q, const float *k, const float *v, int64_t length, int each, int64_t dim, float *room,
                   float *to)
{
    const int64_t stride = (length + VECTOR - 1) / VECTOR * VECTOR;
    const float by = 1.0f / sqrtf((float)dim);
    for (int64_t p = 0; p < length; p++)
        for (int e = 0; e < each; e++) {
            __m512 total = _mm512_setzero_ps();
            for (int64_t d = 0; d < dim; d += VECTOR)
                total = _mm512_fmadd_ps(_mm512_loadu_ps(q + e * dim + d), _mm512_loadu_ps(k + p * dim + d), total);
            room[e * stride + p] = by * sum(total);
        }
    for (int e = 0; e < each; e++) {
        float *chances = room + e * stride, most = chances[0];
        for (int64_t p = 1; p < length; p++)
            most = fmaxf(most, chances[p]);
        for (int64_t p = length; p < stride; p++)
            chances[p] = -INFINITY;
        __m512 total = _mm512_setzero_ps();
        for (int64_t p = 0; p < stride; p += VECTOR) {
            __mmask16 there = p + VECTOR <= length ? 0xffff : (__mmask16)((1u << (length - p)) - 1);
            __m512 c = exponential(_mm512_sub_ps(_mm512_loadu_ps(chances + p), _mm512_set1_ps(most)));
            c = _mm512_maskz_mov_ps(there, c);
            total = _mm512_add_ps(total, c);
            _mm512_storeu_ps(chances + p, c);
        }
        float scale = 1.0f / sum(total);
        for (int64_t d = 0; d < dim; d += VECTOR) {
            __m512 found = _mm512_setzero_ps();
            for (int64_t p = 0; p < length; p++)
                found = _mm512_fmadd_ps(_mm512_set1_ps(chances[p]), _mm512_loadu_ps(v + p * dim + d), found);
            _mm512_storeu_ps(to + e * dim + d, _mm512_mul_ps(found, _mm512_set1_ps(scale)));
        }
    }
}

/* Queries and keys are turned by their place, keys and values kept, and attention's output written over the queries */
static void look_back(const Model *m, const Step *s, int64_t layer, int64_t row)
{
    const int64_t dim = m->dim, each = m->heads / m->kv_heads, queries = m->heads * dim, keys = m->kv_heads * dim;
    const float *cos = s->cos + row * dim / 2, *sin = s->sin + row * dim / 2;
    float *y = s->y + row * s->columns, *kv = s->kv + layer * s->layer_stride + row * s->slot_stride;
    for (int64_t head = 0; head < m->heads + m->kv_heads; head++)
        for (int64_t i = 0; i < dim / 2; i++) {
            float *pair = y + head * dim + 2 * i, even = pair[0], odd = pair[1];
            pair[0] = even * cos[i] - odd * sin[i];
            pair[1] = even * sin[i] + odd * cos[i];
        }
    for (int64_t head = 0; head < m->kv_heads; head++) {
        float *k = kv + head * s->head_stride, *v = k + s->v_stride;
        memcpy(k + s->places[row] * dim, y + queries + head * dim, dim * sizeof(float));
        memcpy(v + s->places[row] * dim, y + queries + keys + head * dim, dim * sizeof(float));
        float *q = y + head * each * dim, *room = s->room + row * s->rooms;
        if (dim == 64)
            attend(q, k, v, s->places[row] + 1, (int)each, 64, room, q);
        else
            attend(q, k, v, s->places[row] + 1, (int)each, dim, room, q);
    }
}

/* SiLU of the gates times ups, turned block by block, into `to` */
static void gated(const Model *m, const float *gate, float *to)
{
    const float *up = gate + m->wide, *H = m->turn;
    for (int64_t c = 0; c < m->wide; c += VECTOR) {
        __m512 g = _mm512_loadu_ps(gate + c);
        __m512 e = exponential(_mm512_min_ps(_mm512_sub_ps(_mm512_setzero_ps(), g), _mm512_set1_ps(88.0f)));
        __m512 a = _mm512_div_ps(g, _mm512_add_ps(_mm512_set1_ps(1.0f), e));
        _mm512_storeu_ps(to + c, _mm512_mul_ps(a, _mm512_loadu_ps(up + c)));
    }
    for (int64_t at = 0; at < m->wide; at += m->block) {
        float turned[m->block];
        for (int64_t c = 0; c < m->block; c += VECTOR) {
            __m512 found = _mm512_setzero_ps();
            for (int64_t k = 0; k < m->block; k++)
                found = _mm512_fmadd_ps(_mm512_set1_ps(to[at + k]), _mm512_loadu_ps(H + k * m->block + c), found);
            _mm512_storeu_ps(turned + c, found);
        }
        memcpy(to + at, turned, m->block * sizeof(float));
    }
}

/* h += y, scaled by column, and what the adapters add */
static void add(const Step *s, const Product *p, const Move *moves, int64_t row, float *h)
{
    const float *y = s->y + row * s->columns;
    for (int64_t c = 0; c < p->out; c += VECTOR)
        _mm512_storeu_ps(h + c, _mm512_fmadd_ps(_mm512_loadu_ps(y + c), _mm512_loadu_ps(p->scale + c), _mm512_loadu_ps(h + c)));
    adapt(s, moves, row, y, h, p->out);
}

void whit_step(const Model *m, const Step *s)
{
#pragma omp parallel num_threads(s->threads)
    {
        const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        const int64_t begin = s->rows * me / threads, end = s->rows * (me + 1) / threads;
        for (int64_t layer = 0; layer < m->layers; layer++) {
            const Product *p = m->products + 4 * layer;
            const Move *moves = s->moves + 4 * layer * s->ranks;
            for (int64_t row = begin; row < end; row++) {
                float *h = s->h + row * m->width;
                s->scales[row] = rounded(h, inverse_root_mean_square(h, m->width, m->eps), m->width, s->x + row * s->inputs);
            }
#pragma omp barrier
            product(p, s->x, s->inputs, s->scales, s->rows, 1, s->y, s->columns);
#pragma omp barrier
            for (int64_t row = begin; row < end; row++) {
                float *y = s->y + row * s->columns;
                adapt(s, moves, row, y, y, p->out);
                look_back(m, s, layer, row);
                s->scales[row] = rounded(y, 1.0f, m->heads * m->dim, s->x + row * s->inputs);
            }
#pragma omp barrier
            product(p + 1, s->x, s->inputs, s->scales, s->rows, 0, s->y, s->columns);
#pragma omp barrier
            for (int64_t row = begin; row < end; row++) {
                float *h = s->h + row * m->width;
                add(s, p + 1, moves + s->ranks, row, h);
                s->scales[row] = rounded(h, inverse_root_mean_square(h, m->width, m->eps), m->width, s->x + row * s->inputs);
            }
#pragma omp barrier
            product(p + 2, s->x, s->inputs, s->scales, s->rows, 1, s->y, s->columns);
#pragma omp barrier
            for (int64_t row = begin; row < end; row++) {
                float *y = s->y + row * s->columns, *room = s->room + row * s->rooms;
                adapt(s, moves + 2 * s->ranks, row, y, y, p[2].out);
                gated(m, y, room);
                s->scales[row] = rounded(room, 1.0f, m->wide, s->x + row * s->inputs);
            }
#pragma omp barrier
            product(p + 3, s->x, s->inputs, s->scales, s->rows, 0, s->y, s->columns);
#pragma omp barrier
            for (int64_t row = begin; row < end; row++)
                add(s, p + 3, moves + 3 * s->ranks, row, s->h + row * m->width);
        }
        for (int64_t row = begin; row < end; row++) {
            float *h = s->h + row * m->width;
            __m512 by = _mm512_set1_ps(inverse_root_mean_square(h, m->width, m->eps));
            for (int64_t c = 0; c < m->width; c += VECTOR)
                _mm512_storeu_ps(h + c, _mm512_mul_ps(_mm512_loadu_ps(h + c), by));
        }
    }
}

/* y (rows, columns) of x (rows, in), scaled by column where asked; `bytes` (rows, in) and `scales` (rows,) are room */
void whit_product(const Product *p, const float *x, int64_t rows, int32_t scaled, uint8_t *bytes, float *scales, float *y,
                  int64_t team)
{
#pragma omp parallel num_threads(team)
    {
        const int64_t threads = omp_get_num_threads(), me = omp_get_thread_num();
        for (int64_t row = rows * me / threads; row < rows * (me + 1) / threads; row++)
            scales[row] = rounded(x + row * p->in, 1.0f, p->in, bytes + row * p->in);
#pragma omp barrier
        product(p, bytes, p->in, scales, rows, scaled, y, p->columns);
    }
}
