/* Tokens through a Llama-like base in 8 bits, every one with the adapter of its slot; see `native.py`.

   Weights are int8 by column, inputs are rounded to 8 bits by row, sums are exact integers (VPDPBUSD). Rows are shared
   out among the threads for what is a row's own (norms, adapters, rotations, attention), columns for the products. A row
   is one token: of an answer, or one of several of a prompt, which stand in the same slot and see those before them.
   Every row is computed alike whatever rows are beside it, to the last bit. The caller's OpenMP team is used, but for its barriers:
   threads take shares as they come, so that one whose processor is taken away is waited for only where it has a share
   in hand. Sizes were checked. */

#include <immintrin.h>
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <string.h>

typedef struct {
    const int8_t *w;      /* packed: [columns / 16][in / 4][16][4] */
    const int32_t *minus; /* -128 times the sum of each column: inputs are stored 128 too high */
    const float *scale;   /* of each column */
    int64_t in, columns, out;
} Product;

typedef struct {
    const float *R, *US; /* R of slot 0, (slots, size, size); U S of all modules side by side, (rank, out) */
    const int64_t *ends; /* where each module's columns end */
    int64_t z, size, rank; /* where z stands in the product's columns; size is rank times modules */
} Move;

typedef struct {
    const float *A; /* (modules * rank, in); NULL where it leaves the product alone */
    const float *B; /* Bᵀ of all modules side by side, (rank, out) */
    const int64_t *ends;
    int64_t rank, size;
} Lora;

typedef struct {
    const Product *products; /* qkv, out, gate and up, down of every layer */
    const float *turn;       /* (block, block), for inputs of down */
    const float *spread;     /* (64,): turn is Hadamard's matrix with its rows scaled by this; or NULL */
    const float *residual;   /* (width, width), for the embeddings */
    int64_t layers, width, heads, kv_heads, dim, wide, block;
    float eps;
} Model;

typedef struct {
    const Move *moves;       /* (layers, 4, ranks) */
    const uint8_t *moved;    /* (ranks, rows): whether the row has an adapter of that rank */
    const Lora *const *loras; /* (rows,): NULL, or a row's own of every product; NULL where no row has one */
    float *t;                /* (rows, most of a LoRA's size) */
    const int64_t *slots, *places; /* where each row's token stands; of a slot, all before it are known or rows here */
    const float *cos, *sin;  /* (places, dim / 2) */
    uint16_t *kv;            /* bfloat16 (layers, 2, slots, kv heads, places, dim), by these strides */
    int64_t layer_stride, v_stride, slot_stride, head_stride;
    const float *embeds;     /* (rows, width) */
    float *h;                /* (rows, width): out, the normed states */
    float *y;                /* (rows, most columns) */
    uint8_t *x;              /* (rows, most inputs) */
    float *scales;           /* (rows,) */
    float *room;             /* (threads, most of wide, places rounded up times heads) */
    int64_t rows, ranks, sizes, columns, inputs, rooms, threads;
} Step;

#define INLINE static inline __attribute__((always_inline))
#define VECTOR 16

/* A thread's part of a piece of work: how much of it was taken; and, in the first thread's, how much of all is done */
typedef struct {
    _Alignas(64) atomic_llong taken;
    atomic_llong done;
} Work;

/* What a thread takes of `items`: of its own part `grain` by `grain`, then of the parts of others */
typedef struct {
    Work *work;
    int64_t items, grain, threads, me, turn;
} Shares;

INLINE int64_t take(Shares *s, int64_t *end)
{
    for (; s->turn < s->threads; s->turn++) {
        const int64_t whose = (s->me + s->turn) % s->threads, last = s->items * (whose + 1) / s->threads;
        const int64_t at = s->items * whose / s->threads +
                           s->grain * atomic_fetch_add_explicit(&s->work[whose].taken, 1, memory_order_relaxed);
        if (at < last) {
            *end = at + s->grain < last ? at + s->grain : last;
            return at;
        }
    }
    return -1;
}

INLINE void finish(const Shares *s, int64_t items)
{
    atomic_fetch_add_explicit(&s->work->done, items, memory_order_release);
}

/* Until all is done, by other threads too */
static void wait_for(const Shares *s)
{
    for (int turn = 0; atomic_load_explicit(&s->work->done, memory_order_acquire) < s->items; turn++)
        if (turn < 2000)
            _mm_pause();
        else
            sched_yield();
}

/* The body is run for each row that this thread takes */
#define EACH_ROW(which, row, rows, threads, ...)                                                     \
    do {                                                                                             \
        Shares shares_ = {which, rows, ((rows) + 4 * (threads)-1) / (4 * (threads)), threads, me, 0}; \
        for (int64_t end_, at_; (at_ = take(&shares_, &end_)) >= 0; finish(&shares_, end_ - at_))    \
            for (int64_t row = at_; row < end_; row++)                                               \
                __VA_ARGS__                                                                          \
        wait_for(&shares_);                                                                          \
    } while (0)

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

/* y (rows, wide times 16), its rows `columns` apart, of the weights' columns from `panel` on. Meanwhile every `every`th
   line of weights is fetched from `ahead` on, for weights come from memory and are used once a step. */
INLINE void tile(const Product *p, int64_t panel, int wide, const uint8_t *x, int64_t inputs, const float *scales,
                 int rows, int scaled, float *y, int64_t columns, const int8_t *ahead, int64_t every)
{
    __m512i total[8][2];
    const int64_t steps = p->in / 4, size = steps * 64;
    const int8_t *w = p->w + panel * size;
    int64_t left = 1;
    for (int v = 0; v < wide; v++)
        for (int r = 0; r < rows; r++)
            total[r][v] = _mm512_loadu_si512(p->minus + (panel + v) * VECTOR);
    for (int64_t k = 0; k < steps; k++) {
        __m512i column[2];
        if (--left == 0) {
            for (int v = 0; v < wide; v++)
                _mm_prefetch((const char *)(ahead + v * size), _MM_HINT_T0);
            ahead += 64;
            left = every;
        }
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
            _mm512_storeu_ps(y + r * columns + v * VECTOR, found);
        }
}

INLINE void tiles(const Product *p, int64_t panel, int wide, const uint8_t *x, int64_t inputs, const float *scales,
                  int64_t rows, int scaled, float *y, int64_t columns)
{
    const int64_t size = p->in * VECTOR, blocks = rows / 8 + rows % 8 / 4 + rows % 4, share = p->in / 4 / blocks * 64;
    const int8_t *ahead = p->w + (panel + wide) * size;
    int64_t r = 0;
    for (; r + 8 <= rows; r += 8, ahead += share)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 8, scaled, y + r * columns, columns, ahead, blocks);
    for (; r + 4 <= rows; r += 4, ahead += share)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 4, scaled, y + r * columns, columns, ahead, blocks);
    for (; r < rows; r++, ahead += share)
        tile(p, panel, wide, x + r * inputs, inputs, scales + r, 1, scaled, y + r * columns, columns, ahead, blocks);
}

/* The columns of a product that this thread takes, two panels at a time */
static void product(Work *work, int64_t me, const Product *p, const uint8_t *x, int64_t inputs, const float *scales,
                    int64_t rows, int scaled, float *y, int64_t columns, int64_t threads)
{
    const int64_t panels = p->columns / VECTOR;
    Shares shares = {work, (panels + 1) / 2, 2, threads, me, 0};
    for (int64_t end, pair; (pair = take(&shares, &end)) >= 0; finish(&shares, end - pair))
        for (int64_t panel = 2 * pair; panel < panels && panel < 2 * end; panel += 2) {
            if (panel + 1 < panels)
                tiles(p, panel, 2, x, inputs, scales, rows, scaled, y + panel * VECTOR, columns);
            else
                tiles(p, panel, 1, x, inputs, scales, rows, scaled, y + panel * VECTOR, columns);
        }
    wait_for(&shares);
}

/* to += t U S for the columns from `at` to `end` */
INLINE void outwards(const float *t, const float *US, int64_t rank, int64_t out, int64_t at, int64_t end, float *to)
{
    for (; at < end; at += VECTOR) {
        __m512 v = _mm512_loadu_ps(to + at);
        for (int64_t j = 0; j < rank; j++)
            v = _mm512_fmadd_ps(_mm512_set1_ps(t[j]), _mm512_loadu_ps(US + j * out + at), v);
        _mm512_storeu_ps(to + at, v);
    }
}

/* The same for all modules, whose columns end at `ends`; t (modules, rank) */
INLINE void outwards_all(const float *t, const float *US, int64_t rank, const int64_t *ends, int64_t out, float *to)
{
    for (int64_t module = 0, at = 0; at < out; at = ends[module++])
        if (rank == 2)
            outwards(t + 2 * module, US, 2, out, at, ends[module], to);
        else
            outwards(t + rank * module, US, rank, out, at, ends[module], to);
}

/* The LoRA of a row at a product, or NULL */
INLINE const Lora *lora_of(const Step *s, int64_t which, int64_t row)
{
    const Lora *l = s->loras ? s->loras[row] : NULL;
    return l && l[which].A ? l + which : NULL;
}

/* to (wide) = A (wide, n) x by */
INLINE void dots(const float *A, int wide, const float *x, float by, int64_t n, float *to)
{
    __m512 total[4];
    for (int j = 0; j < wide; j++)
        total[j] = _mm512_setzero_ps();
    for (int64_t i = 0; i < n; i += VECTOR)
        for (int j = 0; j < wide; j++)
            total[j] = _mm512_fmadd_ps(_mm512_loadu_ps(A + j * n + i), _mm512_loadu_ps(x + i), total[j]);
    for (int j = 0; j < wide; j++)
        to[j] = by * sum(total[j]);
}

/* What a row's LoRA makes of the product's inputs x (n) times `by`, kept until the product is done */
static void inwards(const Step *s, int64_t which, int64_t row, const float *x, float by, int64_t n)
{
    const Lora *l = lora_of(s, which, row);
    float *t = s->t + row * s->sizes;
    int64_t j = 0;
    if (!l)
        return;
    for (; j + 4 <= l->size; j += 4)
        dots(l->A + j * n, 4, x, by, n, t + j);
    for (; j < l->size; j++)
        dots(l->A + j * n, 1, x, by, n, t + j);
}

/* to += z R U S for each rank of which this row has an adapter, and what its LoRA adds */
static void adapt(const Step *s, int64_t which, int64_t row, const float *y, float *to, int64_t out)
{
    const Lora *l = lora_of(s, which, row);
    if (l)
        outwards_all(s->t + row * s->sizes, l->B, l->rank, l->ends, out, to);
    for (int64_t each = 0; each < s->ranks; each++) {
        if (!s->moved[each * s->rows + row])
            continue;
        const Move *m = s->moves + which * s->ranks + each;
        const float *z = y + m->z, *R = m->R + s->slots[row] * m->size * m->size;
        float t[m->size];
        for (int64_t j = 0; j < m->size; j++)
            t[j] = 0;
        for (int64_t i = 0; i < m->size; i++)
            for (int64_t j = 0; j < m->size; j++)
                t[j] += z[i] * R[i * m->size + j];
        outwards_all(t, m->US, m->rank, m->ends, out, to);
    }
}

INLINE __m512 whole(const uint16_t *x)
{
    __m512i bits = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)x));
    return _mm512_castsi512_ps(_mm512_slli_epi32(bits, 16));
}

/* n numbers to bfloat16, ties to even */
static void halved(const float *x, int64_t n, uint16_t *to)
{
    for (int64_t i = 0; i < n; i += VECTOR) {
        __m512i bits = _mm512_loadu_si512(x + i), one = _mm512_set1_epi32(1);
        __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), one);
        bits = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
        _mm256_storeu_si256((__m256i *)(to + i), _mm512_cvtepi32_epi16(_mm512_srli_epi32(bits, 16)));
    }
}

/* The first of n numbers are on their way from memory; the processor sees to the others */
INLINE void fetch(const uint16_t *x, int64_t n)
{
    for (int64_t at = 0; at < n && at < 16384; at += 2 * VECTOR)
        _mm_prefetch((const char *)(x + at), _MM_HINT_T0);
}

/* Attention of `each` queries that share the keys k and values v (length, dim); `room` holds each * (length + 15) */
INLINE void attend(const float *q, const uint16_t *k, const uint16_t *v, int64_t length, int each, int64_t dim, float *room,
                   float *to)
{
    const int64_t stride = (length + VECTOR - 1) / VECTOR * VECTOR;
    const float by = 1.0f / sqrtf((float)dim);
    float scales[each];
    fetch(v, length * dim);
    for (int64_t p = 0; p < length; p++)
        for (int e = 0; e < each; e++) {
            __m512 total = _mm512_setzero_ps();
            for (int64_t d = 0; d < dim; d += VECTOR)
                total = _mm512_fmadd_ps(_mm512_loadu_ps(q + e * dim + d), whole(k + p * dim + d), total);
            room[e * stride + p] = by * sum(total);
        }
    for (int e = 0; e < each; e++) {
        float *chances = room + e * stride;
        for (int64_t p = length; p < stride; p++)
            chances[p] = -INFINITY;
        __m512 highest = _mm512_loadu_ps(chances);
        for (int64_t p = VECTOR; p < stride; p += VECTOR)
            highest = _mm512_max_ps(highest, _mm512_loadu_ps(chances + p));
        const float most = _mm512_reduce_max_ps(highest);
        __m512 total = _mm512_setzero_ps();
        for (int64_t p = 0; p < stride; p += VECTOR) {
            __mmask16 there = p + VECTOR <= length ? 0xffff : (__mmask16)((1u << (length - p)) - 1);
            __m512 c = exponential(_mm512_sub_ps(_mm512_loadu_ps(chances + p), _mm512_set1_ps(most)));
            c = _mm512_maskz_mov_ps(there, c);
            total = _mm512_add_ps(total, c);
            _mm512_storeu_ps(chances + p, c);
        }
        scales[e] = 1.0f / sum(total);
    }
    for (int64_t d = 0; d < dim; d += VECTOR)
        for (int e = 0; e < each; e += 2) {
            const float *one = room + e * stride, *two = one + (e + 1 < each ? stride : 0);
            __m512 a = _mm512_setzero_ps(), b = a, c = a, z = a;
            int64_t p = 0;
            for (; p + 2 <= length; p += 2) {
                __m512 even = whole(v + p * dim + d), odd = whole(v + (p + 1) * dim + d);
                a = _mm512_fmadd_ps(_mm512_set1_ps(one[p]), even, a);
                b = _mm512_fmadd_ps(_mm512_set1_ps(two[p]), even, b);
                c = _mm512_fmadd_ps(_mm512_set1_ps(one[p + 1]), odd, c);
                z = _mm512_fmadd_ps(_mm512_set1_ps(two[p + 1]), odd, z);
            }
            if (p < length) {
                __m512 last = whole(v + p * dim + d);
                a = _mm512_fmadd_ps(_mm512_set1_ps(one[p]), last, a);
                b = _mm512_fmadd_ps(_mm512_set1_ps(two[p]), last, b);
            }
            _mm512_storeu_ps(to + e * dim + d, _mm512_mul_ps(_mm512_add_ps(a, c), _mm512_set1_ps(scales[e])));
            if (e + 1 < each)
                _mm512_storeu_ps(to + (e + 1) * dim + d, _mm512_mul_ps(_mm512_add_ps(b, z), _mm512_set1_ps(scales[e + 1])));
        }
}

/* Queries and keys are turned by their place, keys and values kept */
static void keep(const Model *m, const Step *s, int64_t layer, int64_t row)
{
    const int64_t dim = m->dim, queries = m->heads * dim, keys = m->kv_heads * dim, place = s->places[row];
    const float *cos = s->cos + place * dim / 2, *sin = s->sin + place * dim / 2;
    float *y = s->y + row * s->columns;
    uint16_t *kv = s->kv + layer * s->layer_stride + s->slots[row] * s->slot_stride + place * dim;
    const __m512i twice = _mm512_set_epi32(7, 7, 6, 6, 5, 5, 4, 4, 3, 3, 2, 2, 1, 1, 0, 0);
    for (int64_t at = 0; at < dim; at += VECTOR) {
        __m512 c = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(cos + at / 2)));
        __m512 i = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(_mm256_loadu_ps(sin + at / 2)));
        for (int64_t head = 0; head < m->heads + m->kv_heads; head++) {
            __m512 pairs = _mm512_loadu_ps(y + head * dim + at);
            __m512 other = _mm512_mul_ps(_mm512_permute_ps(pairs, 0xb1), i);
            _mm512_storeu_ps(y + head * dim + at, _mm512_fmaddsub_ps(pairs, c, other));
        }
    }
    for (int64_t head = 0; head < m->kv_heads; head++, kv += s->head_stride) {
        halved(y + queries + head * dim, dim, kv);
        halved(y + queries + keys + head * dim, dim, kv + s->v_stride);
    }
}

/* Attention's output, written over the queries; every key that is seen was kept before */
static void look_back(const Model *m, const Step *s, int64_t layer, int64_t row, float *room)
{
    const int64_t dim = m->dim, each = m->heads / m->kv_heads, length = s->places[row] + 1;
    const uint16_t *k = s->kv + layer * s->layer_stride + s->slots[row] * s->slot_stride;
    float *q = s->y + row * s->columns;
    for (int64_t head = 0; head < m->kv_heads; head++, k += s->head_stride, q += each * dim) {
        if (head + 1 < m->kv_heads)
            fetch(k + s->head_stride, length * dim);
        if (dim == 64)
            attend(q, k, k + s->v_stride, length, (int)each, 64, room, q);
        else
            attend(q, k, k + s->v_stride, length, (int)each, dim, room, q);
    }
}

/* to (width) = e (width) times the residual stream's rotation, sixteen times `wide` columns from `at` on */
INLINE void spread(const Model *m, const float *e, int64_t at, int wide, float *to)
{
    __m512 found[12];
    for (int v = 0; v < wide; v++)
        found[v] = _mm512_setzero_ps();
    for (int64_t k = 0; k < m->width; k++)
        for (int v = 0; v < wide; v++)
            found[v] = _mm512_fmadd_ps(
                _mm512_set1_ps(e[k]), _mm512_loadu_ps(m->residual + k * m->width + at + v * VECTOR), found[v]);
    for (int v = 0; v < wide; v++)
        _mm512_storeu_ps(to + at + v * VECTOR, found[v]);
}

static void begin(const Model *m, const float *e, float *to)
{
    int64_t at = 0;
    for (; at + 12 * VECTOR <= m->width; at += 12 * VECTOR)
        spread(m, e, at, 12, to);
    for (; at < m->width; at += VECTOR)
        spread(m, e, at, 1, to);
}

/* x (64) times a Hadamard matrix whose rows are scaled by `scale` (64), in its place: six rounds of sums and differences */
INLINE void turned_fast(const float *scale, float *x)
{
    const __m512i eights = _mm512_set_epi32(7, 6, 5, 4, 3, 2, 1, 0, 15, 14, 13, 12, 11, 10, 9, 8);
    __m512 v[4], one = _mm512_set1_ps(1.0f);
    for (int i = 0; i < 4; i++) {
        __m512 a = _mm512_mul_ps(_mm512_loadu_ps(x + i * VECTOR), _mm512_loadu_ps(scale + i * VECTOR));
        /* the second of each two is taken from the first: other + (1 or -1) * own */
        a = _mm512_fmadd_ps(a, _mm512_mask_sub_ps(one, 0xaaaa, _mm512_setzero_ps(), one), _mm512_permute_ps(a, 0xb1));
        a = _mm512_fmadd_ps(a, _mm512_mask_sub_ps(one, 0xcccc, _mm512_setzero_ps(), one), _mm512_permute_ps(a, 0x4e));
        a = _mm512_fmadd_ps(a, _mm512_mask_sub_ps(one, 0xf0f0, _mm512_setzero_ps(), one), _mm512_shuffle_f32x4(a, a, 0xb1));
        v[i] = _mm512_fmadd_ps(a, _mm512_mask_sub_ps(one, 0xff00, _mm512_setzero_ps(), one), _mm512_permutexvar_ps(eights, a));
    }
    __m512 a = _mm512_add_ps(v[0], v[1]), b = _mm512_sub_ps(v[0], v[1]);
    __m512 c = _mm512_add_ps(v[2], v[3]), d = _mm512_sub_ps(v[2], v[3]);
    _mm512_storeu_ps(x, _mm512_add_ps(a, c));
    _mm512_storeu_ps(x + VECTOR, _mm512_add_ps(b, d));
    _mm512_storeu_ps(x + 2 * VECTOR, _mm512_sub_ps(a, c));
    _mm512_storeu_ps(x + 3 * VECTOR, _mm512_sub_ps(b, d));
}

/* x (n), n <= 64, times H (n, n), in its place */
INLINE void turned(const float *H, int64_t n, float *x)
{
    __m512 found[4] = {_mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps(), _mm512_setzero_ps()};
    for (int64_t k = 0; k < n; k++)
        for (int64_t c = 0; c < n / VECTOR; c++)
            found[c] = _mm512_fmadd_ps(_mm512_set1_ps(x[k]), _mm512_loadu_ps(H + k * n + c * VECTOR), found[c]);
    for (int64_t c = 0; c < n / VECTOR; c++)
        _mm512_storeu_ps(x + c * VECTOR, found[c]);
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
    for (int64_t at = 0; at < m->wide; at += m->block)
        if (m->spread)
            turned_fast(m->spread, to + at);
        else
            turned(H, m->block, to + at);
}

/* h += y, scaled by column, and what the adapters add */
static void add(const Model *m, const Step *s, int64_t which, int64_t row, float *h)
{
    const float *y = s->y + row * s->columns;
    const Product *p = m->products + which;
    for (int64_t c = 0; c < p->out; c += VECTOR)
        _mm512_storeu_ps(h + c, _mm512_fmadd_ps(_mm512_loadu_ps(y + c), _mm512_loadu_ps(p->scale + c), _mm512_loadu_ps(h + c)));
    adapt(s, which, row, y, h, p->out);
}

/* x (n) times `by` as a product's inputs, in 8 bits */
static void give(const Step *s, int64_t which, int64_t row, const float *x, float by, int64_t n)
{
    inwards(s, which, row, x, by, n);
    s->scales[row] = rounded(x, by, n, s->x + row * s->inputs);
}

/* The states' norm, as inputs */
static void norm(const Model *m, const Step *s, int64_t which, int64_t row, const float *h)
{
    give(s, which, row, h, inverse_root_mean_square(h, m->width, m->eps), m->width);
}

/* The states of `rows` tokens after all layers */
void whit_step(const Model *m, const Step *s)
{
    Work works[(9 * m->layers + 1) * s->threads];
    memset(works, 0, sizeof works);
#pragma omp parallel num_threads(s->threads)
    {
        const int64_t rows = s->rows, threads = s->threads, me = omp_get_thread_num();
        float *room = s->room + me * s->rooms;
        Work *work = works - threads;
        for (int64_t layer = 0; layer < m->layers; layer++) {
            const int64_t qkv = 4 * layer, out = qkv + 1, gate_up = qkv + 2, down = qkv + 3;
            const Product *p = m->products;
            EACH_ROW(work += threads, row, rows, threads, {
                float *h = s->h + row * m->width;
                if (layer)
                    add(m, s, qkv - 1, row, h);
                else
                    begin(m, s->embeds + row * m->width, h);
                norm(m, s, qkv, row, h);
            });
            product(work += threads, me, p + qkv, s->x, s->inputs, s->scales, rows, 1, s->y, s->columns, threads);
            EACH_ROW(work += threads, row, rows, threads, {
                float *y = s->y + row * s->columns;
                adapt(s, qkv, row, y, y, p[qkv].out);
                keep(m, s, layer, row);
            });
            EACH_ROW(work += threads, row, rows, threads, {
                float *y = s->y + row * s->columns;
                look_back(m, s, layer, row, room);
                give(s, out, row, y, 1.0f, m->heads * m->dim);
            });
            product(work += threads, me, p + out, s->x, s->inputs, s->scales, rows, 0, s->y, s->columns, threads);
            EACH_ROW(work += threads, row, rows, threads, {
                float *h = s->h + row * m->width;
                add(m, s, out, row, h);
                norm(m, s, gate_up, row, h);
            });
            product(work += threads, me, p + gate_up, s->x, s->inputs, s->scales, rows, 1, s->y, s->columns, threads);
            EACH_ROW(work += threads, row, rows, threads, {
                float *y = s->y + row * s->columns;
                adapt(s, gate_up, row, y, y, p[gate_up].out);
                gated(m, y, room);
                give(s, down, row, room, 1.0f, m->wide);
            });
            product(work += threads, me, p + down, s->x, s->inputs, s->scales, rows, 0, s->y, s->columns, threads);
        }
        EACH_ROW(work += threads, row, rows, threads, {
            float *h = s->h + row * m->width;
            add(m, s, 4 * m->layers - 1, row, h);
            __m512 by = _mm512_set1_ps(inverse_root_mean_square(h, m->width, m->eps));
            for (int64_t c = 0; c < m->width; c += VECTOR)
                _mm512_storeu_ps(h + c, _mm512_mul_ps(_mm512_loadu_ps(h + c), by));
        });
    }
}

/* The likeliest so far, of columns that one thread saw */
typedef struct {
    float most;
    int64_t column;
} Best;

INLINE int before(const Best *one, const Best *other)
{
    return one->most > other->most || (one->most == other->most && one->column < other->column);
}

/* The first of the largest of y (rows, p->out), which is scaled and not kept; `ids` (rows,). Not a number is never it. */
void whit_likeliest(const Product *p, const float *x, int64_t rows, uint8_t *bytes, float *scales, int64_t *ids,
                    Best *bests /* (threads, rows) */, int64_t threads)
{
    Work works[2 * threads];
    memset(works, 0, sizeof works);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num(), panels = p->columns / VECTOR;
        Best *mine = bests + me * rows;
        for (int64_t row = 0; row < rows; row++)
            mine[row] = (Best){-INFINITY, 0};
        EACH_ROW(works, row, rows, threads, {
            scales[row] = rounded(x + row * p->in, 1.0f, p->in, bytes + row * p->in);
        });
        float y[rows * 2 * VECTOR];
        Shares shares = {works + threads, (panels + 1) / 2, 4, threads, me, 0};
        for (int64_t end, pair; (pair = take(&shares, &end)) >= 0; finish(&shares, end - pair))
            for (int64_t panel = 2 * pair; panel < panels && panel < 2 * end; panel += 2) {
                const int wide = panel + 1 < panels ? 2 : 1;
                if (wide == 2)
                    tiles(p, panel, 2, bytes, p->in, scales, rows, 1, y, 2 * VECTOR);
                else
                    tiles(p, panel, 1, bytes, p->in, scales, rows, 1, y, 2 * VECTOR);
                for (int64_t row = 0; row < rows; row++)
                    for (int v = 0; v < wide; v++) {
                        const int64_t first = (panel + v) * VECTOR, left = p->out - first;
                        __m512 found = _mm512_loadu_ps(y + (2 * row + v) * VECTOR);
                        __mmask16 there = left >= VECTOR ? 0xffff : (__mmask16)((1u << (left > 0 ? left : 0)) - 1);
                        there = _mm512_mask_cmp_ps_mask(there, found, found, _CMP_ORD_Q);
                        if (!_mm512_mask_cmp_ps_mask(there, found, _mm512_set1_ps(mine[row].most), _CMP_GE_OQ))
                            continue;
                        const float most = _mm512_mask_reduce_max_ps(there, found);
                        const __mmask16 where = _mm512_mask_cmp_ps_mask(there, found, _mm512_set1_ps(most), _CMP_EQ_OQ);
                        const Best one = {most, first + (where ? __builtin_ctz(where) : 0)};
                        if (where && before(&one, mine + row))
                            mine[row] = one;
                    }
            }
        wait_for(&shares);
    }
    for (int64_t row = 0; row < rows; row++) {
        Best best = bests[row];
        for (int64_t thread = 1; thread < threads; thread++)
            if (before(bests + thread * rows + row, &best))
                best = bests[thread * rows + row];
        ids[row] = best.column;
    }
}

/* y (rows, columns) of x (rows, in), scaled by column where asked; `bytes` (rows, in) and `scales` (rows,) are room */
void whit_product(const Product *p, const float *x, int64_t rows, int32_t scaled, uint8_t *bytes, float *scales, float *y,
                  int64_t threads)
{
    Work works[2 * threads];
    memset(works, 0, sizeof works);
#pragma omp parallel num_threads(threads)
    {
        const int64_t me = omp_get_thread_num();
        EACH_ROW(works, row, rows, threads, {
            scales[row] = rounded(x + row * p->in, 1.0f, p->in, bytes + row * p->in);
        });
        product(works + threads, me, p, bytes, p->in, scales, rows, scaled, y, p->columns, threads);
    }
}
